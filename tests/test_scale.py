"""Training on a generated recording, up to a million frames: memory does not grow with it.

Slow, `make test-slow`; SOAK_SIZE=full takes 1,000,000 frames in four shards: 16 GB of pixels, black
but for one block of 64 frames in twenty, and black takes no disk here. Measured is the private
memory (RssAnon), sampled: pages of mapped files are left out, the system drops them where memory
is short. RLIMIT_DATA lets no process have more than 8 GB of it. `-s` shows the figures.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from v2.data.frames import FRAME_SHAPE
from v2.data.games import EmulatorConfig, emulator_dict
from v2.data.recordings import DATA_NAME
from v2.data.tokens import TOKENS_NAME
from v2.data.validation import array_sha256

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="measured by /proc and O_TMPFILE"),
]

IS_FULL = os.environ.get("SOAK_SIZE") == "full"
SHARD_FRAMES = 250_000 if IS_FULL else 10_000
NUM_SHARDS = 4 if IS_FULL else 2
EPISODE_FRAMES, BLOCK = 1000, 64
PROGRAM_MB = 470  # of a small model, its libraries and a few blocks of frames
BYTES_A_FRAME = 1000  # 336 of tokens, twice while they are joined; a frame has 16,128
MAX_BYTES = 8 << 30

DRIVER = """
import functools, io, os, resource, sys, tempfile
from tests.conftest import SMALL_VQVAE, SMALL_WORLD_MODEL
from tests.test_scale import MAX_BYTES, Holes
from v2.runtime import cli
from v2.train import train_vqvae_hires, train_wm_hires
resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
tempfile.TemporaryFile = lambda dir: Holes(os.open(dir, os.O_TMPFILE | os.O_RDWR), "r+")
train_vqvae_hires.VQVAEConfig = functools.partial(train_vqvae_hires.VQVAEConfig, **SMALL_VQVAE)
train_wm_hires.WorldModelConfig = functools.partial(
    train_wm_hires.WorldModelConfig, **SMALL_WORLD_MODEL
)
script = {"vqvae": train_vqvae_hires, "world_model": train_wm_hires}[sys.argv[1]]
cli.run(lambda: script.main(sys.argv[2:]))
"""


class Holes(io.FileIO):
    """A file in which black blocks take no disk."""

    def write(self, block: np.ndarray) -> int:
        if block.any():
            return super().write(block)
        return self.truncate(self.seek(block.nbytes, os.SEEK_CUR))


def test_a_million_frames_train_within_8_gb(tmp_path):
    num_frames = SHARD_FRAMES * NUM_SHARDS
    for shard in range(NUM_SHARDS):
        _write_shard(tmp_path / f"{DATA_NAME}-{shard:05d}.npz", shard)
    data, tokens = tmp_path / f"{DATA_NAME}.npz", tmp_path / f"{TOKENS_NAME}.npz"
    flags = ["--data", data, "--out", tmp_path, "--set", "steps=3"]
    peaks = {"vqvae": _peak_mb("vqvae", *flags)}
    (vqvae,) = (tmp_path / "runs").iterdir()
    more = ["--tokens", tokens, "--vqvae", vqvae, "--batch-size", "4", "--rollout-ratio", "1",
            "--set", "rollout_batch_size=4", "rollout_start=0.5"]  # fmt: skip
    for name in ("tokens and world model", "world model"):  # the second time the tokens are there
        peaks[name] = _peak_mb("world_model", *flags, *more)
    print(f"\n{num_frames} frames, peak of private memory (with mapped pages), MB: {peaks}")
    limit = PROGRAM_MB + BYTES_A_FRAME * num_frames / 1e6
    assert all(private < limit for private, _ in peaks.values()), (peaks, limit)


def _peak_mb(kind: str, *flags) -> tuple[int, int]:
    """Train in a process of its own; return its peak of private and of all resident memory."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", DRIVER, kind, *map(str, flags)]
    errors = tempfile.TemporaryFile()
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=errors)
    private, total, deadline = 0, 0, time.monotonic() + 3600
    with open(f"/proc/{process.pid}/status") as file:
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
            file.seek(0)
            sizes = dict(line.split(":", 1) for line in file.read().splitlines())
            private = max(private, int(sizes.get("RssAnon", "0").split()[0]))  # kB; none at its end
            total = max(total, int(sizes.get("VmHWM", "0").split()[0]))
            time.sleep(0.01)
    errors.seek(0)
    assert process.returncode == 0, errors.read().decode()
    return private * 1024 // 10**6, total * 1024 // 10**6


def _write_shard(path: Path, shard: int) -> None:
    """Write a shard in the collector's format, block by block."""
    rng, count = np.random.default_rng(shard), SHARD_FRAMES
    num_episodes = count // EPISODE_FRAMES
    first = shard * num_episodes
    is_last = np.arange(count) % EPISODE_FRAMES == EPISODE_FRAMES - 1
    arrays = {
        "actions": rng.integers(0, 4, count, dtype=np.uint8),
        "rewards": (rng.random(count) < 0.01).astype(np.float32),
        "terminated": np.roll(is_last, -1),
        "truncated": np.zeros(count, bool),
        "episode_ids": np.repeat(np.arange(first, first + num_episodes), EPISODE_FRAMES),
        "has_action": ~is_last,
        "ram": np.repeat(rng.integers(0, 256, (count, 1), dtype=np.uint8), 128, 1),
    }
    arrays["episode_ids"] = arrays["episode_ids"].astype(np.int32)
    episodes = [{"id": i, "seed": i, "policy": "random", "frames": EPISODE_FRAMES, "score": 0.0}
                for i in range(first, first + num_episodes)]  # fmt: skip
    hashes = {name: array_sha256(array) for name, array in arrays.items()}
    shape = (count, *FRAME_SHAPE)
    digest = hashlib.sha256(f"|u1{shape}".encode())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("frames.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            for first in range(0, count, BLOCK):
                block = np.zeros((min(BLOCK, count - first), *FRAME_SHAPE), np.uint8)
                if first % (20 * BLOCK) == 0:
                    for t, frame in enumerate(block):
                        frame[t : t + 4, t % 60 : t % 60 + 4] = 200, 72, 72
                digest.update(block)
                member.write(block)
        meta = {
            "format": 1, "game": "breakout", "emulator": emulator_dict(EmulatorConfig()),
            "action_meanings": ["NOOP", "FIRE", "RIGHT", "LEFT"], "policy": "random", "seed": 0,
            "episodes": episodes, "sha256": hashes | {"frames": digest.hexdigest()},
        }  # fmt: skip
        for name, array in (arrays | {"meta": np.array(json.dumps(meta))}).items():
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
