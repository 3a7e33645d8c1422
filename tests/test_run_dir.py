import json
import os

import pytest

from v2.run_dir import RunDir, find_weights, finished_runs


def _finished(root, kind="world_model", is_smoke=False):
    run = RunDir.create(root, kind, {"is_smoke": is_smoke, "args": {}})
    (run.path / "best.pt").write_bytes(b"x")
    run.set_status(is_finished=True)
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
    assert find_weights("latest", "world_model", "breakout", tmp_path) == newest.path / "best.pt"


def test_latest_falls_back_to_the_shipped_weights(tmp_path):
    shipped = tmp_path / "atari" / "atari_vqvae_hires.pt"
    shipped.parent.mkdir()
    shipped.write_bytes(b"x")
    assert find_weights("latest", "vqvae", "breakout", tmp_path) == shipped


def test_an_unknown_run_is_refused_with_those_there_are(tmp_path):
    run = _finished(tmp_path / "atari")
    with pytest.raises(FileNotFoundError, match=f"'20990101_000000'.*{run.path.name}"):
        find_weights("20990101_000000", "world_model", "breakout", tmp_path)


def test_two_processes_do_not_share_a_run(tmp_path):
    run = RunDir.create(tmp_path, "vqvae", {})
    (run.path / "lock").write_text(str(os.getppid()))
    with pytest.raises(FileExistsError, match=f"process {os.getppid()} is training"):
        RunDir(run.path).acquire()
    (run.path / "lock").write_text("999999999")  # a process that is gone
    RunDir(run.path).acquire()


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
