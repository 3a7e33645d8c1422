"""Real processes, real signals: what was done is kept, and the exit code says what happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import SMALL_WORLD_MODEL, wm_flags
from tests.test_training import DRIVER
from v2.data import tokenize_atari
from v2.data.atari_dataset import load_game_data
from v2.dream import DreamEngine
from v2.eval import gold_eval
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.models.weights import tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.cli import StopRequest, forwarded_signals
from v2.runtime.run_dir import RunDir
from v2.train import train_wm_hires

ROOT = Path(__file__).resolve().parents[1]
MANY = "100000000"


def _start(code: str, *flags) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", code, *map(str, flags)]
    return subprocess.Popen(command, cwd=ROOT, text=True, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def _wait_for(is_true, process: subprocess.Popen, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def _slow(number):
    return pytest.param(number, marks=pytest.mark.slow)


@pytest.mark.parametrize("number", [signal.SIGINT, _slow(signal.SIGTERM), _slow(signal.SIGHUP)])
def test_training_saves_and_prints_the_command_that_resumes(number, data_path, tmp_path):
    flags = ["--data", data_path, "--out", tmp_path, "--set", f"steps={MANY}"]
    process = _start(DRIVER, "vqvae", *flags)
    _wait_for(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    (run,) = (tmp_path / "runs").iterdir()
    assert process.returncode == 128 + number and "Traceback" not in err
    assert f"train_vqvae_hires.py --resume {run}" in out
    assert checkpoint.load_last(run, "vqvae")["step"] >= 20
    assert not list(run.glob(".*"))


SLOW_STEP = DRIVER.replace("cli.run", """
import time
step = script.Trainer.train_step
def slow(trainer):
    if trainer.step == 3:
        print("in the third step", flush=True)
        time.sleep(60)
    return step(trainer)
script.Trainer.train_step = slow
cli.run""")


def test_the_second_signal_leaves_at_once_and_the_old_checkpoint_stays(data_path, tmp_path):
    flags = ["--data", data_path, "--out", tmp_path, "--set", "steps=9", "save_minutes=1e-9"]
    process = _start(SLOW_STEP, "vqvae", *flags)
    _wait_for(lambda: list(tmp_path.glob("runs/*/last-1.pt")), process)
    assert any("in the third step" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None  # the first one waits for the step
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130 and time.monotonic() - began < 5
    (run,) = (tmp_path / "runs").iterdir()
    assert checkpoint.load_last(run, "vqvae")["step"] == 3
    RunDir(run).acquire()  # the lock of a process that is gone is no hindrance


def test_a_signal_during_a_save_waits_for_it(tmp_path, monkeypatch):
    model, path = VQVAE(VQVAEConfig(latent_dim=16, stem_dim=8)), tmp_path / "last.pt"
    real = checkpoint.torch.save

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        real(*args)

    monkeypatch.setattr(checkpoint.torch, "save", interrupted)
    with StopRequest() as stop:
        checkpoint.save_rotating(path, "vqvae", model, step=1)
    assert stop.exit_code == 130 and checkpoint.load_checkpoint(path, "vqvae")["step"] == 1


def test_an_ignored_hangup_stays_ignored():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
    finally:
        signal.signal(signal.SIGHUP, old)


COLLECT = """
import sys
from v2.runtime import cli
from v2.data import collect_atari
cli.run(lambda: collect_atari.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [_slow(signal.SIGINT), signal.SIGTERM])
def test_collecting_finishes_the_game_and_saves_what_is_there(number, tmp_path):
    """The whole process group is signalled, as a terminal or a scheduler does."""
    command = [sys.executable, "-c", COLLECT, "--frames", "100000", "--frames-per-shard", "500",
               "--policy", "sticky", "--out", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    _wait_for(lambda: (tmp_path / "atari_game_data-00000.npz").exists(), process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 128 + number and "Traceback" not in err, err
    data = load_game_data(tmp_path / "atari_game_data.npz")
    assert 400 < len(data) < 100_000 and f"{len(data)} frames of" in out
    assert sum(episode["frames"] for episode in data.meta["episodes"]) == len(data)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_collector(tmp_path):
    process = _start(COLLECT, "--frames", MANY, "--policy", "sticky", "--out", tmp_path / "d")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    spawned = lambda: [c for c in children.read_text().split() if _is_worker(c)]  # noqa: E731
    _wait_for(lambda: len(spawned()) == 2, process)
    workers = spawned()
    time.sleep(3)  # until they play
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while any(map(_is_worker, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_worker(process: str) -> bool:
    try:
        return "spawn_main" in Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return False


def test_stopped_tokenizing_leaves_the_old_file(data_path, tmp_path, vqvae, monkeypatch):
    from v2.data import tokens

    checkpoint.save_checkpoint(tmp_path / "v.pt", "vqvae", vqvae)
    out = tmp_path / "tokens.npz"
    flags = ["--data", str(data_path), "--vqvae", str(tmp_path / "v.pt"), "--out", str(out)]
    assert tokenize_atari.main(flags) == 0
    before, real = out.read_bytes(), tokens.encode_frames

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(tokens, "encode_frames", interrupted)
    assert tokenize_atari.main([*flags, "--batch-size", "100"]) == 143
    assert out.read_bytes() == before


def test_training_that_is_stopped_while_it_makes_tokens_writes_nothing(
    data_path, tmp_path, vqvae, monkeypatch, capsys
):  # fmt: skip
    from v2.data import tokens

    checkpoint.save_checkpoint(tmp_path / "v.pt", "vqvae", vqvae)
    real = tokens.encode_frames

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(tokens, "encode_frames", real)
        return real(*args)

    monkeypatch.setattr(tokens, "encode_frames", interrupted)
    before = set(tmp_path.iterdir())
    flags = wm_flags(tmp_path / "w", data_path, tmp_path / "v.pt", "--set", "steps=1")
    assert train_wm_hires.main(flags) == 143
    assert "run the same command again" in capsys.readouterr().out
    assert set(tmp_path.iterdir()) == before


def test_a_stopped_evaluation_writes_nothing(tiny_gold, vqvae, tmp_path, monkeypatch, capsys):
    model = TemporalWorldModel(WorldModelConfig(num_actions=4, **SMALL_WORLD_MODEL))
    checkpoint.save_checkpoint(tmp_path / "vqvae.pt", "vqvae", vqvae)
    checkpoint.save_checkpoint(tmp_path / "best.pt", "world_model", model,
                               vqvae_sha256=tokenizer_sha256(vqvae))  # fmt: skip
    step = DreamEngine.step

    def interrupted(engine, action):
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(DreamEngine, "step", step)
        return step(engine, action)

    monkeypatch.setattr(DreamEngine, "step", interrupted)
    flags = ["--checkpoint", str(tmp_path / "best.pt"), "--tier", "canary"]
    assert gold_eval.main([*flags, "--json", str(tmp_path / "a.json")]) == 130
    assert "run the same command again" in capsys.readouterr().out
    assert not (tmp_path / "a.json").exists()


CHILD = """
import signal, sys, time
def stop(number, frame):
    print("saved", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
time.sleep(60)
"""


def test_the_pipeline_hands_a_signal_to_its_stage_exactly_once():
    process = subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=True, text=True,
                               stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    with forwarded_signals(process):
        os.kill(os.getpid(), signal.SIGINT)
        assert process.wait(timeout=10) == 130
    assert process.stdout.read() == "saved\n"
