"""What users get wrong ends in one line on stderr, the right exit code, and nothing lost."""

import errno
import functools
import gc
import json
import multiprocessing
import os
import re
import resource
import shlex
import signal
import struct
import subprocess
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pygame
import pytest
import torch

from tests.conftest import content_of, train_vqvae, train_world_model, wm_flags
from tests.fake_engine import FakeEngine
from v2 import play_atari_hires
from v2.data import atari_dataset, collect_atari, collector, npz, tokenize_atari
from v2.data.atari_dataset import (
    ARRAY_FIELDS,
    GOLD_SEED_START,
    GameData,
    load_game_data,
    save_game_data,
)
from v2.data.emulator import make_atari_env
from v2.data.games import EmulatorConfig, emulator_dict
from v2.data.npz import read_npz, write_npz
from v2.data.policies import policy_mix
from v2.data.tokens import load_tokens, tokenize
from v2.eval import gold_eval
from v2.models.weights import build_model, load_vqvae, load_world_model
from v2.runtime import checkpoint, cli, errors, files
from v2.runtime.device import choose_device, compiled
from v2.runtime.run_dir import read_config
from v2.train import distributed, ship, train_vqvae_hires, train_wm_hires
from v2.train import flags as flags_of
from v2.train.recipe import WORLD_MODEL_PRESETS

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (collect_atari, tokenize_atari, train_vqvae_hires, train_wm_hires)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_misspelt_game_is_refused_with_a_hint(script, ends):
    ends(script.main, ["--game", "Breakot"], 2, "'Breakot'", "did you mean breakout")


@pytest.mark.parametrize("flags", [
    ["--set", "steps=-1"], ["--batch-size", "-1"], ["--batch-size", "9" * 400], ["--lr", "nan"],
    ["--lr", "1e999"], ["--lr", "-1"], ["--epochs", "two"], ["--set", "decay=1.5"],
    ["--seed", "-3"], ["--set", "lr"], ["--set", "rate=1"], ["--set", "lr=two"], ["--data", ""],
    ["--nonsense", "1"], ["--batch-size", "100000"], ["--set", "save_minutes=-1"],
    ["--set", "is_smoke=perhaps"],
    ["--preset", "huge"],
])  # fmt: skip
@pytest.mark.parametrize("script", [train_vqvae_hires, train_wm_hires], ids=["vqvae", "wm"])
def test_absurd_flags_are_refused_by_name(script, flags, ends):
    ends(script.main, flags, 2, flags[0])


@pytest.mark.parametrize("flags, text", [
    (["--set", "num_cells=337"], "must be 0 to 336, got 337"),
    (["--set", "past_actions=4"], "must be 0 to 3, got 4"),
    (["--set", "past-action=3"], "did you mean past_actions"),
    (["--set", "importance_cap=0.5"], "must be at least 1, got 0.5"),
    (["--set", "copy_bias=5000"], "must be 0 to 4096, got 5000.0"),  # could not be loaded again
])  # fmt: skip
def test_flags_of_the_world_model_are_refused_before_anything_is_read(flags, text, ends, tmp_path):
    ends(train_wm_hires.main, [*flags, "--out", tmp_path / "new"], 2, flags[0], text)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("flags", [
    ["--workers", "0"], ["--workers", "100000"], ["--frames", "-5"], ["--sticky", "1"],
    ["--frameskip", "61"], ["--seed", "99"], ["--frames", "1"], ["--frames-per-shard", "0"],
])  # fmt: skip
def test_absurd_collecting_is_refused(flags, ends, tmp_path):
    ends(collect_atari.main, [*flags, "--out", tmp_path / "new"], 2, flags[0][2:])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("flags", [
    ["--fps", "0"], ["--fps", "1e300"], ["--fps", "nan"], ["--scale", "17"], ["--scale", "-1"],
    ["--temperature", "1e-38"], ["--temperature", "-1"],
])  # fmt: skip
def test_absurd_playing_is_refused(flags, ends):
    ends(play_atari_hires.main, [*flags, "--headless"], 2, *flags)


def test_data_of_a_dream_alone_is_refused_before_any_work(ends, tmp_path):
    flags = ["--headless", "--dream-only", "--save-data", tmp_path / "new" / "data.npz"]
    ends(play_atari_hires.main, flags, 2, "--save-data", "--dream-only")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [
    KeyError("nothing"), EOFError("nothing"), zipfile.BadZipFile("nothing"),
    struct.error("nothing"), gymnasium.error.Error("nothing"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_an_unexpected_error_is_one_line_that_asks_for_a_report(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 1
    text = f"internal {type(error).__name__}: {error}; please report it, with --debug"
    assert capsys.readouterr().err == f"error: {text}\n"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "tpu", "meta"])
def test_an_absent_device_is_refused_with_those_there_are(name, ends):
    for script in (tokenize_atari, train_vqvae_hires, train_wm_hires):
        ends(script.main, ["--device", name], 2, repr(name), "use cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_is_refused():
    with pytest.raises(ValueError, match="no device 'cuda' on this machine: use cpu"):
        choose_device("cuda")


def test_a_missing_rom_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no ROM of breakout.*unset ALE_ROMS_DIR"):
        make_atari_env("breakout")


WITHOUT = """
import runpy, sys
sys.modules[{package!r}] = None
sys.argv = [{script!r}, *{flags!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize("package, script, is_needed", [
    ("ale_py", "v2/data/collect_atari.py", True),
    ("gymnasium", "v2/data/collect_atari.py", True),
    ("PIL", "v2/train/train_vqvae_hires.py", True),
    ("torch", "v2/train/train_wm_hires.py", True),
    ("tqdm", "v2/data/tokenize_atari.py", True),
    ("pygame", "v2/play_atari_hires.py", True),
    ("numpy", "v2/eval/gold_eval.py", True),
    ("torch", "v2/train/ship.py", True),
    ("pygame", "v2/train/train_wm_hires.py", False),
    ("torch", "v2/doctor.py", False),
])  # fmt: skip
def test_a_missing_package_is_named_with_the_pip_line(package, script, is_needed, tmp_path):
    flags = ["--frames", "100", "--out", str(tmp_path)] if package == "ale_py" else ["--help"]
    code = WITHOUT.format(package=package, script=str(ROOT / script), flags=flags)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if not is_needed:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"package {package} is missing" in done.stderr
    assert "pip install" in done.stderr and "-r requirements.txt" in done.stderr


@pytest.mark.parametrize("package, suffix", [("av", "mp4"), ("PIL", "gif"), ("PIL", "png")])
def test_a_recording_that_cannot_be_written_is_said_before_anything_is_played(
    package, suffix, ends, tmp_path, monkeypatch
):  # fmt: skip
    engine = FakeEngine()
    monkeypatch.setattr(play_atari_hires, "load_quickest", lambda *a, **k: engine)
    monkeypatch.setitem(sys.modules, package, None)
    flags = ["--headless", "--steps", "3", "--record", tmp_path / f"play.{suffix}"]
    ends(play_atari_hires.main, flags, 2, f"package {package} is missing", "-r requirements.txt")
    assert not engine.actions and not list(tmp_path.iterdir())


def test_without_a_compiler_training_goes_on_uncompiled(monkeypatch, capsys):
    text = "no C++ compiler found: going on uncompiled\n"
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    model = torch.nn.Linear(1, 1)
    assert compiled(model) is model and capsys.readouterr().out == text

    def failing(function):
        raise RuntimeError("Failed to find C compiler. Please specify via CC")

    monkeypatch.setattr(torch, "compile", failing)
    model = torch.nn.Linear(1, 1, device="meta")  # in place of an accelerator
    assert compiled(model) is model and capsys.readouterr().out == text


def test_the_compiler_that_is_looked_for_is_the_one_that_torch_calls(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", lambda model, mode: "compiled")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    model = torch.nn.Linear(1, 1)
    for name, made in (("c++", model), ("g++", "compiled")):
        (tmp_path / name).touch(mode=0o755)
        assert compiled(model) is made
    monkeypatch.setenv("CXX", "clang++")
    assert compiled(model) is model


def test_variables_of_torchrun_that_are_left_over_are_named(ends, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    ends(train_wm_hires.main, [], 2, "RANK is set to '0'", "WORLD_SIZE", "unset RANK")


@pytest.fixture
def cuda_under_torchrun(monkeypatch):
    """Say that there is one CUDA device; return what the group of processes is begun with."""
    begun = {}
    monkeypatch.setattr(distributed, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    group = torch.distributed
    monkeypatch.setattr(group, "init_process_group", lambda *a, **k: begun.update(k, backend=a[0]))
    monkeypatch.setattr(group, "get_rank", lambda: 0)
    monkeypatch.setattr(group, "get_world_size", lambda: 1)
    monkeypatch.setattr(os, "environ", os.environ | {"RANK": "0", "LOCAL_RANK": "0"})
    return begun


def test_more_processes_than_cuda_devices_are_refused(cuda_under_torchrun, ends):
    os.environ["LOCAL_RANK"] = "1"
    for script in (train_vqvae_hires, train_wm_hires):
        ends(script.main, [], 2, "process 2", "there are 1", "--nproc_per_node=1")
    del os.environ["LOCAL_RANK"]
    ends(train_wm_hires.main, [], 2, "RANK is set to '0'", "LOCAL_RANK", "unset RANK")
    assert not cuda_under_torchrun


def test_processes_on_cuda_name_their_device_and_raise_when_others_hang(cuda_under_torchrun):
    assert distributed.join("auto")[1] == torch.device("cuda", 0)
    assert cuda_under_torchrun["backend"] == "nccl"
    assert cuda_under_torchrun["device_id"] == torch.device("cuda", 0)
    assert os.environ["TORCH_NCCL_BLOCKING_WAIT"] == "1"


def test_a_misspelt_display_driver_is_refused(ends, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "x12")
    pygame.display.quit()
    ends(play_atari_hires.main, [], 2, "x12", "--headless")
    assert "--headless" not in ends(play_atari_hires.main, ["--replay", "a.npz"], 2, "x12")


@pytest.mark.parametrize("main, flag, name", [
    (play_atari_hires.main, "--checkpoint", "x" * 300), (gold_eval.main, "--run", "x" * 300),
    (gold_eval.main, "--data", "x" * 300), (gold_eval.main, "--data", "x/" * 3000),
    (train_vqvae_hires.main, "--resume", "x" * 300),
    (gold_eval.main, "--json", "x" * 250),  # its temporary file has a longer one
    (tokenize_atari.main, "--out", "x" * 250 + ".npz"),
])  # fmt: skip
def test_a_name_that_is_too_long_is_refused_before_any_work(main, flag, name, ends):
    more = ["--headless"] if main is play_atari_hires.main else []
    ends(main, [flag, name, *more], 2, name[:20], "is too long", "give a shorter one")


def test_where_folders_cannot_be_opened_a_save_does_without(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "os", SimpleNamespace(name="nt"))
    files.sync_directory(tmp_path)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(ends, data_path, tmp_path):
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "below"
    before = content_of(tmp_path)
    ends(collect_atari.main, ["--out", out], 2, "file is a file")
    ends(train_vqvae_hires.main, ["--data", data_path, "--out", out], 2, "file is a file")
    assert content_of(tmp_path) == before
    if os.geteuid():
        (tmp_path / "shut").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="name another folder"):
            files.check_writable(tmp_path / "shut" / "new")


def test_existing_output_is_refused_and_untouched(ends, data_path, tmp_path):
    before = content_of(tmp_path)
    ends(collect_atari.main, ["--out", tmp_path], 2, "is there already", "--overwrite")
    for flag in ("--out", "--data"):
        ends(tokenize_atari.main, ["--out", data_path, flag, data_path], 2, "holds no tokens")
    ends(tokenize_atari.main, ["--out", tmp_path / "notes.txt"], 2, "ends in .npz")
    assert content_of(tmp_path) == before
    np.savez(tmp_path / "own.npz", frames=np.zeros(3))  # of another program
    before = content_of(tmp_path)
    flags = ["--data", data_path, "--out", tmp_path / "own.npz"]
    ends(tokenize_atari.main, flags, 2, "own.npz is there and holds no tokens")
    assert content_of(tmp_path) == before


def test_weights_are_shipped_and_shared_for_their_own_game_alone(
    ends, world_run, game_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path / "shipped")
    text = "dreams of breakout: add --game breakout"
    ends(ship.main, ["--game", "pong", "--run", world_run], 2, text)
    flags = ["--run", world_run, "--to", tmp_path / "share", "--data"]
    ends(ship.main, [*flags, tmp_path / "none.npz"], 2, "no game data at")
    game_data.meta["emulator"] = emulator_dict(EmulatorConfig("pong"))
    save_game_data(tmp_path / "pong.npz", game_data)
    ends(ship.main, [*flags, tmp_path / "pong.npz"], 2, "was trained with game breakout, not pong")
    assert not (tmp_path / "shipped").exists() and not (tmp_path / "share").exists()


def test_game_data_given_as_tokens_is_refused_and_untouched(ends, vqvae_run, data_path, tmp_path):
    before = data_path.read_bytes()
    flags = wm_flags(tmp_path / "w", data_path, vqvae_run, "--tokens", data_path)
    ends(train_wm_hires.main, flags, 2, "holds no tokens")
    assert data_path.read_bytes() == before


def test_interrupted_overwriting_never_leaves_less_than_one_whole_set(tmp_path, monkeypatch):
    flags = ["--policy", "sticky", "--workers", "1", "--out", str(tmp_path), "--frames", "900"]
    assert collect_atari.main([*flags, "--frames-per-shard", "400"]) == 0
    before, real = content_of(tmp_path), atari_dataset.save_game_data

    def save(path, data):
        real(path, data)
        if "00001" in path.name or data.meta["seed"] == 0:
            1 / 0  # noqa: B018

    monkeypatch.setattr(collect_atari, "save_game_data", save)
    for more in ([], ["--seed", "1", "--frames-per-shard", "400"]):
        with pytest.raises(ZeroDivisionError):
            collect_atari.main([*flags, "--overwrite", *more])
        assert len(before) > 1 and content_of(tmp_path) == before
    monkeypatch.undo()
    stray = tmp_path / "overwrite.tmp" / "atari_game_data-00007.npz"  # of a killed process
    stray.parent.mkdir()
    stray.touch()
    assert collect_atari.main([*flags, "--overwrite"]) == 0
    assert [p.name for p in content_of(tmp_path)] == ["atari_game_data.npz"]
    assert len(load_game_data(tmp_path / "atari_game_data.npz")) == 900


def test_a_recording_that_came_meanwhile_is_kept(ends, tmp_path, monkeypatch):
    data, record = tmp_path / "atari_game_data.npz", collector.record

    def recording(*args):
        yield from record(*args)
        data.write_bytes(b"another's")

    monkeypatch.setattr(collect_atari, "record", recording)
    flags = ["--policy", "sticky", "--workers", "1", "--frames", "100", "--out", tmp_path]
    ends(collect_atari.main, flags, 2, "came meanwhile")
    assert data.read_bytes() == b"another's"


def test_a_full_disk_while_collecting_keeps_the_finished_shards(ends, tmp_path, monkeypatch):
    real, limit = atari_dataset.save_game_data, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(path, data):
        if "00001" in path.name:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        return real(path, data)

    monkeypatch.setattr(collect_atari, "save_game_data", save)
    flags = ["--policy", "sticky", "--workers", "1", "--frames", "900", "--frames-per-shard", "400"]
    try:
        ends(collect_atari.main, [*flags, "--out", tmp_path], 1, "cannot write", "free some space")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [p.name for p in tmp_path.iterdir()] == ["atari_game_data-00000.npz"]
    assert len(load_game_data(tmp_path / "atari_game_data.npz")) > 100


def test_a_killed_worker_is_an_error_and_no_endless_wait(monkeypatch):
    segments = collector.record(EmulatorConfig(), policy_mix("sticky", "breakout"), 5000, 0, 2)
    next(segments)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in children:
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker process was killed.*--workers 1"):
        list(segments)


def _die_while_sending(_) -> None:
    """Write a part of a result into the pipe of the pool that this process works for, and die."""
    for queue in gc.get_objects():
        if isinstance(queue, multiprocessing.queues.SimpleQueue) and hasattr(queue, "_writer"):
            os.write(queue._writer.fileno(), struct.pack("!i", 1000) + b"x" * 10)
    os._exit(9)


def test_a_worker_that_dies_while_sending_is_noticed():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        with pytest.raises(RuntimeError, match="worker process was killed"):
            collector._result(pool.submit(_die_while_sending, None), pool)


BAD_ARRAYS = {
    "an action of another game": ("actions", lambda a: a + 9, "action 1. of a game with 4"),
    "rewards that are not finite": ("rewards", lambda a: a * np.nan, "reward is not finite"),
    "episodes out of order": ("episode_ids", lambda a: a[::-1].copy(), "do not ascend"),
    "another shape": ("frames", lambda a: a[:, :80], r"must be uint8 \(M, 84, 64, 3\), got"),
    "another type": ("rewards", lambda a: a.astype(np.float64), "'rewards' must be float32"),
    "another length": ("ram", lambda a: a[:-1], "different lengths"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_cannot_be_right_are_refused_by_name(name, game_data, vqvae, tmp_path):
    field, change, text = BAD_ARRAYS[name]
    setattr(game_data, field, change(getattr(game_data, field)))
    save_game_data(tmp_path / "data.npz", game_data)
    with pytest.raises(ValueError, match=text):
        load_game_data(tmp_path / "data.npz")
    with pytest.raises(ValueError, match=text):
        tokenize(tmp_path / "data.npz", vqvae, torch.device("cpu"))


def test_data_without_an_array_or_without_a_frame_is_refused_by_name(game_data, tmp_path):
    path, arrays, meta = tmp_path / "data.npz", game_data.arrays(), game_data.meta | {"sha256": {}}
    write_npz(path, {name: a for name, a in arrays.items() if name != "rewards"}, meta)
    with pytest.raises(ValueError, match="data.npz has no array 'rewards'; make the file again"):
        load_game_data(path)
    write_npz(path, {name: array[:0] for name, array in arrays.items()}, meta)
    with pytest.raises(ValueError, match="data.npz holds no frame; make the file again"):
        load_game_data(path)


@pytest.mark.parametrize("change, text", [
    ({"episodes": "none"}, "'episodes' of its meta must be a list"),
    ({"episodes": [{"id": 0}]}, "list of episodes is damaged"),
    ({"action_meanings": 4}, "'action_meanings' of its meta must be a list"),
    ({"action_meanings": ["NOOP", "FIRE", "RIGHT", 3]}, "an action's name is no text"),
    ({"emulator": {"game": "breakout", "colour": 1}}, "emulator settings of another version"),
    ({"emulator": {"game": 4}}, "emulator settings of another version"),
    ({"emulator": {"game": "Breakot"}}, "emulator settings of another version"),
    ({"game": None}, "'game' of its meta must be a str"),
])  # fmt: skip
def test_a_damaged_meta_is_refused_by_name(change, text, game_data, ends, tmp_path):
    meta = game_data.meta | {"sha256": {}} | change
    path = tmp_path / "data.npz"
    npz.write_npz(path, game_data.arrays(), meta)
    with pytest.raises(ValueError, match=text):
        load_game_data(path)
    ends(gold_eval.main, ["--data", path], 2, str(path), text)
    if "emulator" in change:
        ends(train_vqvae_hires.main, ["--data", path, "--out", tmp_path / "out"], 2, text)


def test_data_whose_meta_lacks_a_hash_is_refused_by_name(game_data, vqvae, ends, tmp_path):
    path, weights = _saved(game_data, vqvae, tmp_path)
    arrays, meta = read_npz(path, ARRAY_FIELDS)
    tokenize(path, vqvae, torch.device("cpu")).save(path.with_name("tokens.npz"))
    text = f"{path}: its meta has no sha256 of 'frames'; make the file again"
    for digest in (None, 3):
        write_npz(path, arrays, meta | {"sha256": meta["sha256"] | {"frames": digest}})
        ends(train_wm_hires.main, wm_flags(tmp_path / "out", path, weights), 2, text)


RESULT = {"format": 1, "data_sha256": "a", "evaluator": 5, "settings": {}, "metrics": {}}


@pytest.mark.parametrize("change, text", [
    ({"metrics": None}, "its 'metrics' is no dict"), ({"settings": 1}, "its 'settings' is no dict"),
    ({"data_sha256": None}, "its 'data_sha256' is no str"),
    ({"metrics": {"x/y": {}}}, "its metric 'x/y' has no value"),
])  # fmt: skip
def test_a_result_without_what_is_compared_is_refused_by_name(change, text, ends, tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, document in zip(paths, (RESULT, RESULT | change), strict=True):
        path.write_text(json.dumps(document))
    ends(gold_eval.main, ["--compare", *paths], 2, str(paths[1]), "damaged result", text)
    paths[1].write_text('{"format": 1}')
    ends(gold_eval.main, ["--compare", *paths], 2, "its 'data_sha256' is no str")
    assert gold_eval.main(["--compare", str(paths[0]), str(paths[0])]) == 0


@pytest.mark.parametrize("content, text", [
    (b"", "it is empty"), (b"<html>", "HTML page"), (b"PK\x03\x04", "truncated zip"),
    (b"version https://git-lfs", "LFS pointer"),
])  # fmt: skip
def test_a_file_that_is_no_npz_is_named_by_its_looks(content, text, ends, tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    line = ends(train_vqvae_hires.main, ["--data", path, "--out", tmp_path], 2, text)
    assert "allow_pickle" not in line


def test_arrays_that_are_not_what_their_hash_says_are_refused(game_data, vqvae, tmp_path):
    path = tmp_path / "data.npz"
    save_game_data(path, game_data)
    arrays, meta = read_npz(path, ARRAY_FIELDS)
    arrays["actions"] = arrays["actions"].copy()
    arrays["actions"][3] ^= 1  # packed anew, so that the checksum of the zip is right
    write_npz(path, arrays, meta)
    for load in (load_game_data, lambda p: tokenize(p, vqvae, torch.device("cpu"))):
        with pytest.raises(ValueError, match="'actions' is not what its sha256 says"):
            load(path)


def test_equal_episodes_in_two_splits_are_refused(game_data, vqvae, tmp_path):
    rows, twin = slice(0, 30), slice(30, 60)  # game 0 is for training, game 1 held out
    game_data.ram[twin], game_data.actions[twin] = game_data.ram[rows], game_data.actions[rows]
    save_game_data(tmp_path / "data.npz", game_data)
    text = r"episodes 0 \(train\) and 1 \(val\) are the same game"
    for load in (load_game_data, lambda path: tokenize(path, vqvae, torch.device("cpu"))):
        with pytest.raises(ValueError, match=text):
            load(tmp_path / "data.npz")


@pytest.mark.parametrize("seeds, text", [
    ([0, 1, GOLD_SEED_START + 5], "holds a game of the frozen evaluation set (seed 1000000005)"),
    ([GOLD_SEED_START], "holds a game of the frozen evaluation set"),
])  # fmt: skip
def test_data_that_cannot_be_trained_on_is_refused_before_any_work(
    seeds, text, game_data, vqvae, ends, tmp_path
):  # fmt: skip
    for episode in game_data.meta["episodes"]:
        episode["seed"] = seeds[episode["id"] % len(seeds)]
    path, out = tmp_path / "data.npz", tmp_path / "out"
    save_game_data(path, game_data)
    checkpoint.save_checkpoint(tmp_path / "v.pt", "vqvae", vqvae)
    tokenizing = ["--data", path, "--vqvae", tmp_path / "v.pt"]
    tokens = out / "tokens.npz"
    ends(tokenize_atari.main, [*tokenizing, "--out", tokens], 2, str(path), text)
    flags = [*tokenizing, "--tokens", tokens, "--out", out]
    ends(train_wm_hires.main, flags, 2, str(path), text)
    ends(train_vqvae_hires.main, ["--data", path, "--out", out], 2, str(path), text)
    assert not out.exists()


def _saved(game_data, vqvae, folder: Path) -> tuple[Path, Path]:
    """Save the data and weights that were trained on its emulator settings."""
    path, weights = folder / "data.npz", folder / "v.pt"
    save_game_data(path, game_data)
    checkpoint.save_checkpoint(weights, "vqvae", vqvae, emulator=game_data.meta["emulator"])
    return path, weights


def _scripts_with(path: Path, weights: Path, out: Path):
    yield tokenize_atari.main, ["--data", path, "--vqvae", weights, "--out", out / "t.npz"]
    yield train_wm_hires.main, wm_flags(out, path, weights)
    for more in ([], ["--set", "decoder_only=true"]):
        start = ["--set", f"init_from={weights}"]
        yield train_vqvae_hires.main, ["--data", path, "--out", out, *start, *more]


def test_data_of_another_game_is_refused_with_the_flag(game_data, vqvae, ends, tmp_path):
    game_data.meta["emulator"]["game"] = "pong"
    path, weights = _saved(game_data, vqvae, tmp_path)
    text = f"{path} holds pong, not breakout: add --game pong"
    for main, flags in _scripts_with(path, weights, tmp_path / "out"):
        ends(main, flags, 2, text)
    ends(train_vqvae_hires.main, ["--data", path, "--out", tmp_path / "out"], 2, text)
    assert not (tmp_path / "out").exists()


def test_weights_of_other_emulator_settings_are_refused(
    small_models, game_data, vqvae, ends, tmp_path
):  # fmt: skip
    game_data.meta["emulator"]["frameskip"] = 2
    path, weights = _saved(game_data, vqvae, tmp_path)
    game_data.meta["emulator"]["frameskip"] = 4
    save_game_data(path, game_data)
    text = f"{weights} was trained with frameskip 2, not 4 as in {path}"
    for main, flags in _scripts_with(path, weights, tmp_path / "out"):
        ends(main, flags, 2, text)
    assert not (tmp_path / "out").exists()


def test_a_world_model_of_other_emulator_settings_is_refused(world_run, data_path, ends):
    model, info = load_world_model(world_run / "last.pt")
    emulator = info["emulator"] | {"repeat_action_probability": 0.25}
    weights = world_run / "other.pt"
    checkpoint.save_checkpoint(weights, "world_model", model, emulator=emulator,
                               vqvae_sha256=info["vqvae_sha256"])  # fmt: skip
    flags = wm_flags(world_run, data_path, world_run / "vqvae.pt")
    text = "was trained with repeat_action_probability 0.25, not 0.0"
    ends(train_wm_hires.main, [*flags, "--set", "steps=1", f"init_from={weights}"], 2, text)


@pytest.mark.parametrize("seeds, text", [
    ((0, 1), "the shards of .* differ in 'seed'"),
    ((0, 0), "do not follow one another"),  # both begin with episode 0
])  # fmt: skip
def test_shards_that_are_not_of_one_recording_are_refused(seeds, text, vqvae, game_data, tmp_path):
    for index, game_data.meta["seed"] in enumerate(seeds):
        save_game_data(tmp_path / f"data-{index:05d}.npz", game_data)
    with pytest.raises(ValueError, match=text):
        load_game_data(tmp_path / "data.npz")
    with pytest.raises(ValueError, match=text):
        tokenize(tmp_path / "data.npz", vqvae, torch.device("cpu"))


def test_damaged_shards_are_left_out_and_counted_where_that_is_asked_for(
    small_models, game_data, ends, tmp_path, capsys
):  # fmt: skip
    path = tmp_path / "atari_game_data.npz"
    shards = [tmp_path / f"atari_game_data-{k:05d}.npz" for k in range(3)]
    for k, shard in enumerate(shards):
        rows = np.isin(game_data.episode_ids, range(6 * k, 6 * k + 6))
        meta = game_data.meta | {"episodes": game_data.meta["episodes"][6 * k : 6 * k + 6]}
        save_game_data(shard, GameData(**{n: a[rows] for n, a in game_data.arrays().items()},
                                       meta=meta))  # fmt: skip
    with zipfile.ZipFile(shards[1]) as file:
        frames = file.getinfo("frames.npy")
    content = bytearray(shards[1].read_bytes())
    content[frames.header_offset + frames.compress_size // 2] ^= 1
    shards[1].write_bytes(content)
    flags = ["--data", path, "--out", tmp_path / "v", "--set", "steps=1"]
    ends(train_vqvae_hires.main, flags, 2, shards[1].name, "make the file again")
    run = train_vqvae(tmp_path / "v", path, "--set", "steps=1", "--skip-bad")
    out = capsys.readouterr().out
    assert "1 of 3 shards are damaged and left out" in out and f"{shards[1].name}.bad: " in out
    train_world_model(tmp_path / "w", path, run, "--set", "steps=1")
    assert len(load_game_data(path)) == 360
    np.savez(tmp_path / "own.npz", frames=np.zeros(3))  # of another program: whole, and no shard
    before = content_of(tmp_path)
    flags = ["--data", tmp_path, "--skip-bad", "--out", tmp_path / "new.npz"]
    ends(tokenize_atari.main, flags, 2, "own.npz has no array 'meta'", "take it out of the folder")
    assert content_of(tmp_path) == before
    (tmp_path / "own.npz").unlink()
    shards[0].write_bytes(b"")
    shards[2].write_bytes(b"")
    tokens = ["--data", path, "--skip-bad", "--out", tmp_path / "new.npz"]
    ends(tokenize_atari.main, tokens, 2, "nothing of", "is whole", shards[0].name)
    assert shards[0].exists()
    whole = tmp_path / "whole.npz"
    save_game_data(whole, game_data)
    tokens = ["--data", whole, path, "--skip-bad", "--out", tmp_path / "new.npz"]
    ends(tokenize_atari.main, tokens, 2, f"nothing of {path} is whole: leave it out")
    assert shards[0].exists()


def test_games_too_short_for_a_rollout_are_refused_before_any_training(ends, game_data, tmp_path):
    rows = np.concatenate([np.arange(30), np.arange(60, 65)])
    arrays = {name: array[rows] for name, array in game_data.arrays().items()}
    arrays["episode_ids"][30:] = 1
    arrays["terminated"][[28, 33]] = True
    episodes = [game_data.meta["episodes"][0] | {"id": 0, "seed": 2, "frames": 30},
                game_data.meta["episodes"][0] | {"id": 1, "seed": 11, "frames": 5}]  # fmt: skip
    path = tmp_path / "short.npz"
    save_game_data(path, GameData(**arrays, meta=game_data.meta | {"episodes": episodes}))
    ends(train_vqvae_hires.main, ["--data", path], 2, "the longest val episode of", "has 5 frames")


def test_episodes_shorter_than_a_window_are_refused(
    ends, vqvae_run, tokens_path, data_path, tmp_path
):
    flags = wm_flags(tmp_path / "w", data_path, vqvae_run, "--rollout-steps", "27")
    ends(train_wm_hires.main, flags, 2, "shorter than the 31 frames")


def test_short_episodes_are_left_out_with_their_number(
    small_models, game_data, vqvae, tmp_path, capsys
):  # fmt: skip
    kept = np.delete(np.arange(len(game_data)), slice(110, 120))  # of episode 3, to train on
    short = GameData(**{n: a[kept] for n, a in game_data.arrays().items()}, meta=game_data.meta)
    save_game_data(tmp_path / "data.npz", short)
    checkpoint.save_checkpoint(tmp_path / "v.pt", "vqvae", vqvae)
    flags = wm_flags(tmp_path / "w", tmp_path / "data.npz", tmp_path / "v.pt", "--set", "steps=1")
    assert train_wm_hires.main([*flags, "--rollout-steps", "20"]) == 0
    text = "1 of 18 episodes are shorter than a window of 24 frames: left out of the longest"
    assert text in capsys.readouterr().out


def test_tokens_out_of_range_are_refused(vqvae_run, tokens_path, data_path, tmp_path):
    vqvae, _ = load_vqvae(vqvae_run / "last.pt")
    for field, text in (("tokens", "token 40 of a codebook of 32"), ("actions", "action 40 of")):
        tokens = load_tokens(tokens_path, vqvae, data_path)
        getattr(tokens, field)[7] = 40
        tokens.save(tmp_path / "bad.npz")
        with pytest.raises(ValueError, match=text):
            load_tokens(tmp_path / "bad.npz", vqvae, data_path)


def test_resume_refuses_other_data_tokenizer_and_architecture(
    world_run, tokens_path, vqvae, game_data, data_path, ends, tmp_path, monkeypatch
):  # fmt: skip
    before = tokens_path.read_bytes(), content_of(world_run)
    resume = ["--resume", world_run]
    own = (world_run / "vqvae.pt").read_bytes(), (world_run / "vqvae.pt.sha256").read_bytes()
    checkpoint.save_checkpoint(world_run / "vqvae.pt", "vqvae", vqvae)
    ends(train_wm_hires.main, resume, 2, "needs other tokens", "it is of VQ-VAE")
    ends(train_wm_hires.main, [*resume, "--tokens", tmp_path / "new.npz"], 2, "another VQ-VAE")
    for name, content in zip(("vqvae.pt", "vqvae.pt.sha256"), own, strict=True):
        (world_run / name).write_bytes(content)

    with monkeypatch.context() as patch:
        small = train_wm_hires.WorldModelConfig
        patch.setattr(train_wm_hires, "WorldModelConfig", functools.partial(small, layers=3))
        ends(train_wm_hires.main, resume, 2, "another architecture: layers 2, now 3")

    game_data.frames[0, 0, 0, 0] += 1
    save_game_data(data_path, game_data)
    ends(train_wm_hires.main, resume, 2, "needs other tokens", "it is of data")
    assert (tokens_path.read_bytes(), content_of(world_run)) == before


def test_resume_refuses_weights_that_no_run_saved(world_run, vqvae_run, ends):
    """As those that are shipped, copied into a run's folder."""
    for script, run, kind in (
        (train_wm_hires, world_run, "world_model"), (train_vqvae_hires, vqvae_run, "vqvae"),
    ):  # fmt: skip
        state = checkpoint.load_last(run, kind)
        model = build_model(state, run)
        kept = {key: state[key] for key in ("step", "recipe", "emulator")}
        checkpoint.save_checkpoint(run / "last.pt", kind, model, **kept)
        text = f"{run / 'last.pt'} holds weights without optimizer, ema, best, rng, "
        ends(script.main, ["--resume", run], 2, text, "init_from=")


def test_resume_refuses_other_rewards_under_the_same_tokens(
    world_run, game_data, data_path, ends, tmp_path
):  # fmt: skip
    game_data.rewards[:] = 0
    save_game_data(data_path, game_data)
    flags = ["--resume", world_run, "--tokens", tmp_path / "new.npz"]
    ends(train_wm_hires.main, flags, 2, "was trained on other data")
    path = world_run / "last.pt"
    state = checkpoint.load_checkpoint(path, "world_model")
    model = build_model(state, path)
    of_a_file = ("format", "kind", "config", "model", "data_sha256")  # the last not in older ones
    kept = {key: value for key, value in state.items() if key not in of_a_file}
    checkpoint.save_checkpoint(path, "world_model", model, **kept)
    assert train_wm_hires.main([*map(str, flags), "--set", "steps=3"]) == 0


def test_resume_logs_changed_flags_and_keeps_them(world_run, capsys):
    flags = ["--set", "steps=4", "--lr", "1e-4", "--batch-size", "2"]
    assert train_wm_hires.main(["--resume", str(world_run), *flags]) == 0
    lines = [json.loads(line) for line in (world_run / "metrics.jsonl").read_text().splitlines()]
    changed = [line["changed"] for line in lines if "changed" in line]
    assert changed == [{"steps": 4, "lr": 1e-4, "batch_size": 2}]
    assert "changed since the run began" in capsys.readouterr().out
    assert read_config(world_run)["recipe"]["lr"] == 1e-4


def test_resume_goes_by_the_epochs_that_are_given_instead_of_steps(world_run):
    stored = read_config(world_run)["recipe"]
    flags = ["--epochs", str(stored["epochs"]), "--batch-size", "50"]
    flags += ["--set", "samples_per_epoch=2"]
    assert train_wm_hires.main(["--resume", str(world_run), *flags]) == 0
    assert checkpoint.load_last(world_run, "world_model")["num_steps"] == 4
    assert read_config(world_run)["recipe"]["steps"] == 0


def test_resume_to_fewer_steps_than_were_done_is_refused(world_run, ends):
    step = checkpoint.load_last(world_run, "world_model")["step"]
    before = content_of(world_run)
    text = f"is at step {step} and would end at {step - 1}: ask for more steps"
    ends(train_wm_hires.main, ["--resume", world_run, "--set", f"steps={step - 1}"], 2, text)
    assert content_of(world_run) == before


def test_resume_undoes_compile_and_refuses_what_is_decided_at_the_start(
    world_run, vqvae_run, ends
):
    before = content_of(world_run), content_of(vqvae_run)
    for script, run, other in (
        (train_wm_hires, world_run, vqvae_run), (train_vqvae_hires, vqvae_run, world_run)
    ):  # fmt: skip
        for setting in ("is_smoke=true", "init_from=a.pt"):
            ends(script.main, ["--resume", run, "--set", setting], 2, setting[:8], "leave it")
        ends(script.main, ["--resume", run, "--preset", "smoke"], 2, "leave it out")
        ends(script.main, ["--resume", other], 2, "run: resume it with the script that began it")
    assert (content_of(world_run), content_of(vqvae_run)) == before
    config = read_config(world_run)
    config["recipe"]["compile"] = True
    files.write_text(world_run / "config.json", json.dumps(config))
    asked = ["--resume", str(world_run), "--set", "compile=false"]
    parsed = flags_of.parse(train_wm_hires.build_parser(), WORLD_MODEL_PRESETS, asked)
    assert parsed.changed == {"compile": False} and not parsed.recipe.compile


def test_a_run_without_a_recipe_is_not_resumed(world_run, ends):
    config = {k: v for k, v in read_config(world_run).items() if k != "recipe"}
    files.write_text(world_run / "config.json", json.dumps(config))
    ends(train_wm_hires.main, ["--resume", world_run], 2, "older version", "init_from=")


def test_the_tokenizer_does_not_move_while_the_world_model_trains(
    vqvae_run, tokens_path, data_path, tmp_path, monkeypatch
):  # fmt: skip
    loaded = []
    keep = lambda path: loaded.append(load_vqvae(path)) or loaded[-1]  # noqa: E731
    monkeypatch.setattr(train_wm_hires, "load_vqvae", keep)
    train_world_model(tmp_path / "w", data_path, vqvae_run, "--set", "steps=3")
    ((used, _),) = loaded
    kept, _ = load_vqvae(vqvae_run / "last.pt")
    assert not used.training and checkpoint.model_sha256(used) == checkpoint.model_sha256(kept)


def test_divergence_dumps_the_batch_and_keeps_the_last_good_state(
    ends, small_models, data_path, tmp_path, monkeypatch
):  # fmt: skip
    original = train_vqvae_hires.Trainer.train_step

    def broken(trainer):
        if trainer.step == 4:  # frames are checked, so it is the weights that break
            trainer.model.encoder.register_forward_hook(lambda module, seen, made: made * torch.nan)
        return original(trainer)

    monkeypatch.setattr(train_vqvae_hires.Trainer, "train_step", broken)
    flags = ["--data", data_path, "--out", tmp_path / "v", "--set", "steps=20"]
    flags += ["--set", "save_minutes=1e-9"]
    ends(train_vqvae_hires.main, flags, 3, "nan_batch.npz", "--resume", "--set lr=0.001")
    run = next((tmp_path / "v" / "runs").iterdir())
    arrays, meta = npz.read_npz(run / "nan_batch.npz", {"frames": (np.uint8, (84, 64, 3))})
    assert len(arrays["frames"]) == 16 and meta["step"] == 8
    model, _ = load_vqvae(run / "last.pt")  # refuses weights that are not finite
    assert torch.isfinite(model.quantizer.codebook).all()


def test_weights_that_are_not_finite_never_replace_a_good_save(world_run, monkeypatch):
    run = world_run
    before = (run / "last.pt").read_bytes()
    original = train_wm_hires.Trainer.train_step

    def spoiled(trainer):
        result = original(trainer)
        trainer.model.position.data[0, 0] = float("inf")
        return result

    monkeypatch.setattr(train_wm_hires.Trainer, "train_step", spoiled)
    with pytest.raises(errors.DivergedError, match="weight position is not finite"):
        train_wm_hires.main(["--resume", str(run), "--set", "steps=3"])
    assert (run / "last.pt").read_bytes() == before


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
], ids=["python", "cuda", "cpu", "device", "cublas"])  # fmt: skip
def test_out_of_memory_advises_half_the_batch(error, ends, world_run, monkeypatch):
    before = (world_run / "last.pt").read_bytes()

    def exhausted(trainer):
        raise error

    monkeypatch.setattr(train_wm_hires.Trainer, "train_step", exhausted)
    flags = ["--resume", world_run, "--set", "steps=9", "--batch-size", "6"]
    flags += ["--set", "rollout_batch_size=4"]
    ends(train_wm_hires.main, flags, 1, "out of memory", "batch_size=3 rollout_batch_size=2")
    assert (world_run / "last.pt").read_bytes() == before


def test_paths_with_spaces_and_unicode_and_home_and_links(
    small_models, data_path, tmp_path, monkeypatch
):  # fmt: skip
    home = tmp_path / "a b ü 游戏"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "link.npz").symlink_to(os.path.relpath(data_path, home))
    assert train_vqvae_hires.main(["--data", "~/link.npz", "--out", "~/o", "--set", "steps=1"]) == 0
    run = next((home / "o" / "runs").iterdir())
    monkeypatch.chdir(home)
    flags = ["--data", "link.npz", "--vqvae", str(run), "--out", "o", "--tokens", "t [1].npz"]
    assert train_wm_hires.main([*flags, "--set", "steps=1", "--rollout-steps", "2"]) == 0
    world = sorted((home / "o" / "runs").iterdir())[-1]
    monkeypatch.chdir("/")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # the clock jumps
    assert train_wm_hires.main(["--resume", str(world), "--set", "steps=2"]) == 0
    assert checkpoint.load_last(world, "world_model")["step"] == 2
    assert not [p for p in home.rglob("*.tmp")]


PRINTING = """
import sys, time
from v2.runtime import cli
def main():
    for line in range(3000):
        print("ü" * 30, line)
    print("\\nstill here", file=sys.stderr)
    return 5
cli.run(main)
"""


def test_a_closed_pipe_ends_in_no_traceback_and_stops_no_work():
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    process = subprocess.Popen([sys.executable, "-c", PRINTING], cwd=ROOT, env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline().startswith(b"\\xfc")
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait() == 5 and error.split() == ["still", "here"]


@pytest.mark.parametrize("script", [play_atari_hires, collect_atari, train_wm_hires, gold_eval])
def test_help_says_each_default_once_and_none_where_there_is_none(script):
    lines = " ".join(script.build_parser().format_help().split())
    assert "(default: " in lines
    assert not re.search(r"\(default: [^)]*\) \(default: ", lines)
    assert lines.count("(default: None)") <= lines.count("None: ")
    assert "(default: False)" not in lines and "(default: [])" not in lines


@pytest.mark.parametrize("script, flag", [
    (play_atari_hires, "--run"), (play_atari_hires, "--policy"), (gold_eval, "--checkpoint"),
    (ship, "--run"), (tokenize_atari, "--vqvae"),
])  # fmt: skip
def test_a_name_that_is_empty_is_no_latest(script, flag, ends):
    """As of a variable of the shell that is not set."""
    ends(script.main, [flag, ""], 2, f"{flag}", "must be a name, got an empty text")


def test_a_list_that_is_given_at_two_places_is_whole(ends, data_path, tmp_path):
    flags = ["--data", data_path, "--data", tmp_path / "none.npz"]
    ends(tokenize_atari.main, flags, 2, "no game data at", "none.npz")


CLOSED = """
import os, sys
from v2.runtime import cli
cli.explain_errors()
def main():
    cli.parser(cli.__file__).parse_args()
    print("out")
    print("error", file=sys.stderr)
    with open(os.devnull) as file:
        assert file.fileno() > 2
    return 5
cli.run(main)
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("flags, code", [("", 5), ("--help", 0), ("--nonsense", 2)])
def test_closed_streams_change_no_exit_code(closed, flags, code):
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(CLOSED)} {flags} {closed}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr
    expected = {"": "error\n", "--help": ""}.get(flags, "error: unrecognized arguments: --nonsense")
    assert not done.stderr if "2>" in closed else done.stderr.startswith(expected)
    assert len(done.stderr.splitlines()) <= 1


def test_the_locale_c_and_a_reader_that_leaves_lose_nothing(tmp_path):
    out = tmp_path / "a b ü 游戏"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"}
    command = [sys.executable, ROOT / "v2/data/collect_atari.py", "--frames", "300", "--policy",
               "sticky", "--workers", "1", "--out", out]  # fmt: skip
    line = f"set -o pipefail; {shlex.join(map(str, command))} | head -c 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=os.environ | plain)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, b"", 1)
    assert len(load_game_data(out / "atari_game_data.npz")) >= 298


def test_without_a_terminal_no_control_codes_are_written(data_path, capfd, small_models, tmp_path):
    train_vqvae(tmp_path / "v", data_path, "--set", "steps=2")
    out, err = capfd.readouterr()
    assert "\r" not in out + err and "\x1b" not in out + err


def test_debug_shows_the_traceback(monkeypatch, capsys):
    for debug in (False, True):
        monkeypatch.setattr(sys, "argv", ["script", *(["--debug"] if debug else [])])
        with pytest.raises(SystemExit):
            cli.run(lambda: collect_atari.main(["--game", "Breakot"]))
        error = capsys.readouterr().err
        assert ("Traceback" in error) == debug and (len(error.splitlines()) == 1) != debug


FULL_OUTPUT = """
import sys
from v2.runtime import cli
from pathlib import Path
def main():
    for k in range(3000):
        print("a line of a log", k)
    Path(sys.argv[1]).write_text("done")
cli.run(main)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_the_output_costs_no_work_and_is_told_by_the_exit_code(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", FULL_OUTPUT, str(tmp_path / "result")]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (tmp_path / "result").read_text() == "done"
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip() == "error: all is done, but what was said is lost: its disk is full"


STAGES = """
import resource, sys
from pathlib import Path
from v2.runtime import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
def main():
    cli.run_script("data/collect_atari.py", *sys.argv[1:])
    Path(sys.argv[-1], "the next stage").touch()
cli.run(main)
"""


def test_a_disk_that_fills_under_the_output_of_a_stage_stops_no_other(tmp_path):
    flags = ["--frames", "20", "--policy", "random", "--workers", "1", "--out", str(tmp_path)]
    first = f"\n$ python v2/data/collect_atari.py {shlex.join(flags)}\n"
    log = tmp_path / "log"
    log.write_bytes(bytes(200_000 - len(first) - 10))  # there is no room for what the stage says
    with open(log, "ab") as file:
        command = [sys.executable, "-c", STAGES, *flags]
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.PIPE, text=True)
    assert (tmp_path / "atari_game_data.npz").exists() and (tmp_path / "the next stage").exists()
    assert "Traceback" not in done.stderr and log.stat().st_size == 200_000


@pytest.mark.parametrize("number, fix", [
    (errno.EROFS, "make its folder writable"), (errno.ENOSPC, "free some space"),
])  # fmt: skip
def test_cleaning_up_hides_no_error(number, fix, tmp_path, monkeypatch):
    """A disk that takes nothing lets nothing be removed either."""

    def refuse(*args, **flags):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match=f"cannot write {tmp_path / 'a'}: .*{fix}"):
        with files.atomic_path(tmp_path / "a"):
            raise OSError(number, os.strerror(number))
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=f"cannot write {tmp_path / 'b' / 'a'}: .*writable"):
        files.write_text(tmp_path / "b" / "a", "")


def test_where_processes_share_no_memory_one_records(tmp_path, monkeypatch, capsys):
    def refuse(*args, **flags):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(collector, "ProcessPoolExecutor", refuse)
    flags = ["--frames", "200", "--policy", "sticky", "--out", str(tmp_path)]
    assert collect_atari.main(flags) == 0
    assert "Read-only file system): recording in one" in capsys.readouterr().out
    assert len(load_game_data(tmp_path / "atari_game_data.npz")) == 200


def test_a_full_disk_under_a_run_names_the_file_and_how_to_go_on(world_run, ends, monkeypatch):
    before, real, logged = (world_run / "last.pt").read_bytes(), os.fsync, []

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("metrics.jsonl"):
            logged.append(descriptor)
        if len(logged) == 2:  # the first says what was changed
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    flags = ["--resume", world_run, "--max-minutes", "9", "--set", "steps=4"]
    ends(train_wm_hires.main, flags, 1, "metrics.jsonl: No space left", f"--resume {world_run}")
    assert (world_run / "last.pt").read_bytes() == before
