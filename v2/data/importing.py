"""From episodes as they came to a dataset of a game without an emulator.

Contract: equal sources give equal files, game seeds included, so an episode never changes its
split. A source that is refused leaves nothing behind. Knows nothing of where episodes come from.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from v2.data.atari_dataset import GOLD_SEED_START, MIN_FRAMES, VALIDATION_GAME, GameData
from v2.data.collector import SEEDS_PER_RUN
from v2.data.frames import FRAME_SHAPE, fit_screen
from v2.data.games import RecordedConfig, emulator_dict
from v2.data.sources import Recording, Source


@dataclass(frozen=True)
class ImportSettings:
    """How a source is read."""

    game: str
    fps: float  # of the source
    every: int = 1  # takes each of so many frames
    shift: int = 0  # the action at frame t stands in row t + shift
    fit: str = "pad"

    @property
    def steps_per_second(self) -> float:
        return self.fps / self.every


@dataclass
class _Episode:
    name: str
    num_frames: int
    actions: np.ndarray  # uint8 (num_frames - 1,)
    rewards: np.ndarray  # float32 (num_frames - 1,)
    is_terminated: bool
    game: object  # see `Recording`
    digest: bytes


def import_source(
    source: Source, settings: ImportSettings, folder: Path, stop=False
) -> GameData | None:
    """Read every episode, a frame at a time, into a nameless file in `folder`.

    None when `stop` became true. Notes for people are added to those of the source.

    Raises:
        ValueError: an episode that does not fit to its actions, or nothing of use.
    """
    config = RecordedConfig(settings.game, settings.steps_per_second)
    file, episodes = tempfile.TemporaryFile(dir=folder), []
    seen: dict[bytes, str] = {}
    for recording in tqdm(source.recordings, unit="episode", desc="import", disable=None):
        start = file.tell()
        episode = _read(recording, settings, len(source.action_meanings), file, source.notes)
        if stop:
            return None
        if episode.num_frames < MIN_FRAMES:
            source.notes.append(f"left out: {episode.name} has {episode.num_frames} frames, "
                                f"fewer than {MIN_FRAMES}")  # fmt: skip
        elif (twin := seen.setdefault(episode.digest, episode.name)) != episode.name:
            source.notes.append(f"left out: {episode.name} is the same as {twin}")
        else:
            episodes.append(episode)
            continue
        file.seek(start)
        file.truncate()
    if not episodes:
        raise ValueError("; ".join(["nothing to import", *source.notes]))
    file.flush()
    num_frames = sum(episode.num_frames for episode in episodes)
    frames = np.memmap(file, np.uint8, "r+", shape=(num_frames, *FRAME_SHAPE))
    first_seed = _first_seed(episodes)
    games = {game: k for k, game in enumerate(dict.fromkeys(e.game for e in episodes))}
    meta = {
        "format": 1, "game": settings.game, "emulator": emulator_dict(config),
        "action_meanings": source.action_meanings, "policy": "recorded", "seed": first_seed,
        "mix": {"recorded": 1.0}, "every": settings.every, "shift": settings.shift,
        "fit": settings.fit,
        "episodes": [
            {"id": k, "seed": first_seed + games[episode.game], "policy": "recorded",
             "frames": episode.num_frames, "score": float(episode.rewards.sum()),
             "source": Path(episode.name).name}
            for k, episode in enumerate(episodes)
        ],
    }  # fmt: skip
    return GameData(frames=frames, **_arrays(episodes), meta=meta)


def _read(
    recording: Recording, settings: ImportSettings, num_actions: int, file, notes: list[str]
) -> _Episode:
    """Write the frames that are kept, and join the actions between two of them."""
    actions, every = recording.actions, settings.every
    if len(actions) and not 0 <= actions.min() <= actions.max() < num_actions:
        raise ValueError(
            f"{recording.name}: action {actions.min()} to {actions.max()} of {num_actions} actions"
        )
    first, begin, total = max(0, -settings.shift), file.tell(), 0
    digest, picture = hashlib.sha256(actions.tobytes()), None
    for index, picture in enumerate(recording.pictures):
        total += 1
        if index >= first and (index - first) % every == 0:
            frame = fit_screen(picture, settings.fit).tobytes()
            file.write(frame)
            digest.update(frame)
    if len(actions) not in (total, total - 1):
        raise ValueError(
            f"{recording.name} has {total} frames and {len(actions)} actions: one a frame, that "
            "of the last may be missing"
        )
    last = min(total - 1, len(actions) - settings.shift)  # first frame without a known action
    steps, rest = divmod(max(0, last - first), every)
    file.truncate(begin + (steps + 1) * int(np.prod(FRAME_SHAPE)))
    file.seek(0, 2)
    is_shown = recording.is_terminated and last == total - 1  # the end of the game
    if is_shown and rest and picture is not None:  # its last step is shorter than the others
        file.write(fit_screen(picture, settings.fit).tobytes())
        steps, rest = steps + 1, 0
    starts = every * np.arange(steps)
    taken = slice(first, last - rest)
    between = actions[first + settings.shift : last - rest + settings.shift]
    counts = np.stack([_sums(between == k, starts) for k in range(num_actions)], 1)
    num_mixed = int((counts.max(1) < counts.sum(1)).sum())
    if num_mixed:
        notes.append(f"{recording.name}: {num_mixed} of {steps} steps hold more than one action")
    rewards = np.zeros(total, np.float32) if recording.rewards is None else recording.rewards
    if rewards.shape not in ((total,), (total - 1,)):
        raise ValueError(f"{recording.name} has {total} frames and rewards {rewards.shape}")
    if not np.isfinite(rewards).all():
        raise ValueError(f"{recording.name}: a reward is not finite")
    return _Episode(
        recording.name, steps + 1, counts.argmax(1).astype(np.uint8),
        _sums(rewards[taken], starts).astype(np.float32), is_shown and not rest,
        recording.name if recording.game is None else recording.game, digest.digest(),
    )  # fmt: skip


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the sums of values from each start to the next, the last one to their end."""
    values = values.astype(np.float64)
    return np.add.reduceat(values, starts) if len(starts) else values[:0]


def _first_seed(episodes: list[_Episode]) -> int:
    """Return a multiple of ten from what was recorded: with it the second game is held out."""
    assert VALIDATION_GAME == 1
    digest = hashlib.sha256(b"".join(episode.digest for episode in episodes)).digest()
    runs = GOLD_SEED_START // SEEDS_PER_RUN - 1
    return int.from_bytes(digest[:4], "big") % runs * SEEDS_PER_RUN


def _arrays(episodes: list[_Episode]) -> dict[str, np.ndarray]:
    def padded(parts: Iterator[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.append(part, part.dtype.type(0)) for part in parts])

    def marks(of_last: list[bool]) -> np.ndarray:
        """Return true at the last action of the episodes that are chosen."""
        found = np.zeros(len(lasts) and lasts[-1] + 1, np.bool_)
        found[lasts - 1] = of_last
        return found

    lengths = [episode.num_frames for episode in episodes]
    lasts = np.cumsum(lengths) - 1
    has_action = np.ones(lasts[-1] + 1, np.bool_)
    has_action[lasts] = False
    return {
        "actions": padded(episode.actions for episode in episodes),
        "rewards": padded(episode.rewards for episode in episodes),
        "terminated": marks([episode.is_terminated for episode in episodes]),
        "truncated": marks([not episode.is_terminated for episode in episodes]),
        "episode_ids": np.repeat(np.arange(len(episodes), dtype=np.int32), lengths),
        "has_action": has_action,
        "ram": np.empty((lasts[-1] + 1, 0), np.uint8),
    }
