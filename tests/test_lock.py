"""Two processes at once where they would spoil each other's work: the second is refused."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import content_of
from v2 import play_atari_hires
from v2.data import collect_atari, import_recordings
from v2.data.recordings import COLLECTING
from v2.runtime import files
from v2.runtime.lock import Lock
from v2.runtime.run_dir import RunDir
from v2.train import pipeline, ship, train_vqvae_hires, train_wm_hires


def _locked(script: str, tmp_path: Path) -> tuple:
    """Return a script's main, its flags, and the lock that it takes."""
    if script == "collect":
        return collect_atari.main, ["--out", tmp_path], tmp_path / "collecting.lock"
    if script == "pipeline":
        return pipeline.main, ["--out", tmp_path], tmp_path / "pipeline.lock"
    flags = ["--headless", "--save-data", tmp_path / "a.npz"]
    return play_atari_hires.main, flags, tmp_path / ".a.npz.lock"


@pytest.mark.parametrize("script", ["collect", "pipeline", "play"])
def test_whoever_comes_second_is_refused_with_the_name_of_the_first(script, ends, tmp_path):
    main, flags, path = _locked(script, tmp_path)
    with Lock(path, "busy"):
        before = content_of(tmp_path)
        ends(main, flags, 2, f"process {os.getpid()} is busy since 2", "wait for it or stop it")
        assert content_of(tmp_path) == before
    assert not list(tmp_path.iterdir())


def test_a_second_training_in_a_run_is_refused_before_any_work(
    vqvae_run, world_run, ends, monkeypatch
):
    for script in (train_vqvae_hires, train_wm_hires):
        for name in ("load_game_data", "load_vqvae"):
            monkeypatch.setattr(script, name, None, raising=False)
    for script, run in ((train_vqvae_hires, vqvae_run), (train_wm_hires, world_run)):
        first = RunDir(run)
        first.acquire()
        ends(script.main, ["--resume", run], 2, f"process {os.getpid()} is training in {run} since")
        first.release()


def test_weights_are_shipped_by_one_process_at_a_time(world_run, ends, tmp_path, monkeypatch):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path)
    folder = tmp_path / "atari"
    folder.mkdir()
    with Lock(folder / "ship.lock", "busy"):
        ends(ship.main, ["--run", world_run], 2, f"process {os.getpid()} is busy")
    assert not list(folder.iterdir())
    assert ship.main(["--run", str(world_run)]) == 0


def test_two_imports_into_a_folder_do_not_replace_each_other(ends, tmp_path, monkeypatch):
    source, out = tmp_path / "source.npz", tmp_path / "home" / "data.npz"
    frames = np.random.default_rng(0).integers(0, 255, (400, 84, 64, 3), np.uint8)
    np.savez(source, frames=frames, actions=np.arange(400) % 3)
    flags = [source, "--name", "ball", "--out", out, "--fps", 15]
    out.parent.mkdir()
    with Lock(out.parent / COLLECTING, "busy"):
        ends(import_recordings.main, flags, 2, f"process {os.getpid()} is busy")
    imported = import_recordings.import_source

    def slow(*args):
        out.write_bytes(b"came meanwhile")
        return imported(*args)

    monkeypatch.setattr(import_recordings, "import_source", slow)
    ends(import_recordings.main, flags, 2, "is there already: --overwrite replaces it")
    assert out.read_bytes() == b"came meanwhile"


def test_what_came_meanwhile_is_not_replaced_by_what_was_played(tmp_path):
    path = tmp_path / "mine.npz"
    assert files.free_path(path) == path
    path.touch()
    (tmp_path / "mine_2.npz").touch()
    assert files.free_path(path) == tmp_path / "mine_3.npz"
