"""Where dreams of a game begin: real four-frame histories, each with its phase and its lives.

Contract: `dream_starts/<game>.npz` is a small committed set, made by `v2/data/build_starts.py` from
game seeds that no training and no gold set has; each start can be reached again in the emulator by
its actions. A recording gives starts, too. Knows nothing of models.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2.data.atari_dataset import load_game_data, recorded_emulator, seeds_of, window_starts
from v2.data.frames import FRAME_SHAPE
from v2.data.games import EmulatorConfig, RecordedConfig, game_id
from v2.data.npz import read_meta, read_npz

STARTS_DIRECTORY = Path(__file__).resolve().parent / "dream_starts"
STARTS_SEED = 2_000_000_000  # first seed of their games; of training and gold all are below
PHASES = ("serve", "middle", "late", "recorded")  # the last: of a recording, unknown
HISTORY = 4  # frames
FIELDS = {
    "frames": (np.uint8, (HISTORY, *FRAME_SHAPE)),
    "past_actions": (np.uint8, (HISTORY - 1,)),
    "phases": (np.uint8, ()),
    "lives": (np.int8, ()),
    "seeds": (np.int64, ()),
    "num_replayed": (np.int32, ()),
}


@dataclass
class DreamStarts:
    """S starts of one game; their windows end at `rows` of `frames`."""

    emulator: EmulatorConfig | RecordedConfig
    frames: np.ndarray  # uint8 (M, 84, 64, 3)
    actions: np.ndarray  # uint8 (M,), taken at these frames
    rows: np.ndarray  # int (S,): the last frame of each history
    phases: np.ndarray  # str (S,), of PHASES
    lives: np.ndarray  # int (S,), -1 unknown
    seeds: np.ndarray  # int (S,): of the games they are from
    replays: list[np.ndarray] | None  # from the game's reset to each start; None: a recording's
    source: Path

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self):
        """Pickle the file's name: a recording may be larger than memory."""
        return load_starts, (self.emulator.game, self.source)

    def histories(self, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return frames (n, 4, 84, 64, 3) and the actions between them (n, 3) of some starts."""
        rows = self.rows[picks][:, None] + np.arange(1 - HISTORY, 1)
        return self.frames[rows], self.actions[rows[:, :-1]]

    def of_phase(self, phase: str) -> np.ndarray:
        """Return the starts of a phase.

        Raises:
            ValueError: there is none.
        """
        found = np.flatnonzero(self.phases == phase)
        if not len(found):
            known = ", ".join(sorted(set(self.phases)))
            raise ValueError(f"no start of phase {phase!r} in {self.source}: use {known}")
        return found


def starts_path(game: str) -> Path:
    return STARTS_DIRECTORY / f"{game_id(game)}.npz"


@functools.lru_cache(maxsize=4)
def load_starts(game: str, path: Path | None = None) -> DreamStarts:
    """Load the committed starts of a game, or those that a recording of it gives.

    Args:
        path: of the recording, or of a set as `build_starts.py` makes it; None: the committed one.
    Raises:
        FileNotFoundError: no such file, or a game without a set.
        ValueError: a damaged or foreign file, or one of another game.
    """
    path = starts_path(game) if path is None else Path(path).absolute()  # as pickles name it
    if path == starts_path(game) and not path.exists():
        raise FileNotFoundError(
            f"no starts of {game_id(game)} come with this package: give starts=FILE "
            "(--starts FILE), a recording of v2/data/collect_atari.py"
        )
    is_set = path.exists() and "episodes" not in read_meta(path)  # else a recording or its shards
    starts = _read_set(path) if is_set else _of_recording(path)
    if starts.emulator.game != game_id(game):
        raise ValueError(f"{path} holds {starts.emulator.game}, not {game_id(game)}")
    return starts


def _read_set(path: Path) -> DreamStarts:
    arrays, meta = read_npz(path, FIELDS, {"emulator": dict})
    replayed, _ = read_npz(path, {"replayed": (np.uint8, ())})
    count = len(arrays["frames"])
    padded = np.zeros((count, HISTORY), np.uint8)
    padded[:, :-1] = arrays["past_actions"]
    ends = arrays["num_replayed"].cumsum()[:-1]
    return DreamStarts(
        recorded_emulator(path, meta), arrays["frames"].reshape(-1, *FRAME_SHAPE),
        padded.reshape(-1), np.arange(count) * HISTORY + HISTORY - 1,
        np.array(PHASES)[arrays["phases"]], arrays["lives"].astype(int), arrays["seeds"],
        np.split(replayed["replayed"], ends), path,
    )  # fmt: skip


def _of_recording(path: Path) -> DreamStarts:
    data = load_game_data(path)
    rows = window_starts(data.episode_ids, HISTORY + 1) + HISTORY - 1  # not at an episode's end
    of_rows = seeds_of(data.meta["episodes"], data.episode_ids[rows])
    phases, lives = np.full(len(rows), PHASES[-1]), np.full(len(rows), -1)
    return DreamStarts(
        data.emulator, data.frames, data.actions, rows, phases, lives, of_rows, None, path
    )
