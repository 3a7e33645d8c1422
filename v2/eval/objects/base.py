"""The objects of a frame: what every game's object detector returns.

Contract: positions are centres in 84x64 pixels, with pixel centres at + 0.5 (native / 2.5). Knows
nothing of games or models.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

MAX_JITTER = 1.0  # pixels by which steps of one velocity differ: memory holds native ones
NATIVE_PIXELS = 2.5  # native pixels a pixel of the frame, along both axes


@dataclass
class Objects:
    """The objects of N frames; what a game lacks is NaN, -1 or of size 0 in all of them.

    Paddles are known by the coordinate along which they move: x in Breakout, y in Pong. From
    memory, `ball` is known even while the ball is hidden in front of bricks of its own colour, and
    `num_balls` is 1 only when more than half of it can be seen.
    """

    ball: np.ndarray  # float32 (N, 2): x, y of the strongest ball, NaN where there is none
    num_balls: np.ndarray  # int (N,)
    paddle: np.ndarray  # float32 (N,): the middle of its visible part, NaN unknown
    opponent: np.ndarray  # float32 (N,): the same of the other paddle, NaN where there is none
    bricks: np.ndarray  # bool (N, 6, 18), top row first; (N, 0, 0) in a game without bricks
    score: np.ndarray  # int (N,), -1 unreadable; Pong: 100 times the opponent's points plus ours
    lives: np.ndarray  # int (N,), -1 unreadable

    def __len__(self) -> int:
        return len(self.ball)

    def __getitem__(self, rows) -> "Objects":
        """Return the objects of some frames (a slice, mask or index array)."""
        return Objects(*(getattr(self, name)[rows] for name in FIELDS))


FIELDS = tuple(field.name for field in dataclasses.fields(Objects))
