"""Recorded games: one file format, splits by game, windows; and the time convention.

Contract (time): `actions[t]` is taken *at* `frames[t]`; `rewards[t]`, `terminated[t]` and
`truncated[t]` are its result, seen with `frames[t + 1]`. The last frame of an episode has no
action (`has_action` is false and the other fields are zero). Hands on `make_atari_env`, which
plays what is recorded. Knows nothing of policies, models or training.
"""

import glob
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from v2.data.emulator import make_atari_env as make_atari_env
from v2.data.frames import FRAME_SHAPE
from v2.data.games import EmulatorConfig, differing_settings, game_id
from v2.data.npz import ROWS_AT_ONCE, read_blocks, read_meta, read_npz, write_npz
from v2.data.validation import (
    array_sha256,
    check_episodes,
    check_hashes,
    check_splits,
    check_steps,
    checked_blocks,
)
from v2.runtime.files import DISK_FULL

DATA_NAME = "atari_game_data"
GOLD_SEED_START = 1_000_000_000
VALIDATION_GAME = 1  # of every ten consecutive games of a policy, this one is held out
NUM_RAM_BYTES = 128


# name -> (dtype, shape after the first axis)
ARRAY_FIELDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "frames": (np.uint8, FRAME_SHAPE),
    "actions": (np.uint8, ()),
    "rewards": (np.float32, ()),
    "terminated": (np.bool_, ()),
    "truncated": (np.bool_, ()),
    "episode_ids": (np.int32, ()),
    "has_action": (np.bool_, ()),
    "ram": (np.uint8, (NUM_RAM_BYTES,)),
}


LARGE_FIELDS = ("frames", "ram")  # mapped or read in blocks, never held
META_FIELDS: dict[str, type] = {
    "game": str, "emulator": dict, "action_meanings": list, "episodes": list, "sha256": dict,
}  # fmt: skip


@dataclass
class GameData:
    """Recorded episodes, one row a frame; see the module docstring for the time convention."""

    frames: np.ndarray  # uint8 (M, 84, 64, 3)
    actions: np.ndarray  # uint8 (M,)
    rewards: np.ndarray  # float32 (M,)
    terminated: np.ndarray  # bool (M,)
    truncated: np.ndarray  # bool (M,)
    episode_ids: np.ndarray  # int32 (M,), ascending
    has_action: np.ndarray  # bool (M,)
    ram: np.ndarray  # uint8 (M, 128)
    meta: dict

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def emulator(self) -> EmulatorConfig:
        return EmulatorConfig(**self.meta["emulator"])

    @property
    def num_actions(self) -> int:
        return len(self.meta["action_meanings"])

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ARRAY_FIELDS}

    def rows_of(self, split: str) -> np.ndarray:
        """Return the ascending row indices of one split."""
        return rows_of_split(self.episode_ids, self.meta["episodes"], split)


def save_game_data(path: Path, data: GameData) -> None:
    """Write one npz with the sha256 of every array in its meta."""
    arrays = data.arrays()
    meta = data.meta | {"sha256": {name: array_sha256(a) for name, a in arrays.items()}}
    write_npz(path, arrays, meta)


def load_game_data(path: Path) -> GameData:
    """Load a data file, or all shards `<stem>-*.npz` when `path` itself is not there.

    Frames and ram are unpacked into nameless files, beside it where that can be written, and
    mapped: the system drops their pages where memory is short, so that what is held is a few bytes
    a frame.

    Raises:
        FileNotFoundError: neither a file nor shards; names the command that makes them.
        ValueError: a damaged or foreign file, or shards of different recordings.
        OSError: too little room on the disk.
    """
    paths = data_paths(path)
    folder = paths[0].parent if os.access(paths[0].parent, os.W_OK) else tempfile.gettempdir()
    episodes = read_episodes(path)
    num_frames = sum(episode["frames"] for episode in episodes)
    if _unpacked_bytes(num_frames) > shutil.disk_usage(folder).free:
        raise _no_room(path, folder, num_frames)
    files = {name: tempfile.TemporaryFile(dir=folder) for name in LARGE_FIELDS}
    parts, metas = [], []
    for shard in tqdm(paths, unit="file", desc="unpack", disable=None):
        arrays, meta = read_steps(shard)
        try:
            for name, file in files.items():
                for block in read_large(shard, name, len(arrays["actions"]), meta):
                    file.write(block)  # type: ignore[arg-type]  # arrays are buffers
                file.flush()
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise _no_room(path, folder, num_frames) from error
        parts.append(arrays)
        metas.append(meta)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, file in files.items():  # a map outlives its file; writable, as torch wants it
        dtype, tail = ARRAY_FIELDS[name]
        joined[name] = np.memmap(file, dtype, "r+", shape=(len(joined["actions"]), *tail))
    meta = metas[0] | {"episodes": episodes, "shards": [meta["sha256"] for meta in metas]}
    splits = {episode["id"]: split_of_game(episode["seed"]) for episode in episodes}
    check_splits(path, joined["episode_ids"], (joined["ram"], joined["actions"]), splits, {})
    return GameData(**joined, meta=meta)


def _unpacked_bytes(num_frames: int) -> int:
    large = [ARRAY_FIELDS[name] for name in LARGE_FIELDS]
    return num_frames * sum(np.dtype(dtype).itemsize * math.prod(tail) for dtype, tail in large)


def _no_room(path: Path, folder: Path | str, num_frames: int) -> OSError:
    free = shutil.disk_usage(folder).free
    return OSError(
        f"unpacking {num_frames} frames of {path} takes {_unpacked_bytes(num_frames) / 1e9:.1f} "
        f"GB, and {folder} has {free / 1e9:.1f} GB left: make room there"
    )


def read_episodes(path: Path) -> list[dict]:
    """Return the episodes of a data file or its shards, from their metas alone.

    Raises:
        ValueError: a damaged list, or shards of different recordings.
    """
    metas = []
    for shard in data_paths(path):
        metas.append(read_meta(shard, META_FIELDS))
        check_episodes(shard, metas[-1])
    for key in ("emulator", "action_meanings", "policy", "seed"):
        if any(meta.get(key) != metas[0].get(key) for meta in metas):
            raise ValueError(f"the shards of {path} differ in {key!r}: collect with --overwrite")
    episodes = [episode for meta in metas for episode in meta["episodes"]]
    ids = [episode["id"] for episode in episodes]
    if len(metas) > 1 and sorted(set(ids)) != ids:
        raise ValueError(f"the shards of {path} do not follow one another: collect again")
    return episodes


def data_paths(path: Path) -> list[Path]:
    """Return the file itself, or its shards in order."""
    path = Path(path)
    paths = recorded_files(path)
    if not paths:
        raise FileNotFoundError(
            f"no game data at {path}: run python v2/data/collect_atari.py --out {path.parent}"
        )
    return paths[:1] if paths[0] == path else paths


def recorded_files(path: Path) -> list[Path]:
    """Return what there is of a recording: the file itself, its shards, by accident both."""
    single = [path] if path.exists() else []
    digits = 5 * "[0-9]"
    return single + sorted(path.parent.glob(f"{glob.escape(path.stem)}-{digits}.npz"))


def read_steps(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Read and check one data file: its meta and all arrays but the large ones.

    Raises:
        ValueError: with the path and what is wrong.
    """
    arrays, meta = read_npz(path, ARRAY_FIELDS, META_FIELDS, unread=LARGE_FIELDS)
    check_steps(path, arrays, meta)
    recorded_emulator(path, meta)
    check_hashes(path, arrays, meta)
    return arrays, meta


def recorded_emulator(path: Path, meta: dict) -> EmulatorConfig:
    """Return the settings that a recording was made with; a ValueError with the path."""
    try:
        return EmulatorConfig(**meta["emulator"])
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: emulator settings of another version ({error})") from error


def set_bad_aside(path: Path) -> None:
    """Rename the damaged shards of a recording to `*.npz.bad`, so that every reader skips them.

    Raises:
        ValueError: none is whole.
    """
    paths, errors = data_paths(path), {}
    for shard in tqdm(paths, unit="file", desc="check", disable=None):
        try:
            arrays, meta = read_steps(shard)
            for name in LARGE_FIELDS:
                for _ in read_large(shard, name, len(arrays["actions"]), meta):
                    pass
        except ValueError as error:
            errors[shard] = error
    if len(errors) == len(paths):
        raise ValueError(f"nothing of {path} is whole: {errors[paths[0]]}")
    for shard, reason in errors.items():
        shard.rename(f"{shard}.bad")
        print(f"set aside as {shard.name}.bad: {reason}")
    print(f"{len(errors)} of {len(paths)} shards are damaged and left out")


def read_large(
    path: Path, name: str, num_frames: int, meta: dict, num_rows: int = ROWS_AT_ONCE
) -> Iterator[np.ndarray]:
    """Yield one of the large arrays in blocks; a ValueError at the end where its hash is wrong."""
    dtype, tail = ARRAY_FIELDS[name]
    blocks = read_blocks(path, name, dtype, tail, num_rows)
    return checked_blocks(path, name, meta, blocks, dtype, (num_frames, *tail))


def data_sha256(meta: dict) -> str:
    """Hash a recording by the hashes of its arrays (of all its shards)."""
    parts = meta.get("shards") or [meta["sha256"]]
    text = "".join(part[name] for part in parts for name in ARRAY_FIELDS)
    return hashlib.sha256(text.encode()).hexdigest()


def split_of_game(game_seed: int) -> str:
    """Return train, val or gold; all segments of one game share its seed and so its split."""
    if game_seed >= GOLD_SEED_START:
        return "gold"
    return "val" if game_seed % 10 == VALIDATION_GAME else "train"


def check_training_games(path: Path, episodes: list[dict]) -> None:
    """Check that there are games to train on and games held out, and none of the gold set.

    Raises:
        ValueError: with the path and what to do.
    """
    seeds = {split_of_game(episode["seed"]): episode["seed"] for episode in episodes}
    if "gold" in seeds:
        raise ValueError(
            f"{path} holds a game of the frozen evaluation set (seed {seeds['gold']}), which is "
            "never trained on: give data of v2/data/collect_atari.py"
        )
    for split in ("train", "val"):
        if split not in seeds:
            raise ValueError(
                f"{path} holds no {split} game among its {len(episodes)} episodes: "
                "collect more frames, or play two games"
            )


def check_game(path: Path, game: str) -> None:
    """Check that a recording is of this game; a ValueError with both."""
    first = data_paths(path)[0]
    held = recorded_emulator(first, read_meta(first, META_FIELDS)).game
    if held != game_id(game):
        raise ValueError(f"{path} holds {held}, not {game_id(game)}: add --game {held}")


def check_emulator(path: Path, weights: Path, info: dict) -> None:
    """Check that a recording has the emulator settings of weights that say them.

    Args:
        info: of the weights' checkpoint.
    Raises:
        ValueError: with each setting that differs.
    """
    held = read_meta(data_paths(path)[0], META_FIELDS)["emulator"]
    known = info.get("emulator") or held
    if differing := differing_settings(known, held):
        raise ValueError(
            f"{weights} was trained with {'; '.join(differing)} as in {path}: give weights and "
            "data of the same settings"
        )


def rows_of_split(episode_ids: np.ndarray, episodes: list[dict], split: str) -> np.ndarray:
    """Return the rows whose episode belongs to a split.

    Raises:
        ValueError: no row does.
    """
    chosen = [e["id"] for e in episodes if split_of_game(e["seed"]) == split]
    rows = np.flatnonzero(np.isin(episode_ids, chosen))
    if len(rows) == 0:
        raise ValueError(f"the data holds no {split} game: collect more frames")
    return rows


def window_starts(
    episode_ids: np.ndarray, length: int, rows: np.ndarray | None = None
) -> np.ndarray:
    """Return every row t such that rows t .. t + length - 1 lie in one episode.

    Args:
        rows: only windows that start at these rows (whole episodes, as `rows_of_split` gives).
    Raises:
        ValueError: every episode is shorter than `length`.
    """
    candidates = np.arange(len(episode_ids)) if rows is None else rows
    last = candidates + length - 1
    inside = last < len(episode_ids)
    candidates, last = candidates[inside], last[inside]
    starts = candidates[episode_ids[candidates] == episode_ids[last]]
    if len(starts) == 0:
        raise ValueError(f"every episode is shorter than the {length} frames of a window")
    return starts
