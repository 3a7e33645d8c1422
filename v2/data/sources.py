"""What others recorded, as episodes of pictures and actions: npz files and this program's own.

Contract: an episode's pictures are read once, in order, and its rows are as they came: the length,
shift and speed are checked by who reads them (`v2.data.importing`). Knows nothing of videos,
models or of what is written.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from v2.data.atari_dataset import load_game_data
from v2.data.games import MAX_ACTIONS
from v2.data.npz import FOREIGN_BYTES, read_meta
from v2.data.recordings import recorded_files
from v2.runtime.files import describe_bytes

IDLE = "NOOP"


@dataclass
class Recording:
    """One episode."""

    name: str  # what messages call it
    pictures: Iterator[np.ndarray]  # uint8 (H, W, 3)
    actions: np.ndarray  # int64, one a picture, of the last perhaps none
    rewards: np.ndarray | None = None  # float32, as many; None: zero
    is_terminated: bool = False  # the game is over at its end
    game: object = None  # equal for all parts of one game; None: it is one of its own


@dataclass
class Source:
    """What is imported."""

    recordings: Iterator[Recording]
    action_meanings: list[str]
    fps: float | None  # None: the source does not say
    notes: list[str] = field(default_factory=list)  # for people


def distinct(names: list[str]) -> list[str]:
    """Return the names of actions as keys are called.

    Raises:
        ValueError: an empty one, or two alike.
    """
    found = [name.strip().upper() for name in names]
    if len(set(found)) < len(found) or not all(found):
        raise ValueError(f"the actions {','.join(names)}: each needs a name of its own")
    return found


def numbered(
    tables: dict[str, list], names: list[str] | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Turn actions, names or numbers, into indices; return them and the actions' names.

    Args:
        tables: name of an episode -> its actions.
        names: of all actions, in order; None: those that occur.
    Raises:
        ValueError: an action that is not among the names, or no number from 0 to 255.
    """
    used = {value for actions in tables.values() for value in actions}
    texts = sorted({value.upper() for value in used if isinstance(value, str)})
    if names is None and texts:
        names = sorted(texts, key=lambda text: (text != IDLE, text))
    names = distinct(names) if names else None
    if names and len(names) > MAX_ACTIONS:
        raise ValueError(f"at most {MAX_ACTIONS} actions are known, got {len(names)}")
    index = {name: k for k, name in enumerate(names or [])}
    limit = len(names) if names else MAX_ACTIONS

    def number(episode: str, value) -> int:
        found = index.get(value.upper(), -1) if isinstance(value, str) else value
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < limit:
            known = ", ".join(names) if names else f"whole numbers from 0 to {limit - 1}"
            raise ValueError(f"{episode}: action {value!r} is none of {known}: see --actions")
        return found

    found = {
        episode: np.array([number(episode, value) for value in actions], np.int64)
        for episode, actions in tables.items()
    }
    highest = max((int(actions.max(initial=0)) for actions in found.values()), default=0)
    return found, names or [f"ACTION{k}" for k in range(highest + 1)]


def npz_source(path: Path, names: list[str] | None) -> Source:
    """Read `frames` (M, H, W, 3) or (M, H, W), `actions` (M,) and perhaps `rewards`, `episode_ids`.

    `fps` and `action_meanings` are read, too, where they are there; see docs/own-data.md.

    Raises:
        ValueError: a damaged file, or an array that is missing or of another form.
    """
    arrays = _read_arrays(path)
    _check_arrays(path, arrays)
    frames, actions, rewards = arrays["frames"], arrays["actions"], arrays.get("rewards")
    if names is None and "action_meanings" in arrays:
        names = [str(name) for name in arrays["action_meanings"].reshape(-1)]
    ids = arrays.get("episode_ids", np.zeros(len(frames), np.int64))
    bounds = [0, *np.flatnonzero(np.diff(ids)) + 1, len(frames)]
    parts = {f"{path.name} episode {k}": slice(*pair) for k, pair in _pairs(bounds)}
    found, names = numbered({n: actions[part].tolist() for n, part in parts.items()}, names)
    recordings = (
        Recording(n, _coloured(frames[part]), found[n],
                  None if rewards is None else rewards[part].astype(np.float32))
        for n, part in parts.items()
    )  # fmt: skip
    return Source(recordings, names, float(arrays["fps"].item()) if "fps" in arrays else None)


def _check_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    for name in ("frames", "actions"):
        if name not in arrays:
            raise ValueError(f"{path} has no array {name!r}, only {', '.join(arrays) or 'none'}")
    frames, actions = arrays["frames"], arrays["actions"]
    is_grey = frames.ndim == 3
    if frames.dtype != np.uint8 or not (is_grey or (frames.ndim == 4 and frames.shape[-1] == 3)):
        raise ValueError(
            f"{path}: frames must be uint8 (M, H, W, 3) or (M, H, W), got {frames.dtype} "
            f"{frames.shape}"
        )
    if actions.ndim != 1 or actions.dtype.kind not in "iuU":
        raise ValueError(
            f"{path}: actions must be whole numbers or names, (M,), got {actions.dtype} "
            f"{actions.shape}"
        )
    rewards = arrays.get("rewards", np.zeros(len(frames), np.float32))
    if rewards.ndim != 1 or rewards.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: rewards must be numbers, (M,), got {rewards.dtype} {rewards.shape}"
        )
    for name, array in (("actions", actions), ("rewards", rewards)):
        if len(array) not in (len(frames), len(frames) - 1):
            raise ValueError(f"{path}: {len(frames)} frames and {len(array)} {name}")
    ids = arrays.get("episode_ids", np.zeros(len(frames), np.int64))
    if ids.shape != frames.shape[:1] or ids.dtype.kind not in "iu" or (ids[1:] < ids[:-1]).any():
        raise ValueError(f"{path}: episode_ids must be {len(frames)} ascending whole numbers")
    fps = arrays.get("fps", np.array(1))
    if fps.size != 1 or fps.dtype.kind not in "iuf":
        raise ValueError(f"{path}: fps must be a number, got {fps.dtype} {fps.shape}")


def _pairs(bounds: list[int]) -> Iterator[tuple[int, tuple[int, int]]]:
    return enumerate(zip(bounds[:-1], bounds[1:], strict=True))


def _coloured(frames: np.ndarray) -> Iterator[np.ndarray]:
    for frame in frames:
        yield frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, -1)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FOREIGN_BYTES as error:
        raise ValueError(
            f"{path} is no npz file of plain arrays ({describe_bytes(path)})"
        ) from error


def is_dataset(path: Path) -> bool:
    """Tell whether a file, or its shards, are a dataset of this program."""
    try:
        return "emulator" in read_meta(recorded_files(path)[0])
    except (ValueError, IndexError):
        return False


def dataset_source(path: Path, names: list[str] | None) -> Source:
    """Take a dataset that this program wrote, as play's --save-data does."""
    data = load_game_data(path)
    if names and len(names) != data.num_actions:
        raise ValueError(f"{path} has {data.num_actions} actions, got {len(names)} names")

    def recordings() -> Iterator[Recording]:
        for episode in data.meta["episodes"]:
            rows = np.flatnonzero(data.episode_ids == episode["id"])
            part = slice(rows[0], rows[-1] + 1)
            actions = data.actions[part][data.has_action[part]].astype(np.int64)
            yield Recording(f"{path.name} episode {episode['id']}", iter(data.frames[part]),
                            actions, data.rewards[part][: len(actions)],
                            bool(data.terminated[part].any()), episode["seed"])  # fmt: skip

    names = names or data.meta["action_meanings"]
    return Source(recordings(), names, data.emulator.steps_per_second)
