"""Long runs with flat memory and no slowdown; slow, `make test-slow`.

Models are small ones: a leak is a matter of objects and not of their size, and a soak of minutes
is run more often. SOAK_SIZE=full takes models of the real size (about 40 minutes on 2 cores),
SOAK_SHARE=0.01 a hundredth of the steps. `-s` shows the figures.
"""

import functools
import os
import time

import numpy as np
import pytest
import torch

from tests.conftest import SMALL_VQVAE, SMALL_WORLD_MODEL, train_vqvae, wm_flags
from v2.data.emulator import make_atari_env
from v2.dream import DreamEngine
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.play.controllers import Controllers
from v2.play.game import PlayGame, PlaySettings
from v2.play.keys import ActionMap
from v2.play.loop import ModelThread, run_headless
from v2.play.session import PlaySession
from v2.train import train_vqvae_hires, train_wm_hires

pytestmark = pytest.mark.slow

SHARE = float(os.environ.get("SOAK_SHARE", "1"))
IS_FULL = os.environ.get("SOAK_SIZE") == "full"
SIZES = ({}, {}) if IS_FULL else (SMALL_VQVAE, SMALL_WORLD_MODEL)
BLOCKS = 10  # the first three warm up: caches, snapshots and pools fill
WARM_BLOCKS = 3
MAX_GROWTH_MB, MAX_SLOWDOWN = 24.0, 1.3
BATCH = 16


class Soak:
    """Memory and processor time of each tenth of a long run."""

    def __init__(self, name: str, num_steps: int):
        self.name = name
        self.per_block = max(1, round(num_steps * SHARE / BLOCKS))
        self.memory_mb: list[float] = []
        self.step_ms: list[float] = []
        self._began = time.process_time()

    @property
    def num_steps(self) -> int:
        return BLOCKS * self.per_block

    def block_done(self) -> None:
        now, page = time.process_time(), os.sysconf("SC_PAGE_SIZE")
        with open("/proc/self/statm") as file:
            self.memory_mb.append(int(file.read().split()[1]) * page / 1e6)
        self.step_ms.append((now - self._began) / self.per_block * 1000)
        self._began = time.process_time()

    def check(self) -> None:
        memory, speed = self.memory_mb[WARM_BLOCKS:], self.step_ms[WARM_BLOCKS:]
        growth, slowdown = memory[-1] - memory[0], np.median(speed[-3:]) / np.median(speed[:3])
        print(
            f"\n{self.name}: {self.num_steps} steps of {np.median(speed):.2f} ms processor time, "
            f"{slowdown:.2f} times that at the end; {memory[-1]:.0f} MB, {growth:+.1f} MB"
        )
        assert len(self.memory_mb) == BLOCKS
        assert growth < MAX_GROWTH_MB, self.memory_mb
        assert slowdown < MAX_SLOWDOWN or SHARE < 1, self.step_ms  # too few steps to time


@pytest.fixture
def engine():
    torch.manual_seed(0)
    vqvae = VQVAE(VQVAEConfig(**SIZES[0]))
    return DreamEngine(vqvae, TemporalWorldModel(WorldModelConfig(4, **SIZES[1])))


def test_dreaming(engine):
    """20,000 dreamed frames, sixteen dreams at once, decoded."""
    soak, rng = Soak("dream", 20_000 // BATCH), np.random.default_rng(0)
    engine.reset(rng.integers(0, 255, (BATCH, 4, 84, 64, 3), dtype=np.uint8))
    for _ in range(BLOCKS):
        for _ in range(soak.per_block):
            engine.step(rng.integers(0, 4, BATCH))
        soak.block_done()
    soak.check()


def test_playing(engine, tmp_path):
    """5,000 headless steps of the real game beside the dream."""
    soak, env = Soak("play", 5000), make_atari_env("breakout")
    controllers = Controllers("breakout", ActionMap(env.action_meanings), "scripted", 0)
    game = PlayGame(PlaySession(env, engine, 0, None), controllers, PlaySettings(15, tmp_path, 2))
    with ModelThread() as thread:
        for block in range(BLOCKS):
            run_headless(game, thread, False, (block + 1) * soak.per_block)
            soak.block_done()
    game.close()
    assert game.num_steps == soak.num_steps
    soak.check()


def test_training(data_path, tmp_path, monkeypatch):
    """1,000 steps of the world model with rollouts, evaluations and checkpoints."""
    vqvae_config, config = VQVAEConfig, WorldModelConfig
    monkeypatch.setattr(
        train_vqvae_hires, "VQVAEConfig", functools.partial(vqvae_config, **SIZES[0])
    )
    monkeypatch.setattr(
        train_wm_hires, "WorldModelConfig", functools.partial(config, **SIZES[1])
    )
    run = train_vqvae(tmp_path / "v", data_path, "--set", "steps=1")
    soak, real = Soak("train", 1000), train_wm_hires.Trainer.train_step

    def counted(trainer):
        done = real(trainer)
        if (trainer.step + 1) % soak.per_block == 0:
            soak.block_done()
        return done

    monkeypatch.setattr(train_wm_hires.Trainer, "train_step", counted)
    flags = ["--set", f"steps={soak.num_steps}", "--rollout-steps", "3", "--set", "rollout_start=0",
             "--set", "save_minutes=0.1", f"eval_steps={soak.per_block}"]  # fmt: skip
    assert train_wm_hires.main(wm_flags(tmp_path / "w", data_path, run, *flags)) == 0
    soak.check()
