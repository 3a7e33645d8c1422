"""Run folders: which is the latest, who may write, and a log without a step twice."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from v2.data.games import find_weights
from v2.runtime.run_dir import RunDir, all_runs, find_checkpoint, finished_runs, read_status

ROOT = Path(__file__).resolve().parents[1]


def _finished(root, kind="world_model", is_smoke=False):
    run = RunDir.create(root, kind, {"is_smoke": is_smoke, "args": {}})
    (run.path / "best.pt").write_bytes(b"x")
    run.set_status(is_finished=True, step=1)
    run.release()
    return run


def test_latest_is_the_newest_finished_run_that_is_no_smoke_run(tmp_path):
    root = tmp_path / "atari"
    _finished(root)
    newest = _finished(root)
    _finished(root, kind="vqvae")
    _finished(root, is_smoke=True)
    RunDir.create(root, "world_model", {"args": {}}).release()
    assert finished_runs(root, "world_model")[-1] == newest.path
    assert find_checkpoint("latest", "world_model", root, "") == newest.path / "best.pt"


def test_latest_falls_back_to_the_shipped_weights(tmp_path):
    shipped = tmp_path / "atari" / "atari_vqvae_hires.pt"
    shipped.parent.mkdir()
    shipped.write_bytes(b"x")
    assert find_checkpoint("latest", "vqvae", shipped.parent, "") == shipped


def test_a_game_without_weights_names_the_command_that_trains_it(tmp_path, monkeypatch):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="run make train GAME=pong$"):
        find_weights("latest", "world_model", "Pong")


def test_an_unknown_run_is_refused_with_those_there_are(tmp_path):
    run = _finished(tmp_path / "atari")
    with pytest.raises(FileNotFoundError, match=f"'20990101_000000'.*{run.path.name}"):
        find_checkpoint("20990101_000000", "world_model", tmp_path / "atari", "")


def test_the_latest_is_what_finished_last_whatever_the_clock_and_the_names_say(
    tmp_path, monkeypatch
):
    root, made = tmp_path / "atari", []
    names = ("20260101_000001", "20260101_000000", "20260101_000001", "20260101_000002")
    for now in names:
        monkeypatch.setattr(time, "strftime", lambda _, now=now: now)
        made.append(_finished(root).path)
    assert [path.name for path in made] == [*names[:2], f"{names[0]}_2", names[3]]
    made[0] = made[0].rename(root / "runs" / "zzz_my_favourite")
    made[1] = made[1].rename(root / "runs" / "9_of_monday")
    made.append(_finished(root).path)
    assert made[-1].name == "20260101_000002_2"
    assert finished_runs(root, "world_model") == all_runs(root) == made
    assert find_checkpoint("latest", "world_model", root, "") == made[-1] / "best.pt"


def test_a_run_that_finished_elsewhere_comes_in_by_its_time(tmp_path, monkeypatch):
    made = {}
    for home, day in (("b", 3), ("a", 2), ("a", 4), ("a", 1)):  # the last: the clock went back
        clock = time.gmtime(1e9 + day * 86400)
        with monkeypatch.context() as patch:
            patch.setattr(time, "gmtime", lambda clock=clock: clock)
            made[day] = _finished(tmp_path / home).path.rename(tmp_path / home / "runs" / str(day))
    guest = shutil.copytree(made[3], tmp_path / "a" / "runs" / "guest")
    assert all_runs(tmp_path / "a") == [made[2], guest, made[4], made[1]]


def test_a_run_that_began_first_and_ended_last_is_the_latest(tmp_path):
    first, second = (RunDir.create(tmp_path, "vqvae", {"args": {}}) for _ in range(2))
    assert all_runs(tmp_path) == [first.path, second.path] and not finished_runs(tmp_path, "vqvae")
    for run in (second, first):
        run.set_status(is_finished=True, step=3)
    assert finished_runs(tmp_path, "vqvae") == [second.path, first.path]
    second.set_status(is_finished=True, step=3)  # resumed, but nothing was left to do
    assert finished_runs(tmp_path, "vqvae") == [second.path, first.path]
    second.set_status(is_finished=False, step=3)
    second.set_status(is_finished=True, step=9)
    assert finished_runs(tmp_path, "vqvae") == [first.path, second.path]
    assert read_status(second.path)["time"][:4].isdigit()


@pytest.mark.parametrize("status", ['{"is_finished": true}', '{"is_finished": true, "number": {}}'])
def test_runs_of_older_versions_come_by_name_and_before_all_others(status, tmp_path):
    made = [_finished(tmp_path).path for _ in range(3)]
    names = ("z", "y")
    for run, name in zip(made, names, strict=False):
        (run / "status.json").write_text(status)
        run.rename(run.with_name(name))
    expected = [made[0].with_name("y"), made[0].with_name("z"), made[2]]
    assert finished_runs(tmp_path, "world_model") == expected


HOLDING = """
import sys, time
from v2.runtime.run_dir import RunDir
run = RunDir(sys.argv[1])
run.acquire()
print("holding", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_and_the_lock_of_a_killed_one_is_none(tmp_path):
    run = RunDir.create(tmp_path, "vqvae", {})
    run.release()
    command = [sys.executable, "-c", HOLDING, str(run.path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert first.stdout.readline() == "holding\n"
    (run.path / ".last.pt.999999999.tmp").write_bytes(b"x")
    before = {path: path.read_bytes() for path in run.path.glob("*.*")}
    text = f"process {first.pid} is training in {run.path} since 2.*: wait for it or stop it"
    with pytest.raises(FileExistsError, match=text):
        run.acquire()
    assert {path: path.read_bytes() for path in run.path.glob("*.*")} == before
    first.kill()
    first.communicate()
    run.acquire()
    assert not list(run.path.glob(".*.tmp"))


def test_of_many_that_ask_at_once_one_gets_the_lock(tmp_path):
    """The files are there, of a process that was killed."""
    (tmp_path / "lock").touch()
    (tmp_path / "lock.owner").write_text('{"process": 1}')
    answers, say = os.pipe()
    go_on, end = os.pipe()
    children = []
    for _ in range(8):
        if (child := os.fork()) == 0:
            os.close(end)
            run = RunDir(tmp_path)
            try:
                run.acquire()
                os.write(say, b"y")
            except FileExistsError:
                os.write(say, b"n")
            os.read(go_on, 1)  # until all have asked
            os._exit(0)
        children.append(child)
    heard = b"".join(os.read(answers, 1) for _ in children)
    os.close(end)
    for child in children:
        os.waitpid(child, 0)
    for descriptor in (answers, say, go_on):
        os.close(descriptor)
    assert heard.count(b"y") == 1


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match=f"cannot lock {tmp_path}: No locks available; name a folder"):
        RunDir(tmp_path).acquire()


def test_a_resumed_run_logs_no_step_twice(tmp_path):
    run = RunDir.create(tmp_path, "vqvae", {})
    for step in (1, 2, 3):
        run.log(step, loss=1 / step)
    run.release()
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    run.forget_after(2)
    run.log(3, loss=0.5)
    run.release()
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[2]["loss"] == 0.5
