"""One folder, named once, is home to all stages and to play; a run goes by its name or its path."""

import shutil

import pytest

from v2.data import tokenize_atari
from v2.data.tokens import TOKENS_NAME
from v2.dream import DreamEngine
from v2.runtime.run_dir import RunDir, find_checkpoint, find_run, read_config, read_status
from v2.train import train_vqvae_hires, train_wm_hires


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The checkout's folders, with nothing in them; nothing may come there."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", folder)
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def home(data_path, tmp_path):
    """A folder with a recording."""
    folder = tmp_path / "home"
    folder.mkdir()
    return data_path.rename(folder / data_path.name).parent


def test_a_home_that_is_named_once_is_enough_for_every_stage_and_for_play(
    home, checkout, small_models, capsys
):
    flags = ["--out", str(home), "--set", "steps=2", "is_smoke=true"]
    assert train_vqvae_hires.main(flags) == 0
    (vqvae,) = (home / "runs").iterdir()
    assert train_wm_hires.main(["--out", str(home), "--set", "steps=1"]) == 0
    assert f"VQ-VAE: {vqvae / 'best.pt'}" in capsys.readouterr().out
    tokens = home / f"{TOKENS_NAME}.npz"
    before = tokens.read_bytes()
    assert tokenize_atari.main(["--out", str(home)]) == 0
    assert tokens.read_bytes() == before
    (world,) = set((home / "runs").iterdir()) - {vqvae}
    for name in (home, world, world / "best.pt"):
        assert DreamEngine.load(str(name), device="cpu").source == str(world / "best.pt")
    more = ["--resume", world.name, "--out", str(home), "--set", "steps=2"]
    assert train_wm_hires.main(more) == 0 and read_status(world)["step"] == 2


def test_without_a_home_tokens_lie_beside_the_recording(
    vqvae_run, data_path, tmp_path, monkeypatch
):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path / "checkout")
    mine = shutil.copy(data_path, tmp_path / "mine.npz")
    flags = ["--data", mine, "--vqvae", vqvae_run, "--set", "steps=1"]
    assert train_wm_hires.main(list(map(str, flags))) == 0
    assert (tmp_path / "mine_tokens.npz").exists()
    assert [path.name for path in (tmp_path / "checkout" / "atari").iterdir()] == ["runs"]


def test_tokens_that_cannot_be_written_are_refused_before_they_are_made(
    vqvae_run, data_path, tmp_path, ends, monkeypatch
):
    def check(path):
        raise PermissionError(f"cannot write to {path.parent}")

    monkeypatch.setattr(train_wm_hires, "check_output", check)
    monkeypatch.setattr(train_wm_hires, "tokenize", None)
    flags = ["--data", data_path, "--vqvae", vqvae_run, "--out", tmp_path / "home"]
    ends(train_wm_hires.main, flags, 2, f"cannot write to {tmp_path / 'home'}")


def _run(home, kind: str, is_finished=True):
    run = RunDir.create(home, kind, {"args": {}})
    (run.path / "best.pt").write_bytes(b"x")
    run.set_status(is_finished=is_finished, step=1)
    run.release()
    return run.path


def test_the_latest_of_a_home_comes_first_and_an_unfinished_one_is_not_passed_over(tmp_path):
    game, home = tmp_path / "game", tmp_path / "home"
    of_game = _run(game, "vqvae")
    latest = lambda: find_checkpoint("latest", "vqvae", game, "", home).parent  # noqa: E731
    assert latest() == of_game
    of_home = _run(home, "vqvae", is_finished=False)
    with pytest.raises(FileNotFoundError, match=f"run {of_home} is unfinished: --resume it"):
        latest()
    assert find_checkpoint(of_home.name, "vqvae", game, "", home).parent == of_home
    of_home = _run(home, "vqvae")
    assert latest() == of_home
    with pytest.raises(FileNotFoundError, match=f"no world_model run in {home}; runs in {home}: 2"):
        find_checkpoint(str(home), "world_model", game, "")


def test_a_run_is_found_by_its_name_and_by_its_path(tmp_path, monkeypatch):
    run = _run(tmp_path / "home", "world_model").rename(tmp_path / "home" / "runs" / "7 of mine")
    for name in ("7 of mine", str(run), str(run / "best.pt")):
        assert find_run(name, tmp_path / "home") == run
    monkeypatch.chdir(tmp_path)
    assert find_run("home/runs/7 of mine", tmp_path).resolve() == run
    with pytest.raises(FileNotFoundError, match="no run '8'; runs in .*: 7 of mine"):
        find_run("8", tmp_path / "home")


def test_a_run_keeps_its_one_recording_as_a_text_as_older_ones_did(world_run, capsys):
    assert isinstance(read_config(world_run)["args"]["data"], str)
    assert train_wm_hires.main(["--resume", str(world_run), "--set", "steps=3"]) == 0
    assert "'data'" not in capsys.readouterr().out  # has not changed
