"""Where the objects are: read from frames, real or dreamed, and from the emulator's memory.

Contract: `read_frames` sees pixels only, so that it treats a dream as it treats the game;
`read_ram` is the truth it is validated against. Positions are centres in 84x64 pixels, with pixel
centres at + 0.5 (native / 2.5). For a game without a reader both raise. Knows nothing of models.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

NATIVE_PIXELS = 2.5  # native pixels a pixel of the frame, along both axes


@dataclass
class Objects:
    """The objects of N frames.

    From memory, `ball` is known even while the ball is hidden in front of bricks of its own
    colour, and `num_balls` is 1 only when more than half of it can be seen.
    """

    ball: np.ndarray  # float32 (N, 2): x, y of the strongest ball, NaN where there is none
    num_balls: np.ndarray  # int (N,)
    paddle: np.ndarray  # float32 (N,): x of the middle of its visible part, NaN unknown
    bricks: np.ndarray  # bool (N, 6, 18), top row first
    score: np.ndarray  # int (N,), -1 unreadable
    lives: np.ndarray  # int (N,), -1 unreadable

    def __len__(self) -> int:
        return len(self.ball)

    def __getitem__(self, rows) -> "Objects":
        """Return the objects of some frames (a slice, mask or index array)."""
        fields = dataclasses.fields(self)
        return Objects(**{field.name: getattr(self, field.name)[rows] for field in fields})


def has_truth(game: str) -> bool:
    """Tell whether this game's objects can be read."""
    return game in _readers()


def read_ram(game: str, ram: np.ndarray) -> Objects:
    """Return the objects that the memory of N steps holds.

    Args:
        ram: uint8 (N, 128).
    Raises:
        ValueError: a game without a reader.
    """
    return _reader(game).read_ram(ram)


def read_frames(game: str, frames: np.ndarray) -> Objects:
    """Return the objects that N frames show.

    Args:
        frames: uint8 (N, 84, 64, 3).
    Raises:
        ValueError: a game without a reader.
    """
    return _reader(game).read_frames(frames)


def _readers() -> dict:
    from v2.eval import breakout_reader

    return {"breakout": breakout_reader}


def _reader(game: str):
    readers = _readers()
    if game not in readers:
        raise ValueError(f"no reader of objects for {game}: there is one for {', '.join(readers)}")
    return readers[game]
