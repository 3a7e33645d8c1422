"""Shared fixtures: small models, a synthetic game whose truth is known, and what learnt from it.

The game's file and the trained runs are made once a session; a test gets copies in its own folder.
"""

import copy
import functools
import os
import shutil
import signal
import sys
from pathlib import Path

for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    # What a background shell or nohup ignores, child processes would ignore as well.
    _usual = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
    signal.signal(_number, _usual)

if not any("test_cuda" in word for word in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is exact, and killed workers: on the CPU
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")

import numpy as np
import pytest
import torch

from v2.data.atari_dataset import GameData, save_game_data
from v2.data.games import EmulatorConfig, emulator_dict
from v2.data.policies import SCRIPTED, UNIFORM, PolicyConfig
from v2.eval import build_gold, validate
from v2.eval.gold_replay import write_games
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.runtime import cli
from v2.runtime.files import file_sha256
from v2.runtime.run_dir import all_runs
from v2.train import train_vqvae_hires, train_wm_hires

SMALL_VQVAE = dict(latent_dim=16, stem_dim=8, decoder_dim=8, cell_dim=8, pixel_dim=8,
                   cell_blocks=1, decoder_blocks=1)  # fmt: skip
ON_BROWN = dict(usual_red=0.56, usual_green=0.28, usual_blue=0.07)
TINY_GOLD = (
    (SCRIPTED, 1, 320), (UNIFORM, 2, 120),
    (PolicyConfig("rewind", 1.0, "sticky", rewind=True), 1, 150),
)  # fmt: skip
TINY_SIZE = build_gold.Size(per_stratum=2, long_per_stratum=1, branched=6, steps=20, long_steps=30)
SMALL_WORLD_MODEL = dict(dim=32, heads=2, layers=2, ffn_dim=64, local_layers=1)


@pytest.fixture(autouse=True)
def denormal_numbers():
    """Give back the processor as it was: `tune_cpu` flushes them, hypothesis needs them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def vqvae():
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(**SMALL_VQVAE, **ON_BROWN)).eval()


@pytest.fixture
def world_model():
    """A small world model whose every table and matrix matters."""
    torch.manual_seed(1)
    model = TemporalWorldModel(WorldModelConfig(num_actions=4, **SMALL_WORLD_MODEL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def synthetic_frame(position: int, last_action: int) -> np.ndarray:
    """Draw a bright block in the column `position` and a stripe whose grey is the last action."""
    frame = np.zeros((84, 64, 3), np.uint8)
    frame[40:48, 8 * position : 8 * position + 8] = (200, 72, 72)
    frame[0:4] = 50 * last_action
    return frame


def synthetic_step(position: int, action: int) -> int:
    """Action 2 moves right, 3 left, others stay; the eight columns are a ring."""
    return (int(position) + (action == 2) - (action == 3)) % 8


@pytest.fixture
def game_data() -> GameData:
    """Twenty episodes of 30 frames of the synthetic game."""
    return copy.deepcopy(_synthetic_game())


@functools.cache
def _synthetic_game() -> GameData:
    rng = np.random.default_rng(0)
    columns = {name: [] for name in ("frames", "actions", "rewards", "episode_ids", "ram")}
    has_action, terminated, episodes = [], [], []
    for episode in range(20):
        position, last = int(rng.integers(8)), 0
        for t in range(30):
            is_last = t == 29
            action = 0 if is_last else int(rng.integers(4))
            columns["frames"].append(synthetic_frame(position, last))
            columns["actions"].append(action)
            columns["episode_ids"].append(episode)
            ram = np.zeros(128, np.uint8)
            ram[:2] = position, t
            columns["ram"].append(ram)
            following = position if is_last else synthetic_step(position, action)
            columns["rewards"].append(float(following < position and action == 2))
            has_action.append(not is_last)
            terminated.append(t == 28)
            position, last = following, action
        facts = {"id": episode, "seed": episode, "policy": "random", "frames": 30, "score": 0.0}
        episodes.append(facts)
    meta = {
        "format": 1, "game": "breakout", "emulator": emulator_dict(EmulatorConfig()),
        "action_meanings": ["NOOP", "FIRE", "RIGHT", "LEFT"], "policy": "random", "seed": 0,
        "episodes": episodes, "ale_py": "0", "mix": {"random": 1.0},
    }  # fmt: skip
    return GameData(
        frames=np.stack(columns["frames"]),
        actions=np.array(columns["actions"], np.uint8),
        rewards=np.array(columns["rewards"], np.float32),
        terminated=np.array(terminated),
        truncated=np.zeros(600, np.bool_),
        episode_ids=np.array(columns["episode_ids"], np.int32),
        has_action=np.array(has_action),
        ram=np.stack(columns["ram"]),
        meta=meta,
    )


def make_models_small(patch) -> None:
    """Let the training scripts build small models and validate them on a few clips."""
    vqvae_config = functools.partial(VQVAEConfig, **SMALL_VQVAE)
    world_model_config = functools.partial(WorldModelConfig, **SMALL_WORLD_MODEL)
    patch.setattr(train_vqvae_hires, "VQVAEConfig", vqvae_config)
    patch.setattr(train_wm_hires, "WorldModelConfig", world_model_config)
    patch.setattr(validate, "NUM_CLIPS", 3)


@pytest.fixture
def small_models(monkeypatch):
    make_models_small(monkeypatch)


def train_vqvae(folder: Path, data: Path, *flags) -> Path:
    assert train_vqvae_hires.main(["--data", str(data), "--out", str(folder), *flags]) == 0
    return all_runs(folder)[-1]


def wm_flags(folder: Path, data: Path, vqvae: Path, *flags) -> list[str]:
    tokens = data.with_name("tokens.npz")
    return ["--data", str(data), "--tokens", str(tokens), "--vqvae", str(vqvae), "--out",
            str(folder), *flags]  # fmt: skip


def train_world_model(folder: Path, data: Path, vqvae: Path, *flags) -> Path:
    assert train_wm_hires.main(wm_flags(folder, data, vqvae, *flags)) == 0
    return all_runs(folder)[-1]


@pytest.fixture(scope="session")
def gold_once(tmp_path_factory) -> Path:
    """A gold set of a few short games."""
    path = tmp_path_factory.mktemp("gold") / "breakout-2.npz"
    write_games(path, build_gold.build(path, EmulatorConfig(), TINY_GOLD, TINY_SIZE)[0])
    return path


@pytest.fixture
def tiny_gold(gold_once, tmp_path, monkeypatch) -> Path:
    """The same as Breakout's gold set, kept in a folder of the test."""
    folder = tmp_path / "gold"
    folder.mkdir()
    shutil.copy(gold_once, folder)
    monkeypatch.setattr("v2.eval.gold.GOLD_DIRECTORY", folder)
    monkeypatch.setattr("v2.eval.gold.GOLD_SHA256", {"breakout-2": file_sha256(gold_once)})
    monkeypatch.setattr("v2.eval.gold.game_directory", lambda game: folder)
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Path:
    """A folder with the game's file; `trained_once` puts more there."""
    folder = tmp_path_factory.mktemp("made_once")
    save_game_data(folder / "atari_game_data.npz", _synthetic_game())
    return folder


@pytest.fixture(scope="session")
def trained_once(made_once) -> Path:
    """The same folder, with a run of each small model, and the tokens between them."""
    data = made_once / "atari_game_data.npz"
    with pytest.MonkeyPatch.context() as patch:
        make_models_small(patch)
        vqvae = train_vqvae(made_once / "v", data, "--set", "steps=4")
        train_world_model(made_once / "w", data, vqvae, "--set", "steps=2")
    return made_once


def _copied_run(made: Path, name: str, folder: Path) -> Path:
    """Copy a trained run; its config names the files beside the copy."""
    (source,) = (made / name / "runs").iterdir()
    run = shutil.copytree(source, folder / name / "runs" / source.name)
    config = run / "config.json"
    config.write_text(config.read_text().replace(str(made), str(folder)))
    return run


@pytest.fixture
def data_path(made_once, tmp_path) -> Path:
    """The game's file."""
    return Path(shutil.copy(made_once / "atari_game_data.npz", tmp_path))


@pytest.fixture
def vqvae_run(trained_once, small_models, data_path, tmp_path) -> Path:
    """A finished VQ-VAE run of four steps."""
    return _copied_run(trained_once, "v", tmp_path)


@pytest.fixture
def tokens_path(trained_once, data_path) -> Path:
    """The tokens of `vqvae_run`, where `wm_flags` looks for them."""
    return Path(shutil.copy(trained_once / "tokens.npz", data_path.parent))


@pytest.fixture
def world_run(trained_once, vqvae_run, tokens_path, tmp_path) -> Path:
    """A finished world-model run of two steps."""
    return _copied_run(trained_once, "w", tmp_path)


@pytest.fixture
def ends(capsys):
    """Run a script's main as the shell does; return its one line of an error on stderr."""

    def run(main, flags, code: int, *texts: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.run(lambda: main([str(flag) for flag in flags]))
        lines = capsys.readouterr().err.strip().splitlines() or [""]
        assert stopped.value.code == code, lines
        assert not any("Traceback" in line or "usage:" in line for line in lines)
        assert [line.startswith("error:") for line in lines].count(True) == 1, lines
        for text in texts:
            assert text in lines[-1]
        return lines[-1]

    return run


def content_of(folder: Path) -> dict:
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
