"""Recorded games: one file format, splits by game, windows; and the time convention.

Contract (time): `actions[t]` is taken *at* `frames[t]`; `rewards[t]`, `terminated[t]` and
`truncated[t]` are its result, seen with `frames[t + 1]`. The last frame of an episode has no
action (`has_action` is false and the other fields are zero). Hands on `make_atari_env`, which
plays what is recorded. Knows nothing of policies, models or training.
"""

import hashlib
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from v2.data.emulator import make_atari_env as make_atari_env
from v2.data.environments import NUM_RAM_BYTES as NUM_RAM_BYTES
from v2.data.frames import FRAME_SHAPE
from v2.data.games import (
    EmulatorConfig,
    RecordedConfig,
    differing_settings,
    game_id,
    is_recorded,
    stored_config,
)
from v2.data.npz import (
    ROWS_AT_ONCE,
    ForeignFileError,
    read_blocks,
    read_meta,
    read_npz,
    write_npz,
)
from v2.data.recordings import (
    META_FIELDS,
    NUM_SHARDS,
    Data,
    data_paths,
    list_episodes,
    named_files,
    recorded_files,
    shown,
)
from v2.data.validation import (
    array_sha256,
    check_hashes,
    check_splits,
    check_steps,
    checked_blocks,
)
from v2.runtime.files import DISK_FULL

GOLD_SEED_START = 1_000_000_000
VALIDATION_GAME = 1  # of every ten consecutive games of a policy, this one is held out
HELD_OUT_PART = 10  # one of so many parts of the frames, the last, where no whole game is held out
MIN_FRAMES = 9  # of an episode; shorter ones hold no window with a rollout
MIN_HELD_OUT_FRAMES = 20  # of that part

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
    ram: np.ndarray  # uint8 (M, 128); (M, 0) of a game without an emulator
    meta: dict
    ages: np.ndarray | None = None  # uint8 (M, N), `token_ages` of an engine's tokens

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def emulator(self) -> EmulatorConfig | RecordedConfig:
        return stored_config(self.meta["emulator"])

    @property
    def num_actions(self) -> int:
        return len(self.meta["action_meanings"])

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: getattr(self, name) for name in ARRAY_FIELDS}
        return {name: array for name, array in arrays.items() if array[:1].size}

    def rows_of(self, split: str) -> np.ndarray:
        """Return the ascending row indices of one split."""
        return rows_of_split(self.episode_ids, self.meta["episodes"], split)


def save_game_data(path: Path, data: GameData) -> None:
    """Write one npz with the sha256 of every array in its meta."""
    arrays = data.arrays()
    meta = data.meta | {"sha256": {name: array_sha256(a) for name, a in arrays.items()}}
    write_npz(path, arrays, meta)


def load_game_data(data: Data) -> GameData:
    """Load recordings as one.

    Frames and ram are unpacked into nameless files, beside the first where that can be written, and
    mapped: the system drops their pages where memory is short, so that what is held is a few bytes
    a frame.

    Raises:
        FileNotFoundError: neither a file nor shards; names the command that makes them.
        ValueError: a damaged or foreign file, or what does not belong together.
        OSError: too little room on the disk.
    """
    listing = list_episodes(data)
    paths, episodes, name_all = listing.paths, listing.episodes, shown(data)
    folder = paths[0].parent if os.access(paths[0].parent, os.W_OK) else tempfile.gettempdir()
    num_frames = sum(episode["frames"] for episode in episodes)
    if _unpacked_bytes(num_frames) > shutil.disk_usage(folder).free:
        raise _no_room(name_all, folder, num_frames)
    large = [name for name in LARGE_FIELDS if name in fields_of(read_meta(paths[0], META_FIELDS))]
    files = {name: tempfile.TemporaryFile(dir=folder) for name in large}
    parts, metas = [], []
    for path, first_id in zip(tqdm(paths, unit="file", desc="unpack", disable=None),
                              listing.first_ids, strict=True):  # fmt: skip
        arrays, meta = read_steps(path, first_id)
        try:
            for name, file in files.items():
                for block in read_large(path, name, len(arrays["actions"]), meta):
                    file.write(block)  # type: ignore[arg-type]  # arrays are buffers
                file.flush()
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise _no_room(name_all, folder, num_frames) from error
        parts.append(arrays)
        metas.append(meta)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, file in files.items():  # a map outlives its file; writable, as torch wants it
        dtype, tail = ARRAY_FIELDS[name]
        joined[name] = np.memmap(file, dtype, "r+", shape=(len(joined["actions"]), *tail))
        file.close()
    meta = metas[0] | {"episodes": episodes, "shards": [meta["sha256"] for meta in metas]}
    meta.pop(NUM_SHARDS, None)
    splits = {episode["id"]: split_of_game(episode["seed"]) for episode in episodes}
    made = GameData(**with_ram(joined), meta=meta)
    seen = made.ram if made.ram.size else made.frames
    check_splits(name_all, made.episode_ids, (seen, made.actions), splits, {})
    return made


def _unpacked_bytes(num_frames: int) -> int:
    large = [ARRAY_FIELDS[name] for name in LARGE_FIELDS]
    return num_frames * sum(np.dtype(dtype).itemsize * math.prod(tail) for dtype, tail in large)


def _no_room(name: str, folder: Path | str, num_frames: int) -> OSError:
    free = shutil.disk_usage(folder).free
    return OSError(
        f"unpacking {num_frames} frames of {name} takes {_unpacked_bytes(num_frames) / 1e9:.1f} "
        f"GB, and {folder} has {free / 1e9:.1f} GB left: make room there"
    )


def read_steps(path: Path, first_id: int = 0) -> tuple[dict[str, np.ndarray], dict]:
    """Read and check one data file: its meta and all arrays but the large ones.

    Args:
        first_id: is added to the episode ids; see `v2.data.recordings.list_episodes`.
    Raises:
        ValueError: with the path and what is wrong.
    """
    fields = fields_of(read_meta(path, META_FIELDS))
    arrays, meta = read_npz(path, fields, META_FIELDS, unread=LARGE_FIELDS)
    check_steps(path, arrays, meta)
    recorded_emulator(path, meta)
    check_hashes(path, arrays, meta)
    arrays["episode_ids"] += first_id
    return arrays, meta


def fields_of(meta: dict) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Return the arrays of a data file: all, but the memory of a game without an emulator."""
    has_ram = not is_recorded(meta["emulator"])
    return {name: field for name, field in ARRAY_FIELDS.items() if name != "ram" or has_ram}


def with_ram(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return all arrays of `GameData`, a memory of no bytes where there is none."""
    return {"ram": np.empty((len(arrays["actions"]), 0), np.uint8)} | arrays


class OtherVersionError(ValueError):
    """A recording of another version of this program."""


def recorded_emulator(path: Path, meta: dict) -> EmulatorConfig | RecordedConfig:
    """Return the settings that a recording was made with; an `OtherVersionError` with the path."""
    try:
        return stored_config(meta["emulator"])
    except (TypeError, AttributeError, ValueError) as error:
        raise OtherVersionError(
            f"{path}: emulator settings of another version ({error})"
        ) from error


def set_bad_aside(data: Data) -> None:
    """Rename the damaged files of recordings to `*.npz.bad`, so that every reader skips them.

    What is no recording, or one of another version, is neither damaged nor renamed.

    Raises:
        ValueError: none is whole of what was named, or there is a file that is no recording.
    """
    paths, errors = data_paths(data), {}
    for shard in tqdm(paths, unit="file", desc="check", disable=None):
        try:
            arrays, meta = read_steps(shard)
            for name in fields_of(meta).keys() & set(LARGE_FIELDS):
                for _ in read_large(shard, name, len(arrays["actions"]), meta):
                    pass
        except (ForeignFileError, OtherVersionError):
            raise
        except ValueError as error:
            errors[shard] = error
    if len(errors) == len(paths):
        raise ValueError(f"nothing of {shown(data)} is whole: {errors[paths[0]]}")
    for given in named_files(data):
        if all(path in errors for path in recorded_files(given)):
            raise ValueError(f"nothing of {given} is whole: leave it out")
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


def read_marks(path: Path, num_frames: int, meta: dict) -> np.ndarray:
    """Return what tells the rows of one data file apart: their memory, else a checksum each."""
    if "ram" in fields_of(meta):
        return np.concatenate(list(read_large(path, "ram", num_frames, meta)))
    frames = read_large(path, "frames", num_frames, meta)
    return np.array([zlib.crc32(frame) for block in frames for frame in block], np.uint32)


def data_sha256(meta: dict) -> str:
    """Hash a recording by the hashes of its arrays (of all its shards)."""
    parts = meta.get("shards") or [meta["sha256"]]
    text = "".join(part.get(name, "") for part in parts for name in ARRAY_FIELDS)
    return hashlib.sha256(text.encode()).hexdigest()


def seeds_of(episodes: list[dict], ids: np.ndarray) -> np.ndarray:
    """Return the seed of the game that each episode id is of, int64, as many."""
    seeds = {episode["id"]: episode["seed"] for episode in episodes}
    unique, inverse = np.unique(ids, return_inverse=True)
    return np.array([seeds[k] for k in unique.tolist()], np.int64)[inverse]


def split_of_game(game_seed: int) -> str:
    """Return train, val or gold; all segments of one game share its seed and so its split."""
    if game_seed >= GOLD_SEED_START:
        return "gold"
    return "val" if game_seed % 10 == VALIDATION_GAME else "train"


def split_of(episode: dict) -> str:
    """Return the split of an episode: its game's, but where `hold_out_end` decided."""
    split = split_of_game(episode["seed"])
    return split if split == "gold" else episode.get("split", split)


def check_training_games(data: Data, episodes: list[dict]) -> None:
    """Check that there are games to train on, long enough, and none of the gold set.

    Says in a line what `hold_out_end` holds out where no whole game is.

    Raises:
        ValueError: with what there is.
    """
    seeds = {split_of(episode): episode["seed"] for episode in episodes}
    if "gold" in seeds:
        raise ValueError(
            f"{shown(data)} holds a game of the frozen evaluation set (seed {seeds['gold']}), "
            "which is never trained on: give data of v2/data/collect_atari.py"
        )
    for split in seeds:
        longest = max(episode["frames"] for episode in episodes if split_of(episode) == split)
        if longest < MIN_FRAMES:
            raise ValueError(
                f"the longest {split} episode of {shown(data)} has {longest} frames, a window of "
                f"a rollout {MIN_FRAMES}: give longer episodes"
            )
    if len(seeds) > 1:
        return
    num_frames = sum(episode["frames"] for episode in episodes)
    if num_frames // HELD_OUT_PART < MIN_HELD_OUT_FRAMES:
        raise ValueError(
            f"{shown(data)} holds {num_frames} frames and no game to hold out; its last tenth "
            f"would be less than {MIN_HELD_OUT_FRAMES} frames: collect or play more"
        )
    print(f"no whole game is held out by its seed: the last tenth of {num_frames} frames is")


def hold_out_end(steps: Any) -> None:
    """Hold out the last tenth of the frames where no whole game can be, in place.

    An episode that this cuts becomes two, so that no window crosses the cut.

    Args:
        steps: GameData, or TokenData, of all that is trained on.
    """
    episodes, ids = steps.meta["episodes"], steps.episode_ids
    if len({split_of(episode) for episode in episodes}) > 1:
        return
    cut = len(ids) - len(ids) // HELD_OUT_PART
    first_held, is_inside = int(ids[cut]), bool(ids[cut - 1] == ids[cut])
    parts: list[dict] = []
    for episode in episodes:
        if episode["id"] != first_held or not is_inside:
            is_held = episode["id"] >= first_held
            parts.append(episode | {"id": episode["id"] + (is_held and is_inside),
                                    "split": "val" if is_held else "train"})  # fmt: skip
            continue
        num_held = int((ids[cut:] == first_held).sum())
        num_kept = episode["frames"] - num_held
        parts += [episode | {"frames": num_kept, "split": "train"},
                  episode | {"id": first_held + 1, "frames": num_held, "split": "val"}]  # fmt: skip
    if is_inside:
        ids[cut:] += 1
        for name in ("actions", "rewards", "terminated", "truncated", "has_action"):
            getattr(steps, name)[cut - 1] = 0  # the last frame of an episode has no action
        if ids[cut - 2 : cut - 1].tolist() == [first_held]:
            steps.truncated[cut - 2] = not steps.terminated[cut - 2]
    steps.meta = steps.meta | {"episodes": parts}


def check_game(data: Data, game: str) -> None:
    """Check that recordings are of this game; a ValueError with both."""
    for path in data_paths(data):
        held = recorded_emulator(path, read_meta(path, META_FIELDS)).game
        if held != game_id(game):
            raise ValueError(f"{path} holds {held}, not {game_id(game)}: add --game {held}")


def check_emulator(data: Data, weights: Path, info: dict) -> None:
    """Check that a recording has the emulator settings of weights that say them.

    Args:
        info: of the weights' checkpoint.
    Raises:
        ValueError: with each setting that differs.
    """
    path = data_paths(data)[0]
    held = read_meta(path, META_FIELDS)["emulator"]
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
    chosen = [e["id"] for e in episodes if split_of(e) == split]
    rows = np.flatnonzero(np.isin(episode_ids, chosen))
    if len(rows) == 0:
        raise ValueError(f"the data holds no {split} game: collect more frames")
    return rows


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Return so many of the rows, evenly spread from the first to the last, or all."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def window_starts(
    episode_ids: np.ndarray, length: int, rows: np.ndarray | None = None
) -> np.ndarray:
    """Return every row t such that rows t .. t + length - 1 lie in one episode.

    Args:
        rows: only windows that start at these rows (whole episodes, as `rows_of_split` gives).
    Raises:
        ValueError: each episode of these rows is shorter than `length`.
    """
    candidates = np.arange(len(episode_ids)) if rows is None else rows
    last = candidates + length - 1
    inside = last < len(episode_ids)
    candidates, last = candidates[inside], last[inside]
    starts = candidates[episode_ids[candidates] == episode_ids[last]]
    if len(starts) == 0:
        raise ValueError(
            f"each episode that windows come from is shorter than the {length} frames of one"
        )
    return starts
