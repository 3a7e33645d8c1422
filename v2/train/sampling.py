"""What a training step draws: rows of frames and windows with events.

Contract: every draw depends on the seed and the step alone, so that a resumed run repeats it. From
pixels, tokens, rewards and ends; nothing here knows a game.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from v2.data.tokens import TokenData
from v2.models.temporal_world_model import MAX_AGE
from v2.runtime.device import moved


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Return the generator that decides batch and choices of one step."""
    return np.random.default_rng([seed, step])


class Rows:
    """Rows to draw batches from, the draws those of `Generator.choice`, sums made only once."""

    def __init__(self, rows: np.ndarray, chances: np.ndarray | None = None):
        self.rows, self.cumulative = rows, None
        if chances is not None:
            self.cumulative = chances.cumsum(dtype=np.float64)
            self.cumulative /= self.cumulative[-1]

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        if self.cumulative is None:
            return rng.choice(self.rows, count)
        return self.rows[self.cumulative.searchsorted(rng.random(count), side="right")]


@dataclass
class Windows:
    """B windows of 4 + K frames."""

    tokens: torch.Tensor  # int64 (B, 4 + K, N)
    actions: torch.Tensor  # int64 (B, 3 + K), each taken at the frame of its index
    reward_signs: torch.Tensor  # int64 (B, K) in 0, 1, 2: negative, zero, positive
    terminated: torch.Tensor  # float32 (B, K)
    history: torch.Tensor | None = None  # int64 (B, 4, N): what the model reads; None: the truth
    age: torch.Tensor | None = None  # int64 (B, N) of the last history frame; None: all unknown
    fold: torch.Tensor | None = None  # int64 (B,) of the table of patches; None: the whole table

    def to(self, device: torch.device) -> "Windows":
        return Windows(**{k: moved(t, device) for k, t in vars(self).items() if t is not None})

    def first_step(self) -> "Windows":
        """Return the windows of the first step alone, as with K = 1."""
        more = self.reward_signs.shape[1] - 1
        return Windows(
            self.tokens[:, : self.tokens.shape[1] - more],
            self.actions[:, : self.actions.shape[1] - more],
            self.reward_signs[:, :1], self.terminated[:, :1], self.history, self.age, self.fold,
        )  # fmt: skip

    def read_history(self, length: int) -> torch.Tensor:
        """Return the frames (B, 4, N) that the model begins with."""
        return self.tokens[:, :length] if self.history is None else self.history


def read_windows(data: TokenData, starts: np.ndarray, history: int, steps: int) -> Windows:
    """Read the windows that begin at these rows."""
    rows = starts[:, None] + np.arange(history + steps)
    outcome = rows[:, history - 1 : -1]  # the steps whose results are predicted
    return Windows(
        torch.from_numpy(data.tokens[rows]).long(),
        torch.from_numpy(data.actions[rows[:, :-1]]).long(),
        torch.from_numpy(np.sign(data.rewards[outcome])).long() + 1,
        torch.from_numpy(data.terminated[outcome]).float(),
    )


BLOCK = 4096  # rows looked at together
END_SHARE = 0.1  # of the draws for events


def rare_motion_chances(
    frames: np.ndarray, rows: np.ndarray, before: np.ndarray, share: float, threshold: int = 20
) -> np.ndarray:
    """Return the chance with which to draw each frame, (n,): more often where motion is rare.

    A frame scores the largest 1 / (how often that pixel moves) of its moving pixels, at most ten
    times the median score: a ball among bricks is then seen oftener than one in the open.

    Args:
        frames: uint8 (M, H, W, 3).
        rows, before: the frames to draw from and those before them, (n,).
        share: of the draws that follow the scores; the others are uniform.
        threshold: a pixel moves where some colour differs by more, of 255.
    """
    parts = np.array_split(np.arange(len(rows)), max(1, len(rows) // 1024))

    def moving(part):  # (n, H * W)
        here, there = frames[rows[part]], frames[before[part]]
        differ = np.maximum(here, there) - np.minimum(here, there) > threshold
        return differ.any(-1).reshape(len(part), -1)

    bar = functools.partial(tqdm, parts, leave=False, delay=3, disable=None)
    counts = sum(moving(part).sum(0) for part in bar(desc="motion of each pixel"))
    rarity = (1 / counts.clip(1)).astype(np.float32)
    parted = [(moving(part) * rarity).max(1) for part in bar(desc="motion of each frame")]
    scores = np.concatenate(parted)
    if (scores > 0).any():
        scores = scores.clip(max=10 * np.median(scores[scores > 0]))
    chances = (1 - share) / len(rows) + share * scores / max(scores.sum(), 1e-12)
    return chances / chances.sum()


def known_steps(draws: np.ndarray, share: float, history: int) -> np.ndarray:
    """Draw for how many steps a dream has gone on, its history included, int64 (B,).

    Args:
        draws: (B,) of 0 to 1; below `share` a dream was reset: half of these just now, the others
            at a time whose logarithm is uniform.
    """
    least = history - 1
    when = (2 * draws / max(share, 1e-9) - 1).clip(0, 1)
    steps = (least * (MAX_AGE / least) ** when).astype(np.int64)
    return np.where(draws < share, steps, MAX_AGE)


def event_steps(
    tokens: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, grid: tuple[int, int],
    max_rate: float = 0.05,
) -> np.ndarray:  # fmt: skip
    """Tell at which rows something happens that motion does not announce, bool (M,).

    A reward or the end; a token that changes though nothing within two cells of it moved in the
    three steps before (serves, bricks, digits); an object that comes back to a cell which it left
    in the three steps before (bounces): there the token is unlike the cell's most frequent one
    again. Returns count only in cells that change in less than `max_rate` of the steps. What is
    said of the first three rows of an episode and of its last means nothing.

    Args:
        tokens: uint8 (M, N), consecutive frames.
        rewards, terminated: (M,), of the step taken at each row.
        grid: (h, w); max_rate: of the steps.
    """
    events = (rewards != 0) | terminated
    usual = np.array([np.bincount(cell).argmax() for cell in tokens.T], np.uint8)
    changes = sum(np.not_equal(a[1:], a[:-1]).sum(0) for a in _overlapping(tokens))
    is_quiet = torch.from_numpy(changes < max_rate * len(tokens))
    for first in range(3, len(tokens) - 1, BLOCK):
        rows = tokens[first - 3 : first + BLOCK + 1]  # from three before the first to one after
        seen = torch.from_numpy(rows)
        changed = seen[1:] != seen[:-1]
        moved = (changed[:-3] | changed[1:-2] | changed[2:-1]).float().unflatten(1, grid)
        near = F.max_pool2d(moved.unsqueeze(1), 5, stride=1, padding=2).flatten(1) > 0
        is_object = torch.from_numpy(rows != usual)
        was_object = is_object[:-4] | is_object[1:-3] | is_object[2:-2]
        returns = was_object & ~is_object[3:-1] & is_object[4:] & is_quiet
        happened = ((changed[3:] & ~near) | returns).any(1).numpy()
        events[first : first + len(happened)] |= happened
    return events


def _overlapping(tokens: np.ndarray):
    """Yield blocks of rows (n + 1, N) that share their last and first."""
    for first in range(0, len(tokens) - 1, BLOCK):
        yield tokens[first : first + BLOCK + 1]


def event_chances(
    events: np.ndarray, ends: np.ndarray, starts: np.ndarray, history: int, steps: int,
    share: float,
) -> np.ndarray | None:  # fmt: skip
    """Return the chance to draw each window, (n,); None where no window has an event.

    Args:
        events, ends: bool (M,); starts: first rows of the windows, (n,).
        share: of the draws that go to windows with an event in the steps that are predicted, some
            of them (`END_SHARE`) to those with the end of a game, which is the rarest.
    """
    has_event, has_end = (_within(rows, starts + history - 1, steps) for rows in (events, ends))
    if not share or not has_event.any():
        return None
    end_share = share * END_SHARE if has_end.any() else 0.0
    chances = (share - end_share) * has_event / has_event.sum()
    chances += end_share * has_end / max(has_end.sum(), 1)
    return chances + (1 - share) / len(starts)


def _within(happens: np.ndarray, first: np.ndarray, steps: int) -> np.ndarray:
    """Tell where something happens in the rows first .. first + steps - 1."""
    total = np.concatenate([[0], np.cumsum(happens)])
    return total[first + steps] > total[first]
