"""What recorded steps must satisfy before anything is trained on them.

Contract: what would fail, or mislead, thousands of training steps later is refused at once, with
the path and the value. Knows the fields of the data files, and nothing of emulators or models.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MIN_EQUAL_FRAMES = 16  # shorter episodes may be equal by chance


def check_steps(path: Path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    """Check actions, rewards, episode ids and the list of episodes.

    Raises:
        ValueError: with the path and the value.
    """
    if not len(arrays["actions"]):
        raise ValueError(f"{path} holds no frame; make the file again")
    if not all(isinstance(name, str) for name in meta["action_meanings"]):
        raise ValueError(f"{path}: an action's name is no text; make the file again")
    num_actions = len(meta["action_meanings"])
    if (arrays["actions"] >= num_actions).any():
        raise ValueError(
            f"{path}: action {arrays['actions'].max()} of a game with {num_actions} actions; "
            "make the file again"
        )
    if not np.isfinite(arrays["rewards"]).all():
        raise ValueError(f"{path}: a reward is not finite; make the file again")
    if (np.diff(arrays["episode_ids"]) < 0).any():
        raise ValueError(f"{path}: episode ids do not ascend; make the file again")
    check_episodes(path, meta)


def check_hashes(path: Path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    """Check that the arrays are those whose hashes the meta holds; a ValueError with the path."""
    for name, array in arrays.items():
        _check_hash(path, name, array_sha256(array), meta)


def array_sha256(array: np.ndarray) -> str:
    """Hash dtype, shape and content."""
    digest = _digest(array.dtype, array.shape)
    digest.update(_bytes(array))
    return digest.hexdigest()


def checked_blocks(
    path: Path, name: str, meta: dict, blocks: Iterator[np.ndarray], dtype, shape: tuple
) -> Iterator[np.ndarray]:
    """Pass on the blocks of an array and check its hash at their end; see `check_hashes`."""
    digest = _digest(np.dtype(dtype), shape)
    for block in blocks:
        digest.update(_bytes(block))
        yield block
    _check_hash(path, name, digest.hexdigest(), meta)


def _digest(dtype: np.dtype, shape: tuple):
    return hashlib.sha256(f"{dtype.str}{shape}".encode())


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


def _check_hash(path: Path, name: str, digest: str, meta: dict) -> None:
    if meta["sha256"].get(name) != digest:
        raise ValueError(f"{path}: {name!r} is not what its sha256 says; make the file again")


def check_episodes(path: Path, meta: dict) -> None:
    """Check that the list of episodes says what every reader needs; a ValueError with the path."""
    for episode in meta["episodes"]:
        if not isinstance(episode, dict) or not all(
            isinstance(episode.get(key), int) for key in ("id", "seed", "frames")
        ):
            raise ValueError(f"{path}: its list of episodes is damaged; make the file again")


def check_splits(
    path: Path | str,
    episode_ids: np.ndarray,
    contents: tuple[np.ndarray, ...],
    splits: dict[int, str],
    seen: dict[bytes, int],
) -> None:
    """Check that no episode stands in two splits.

    Args:
        contents: arrays that tell episodes apart, first axis as in `episode_ids`.
        splits: the split of every episode id.
        seen: hash -> id of the episodes of the shards before; those of this one are added.
    Raises:
        ValueError: with the ids of two equal episodes.
    """
    bounds = np.flatnonzero(np.diff(episode_ids)) + 1
    for first, last in zip([0, *bounds], [*bounds, len(episode_ids)], strict=True):
        if last - first < MIN_EQUAL_FRAMES:
            continue
        digest = hashlib.sha256(b"".join(array[first:last].tobytes() for array in contents))
        episode = int(episode_ids[first])
        twin = seen.setdefault(digest.digest(), episode)
        if splits.get(twin) != splits.get(episode):
            raise ValueError(
                f"{path}: episodes {twin} ({splits.get(twin)}) and {episode} "
                f"({splits.get(episode)}) are the same game; collect with another --seed"
            )
