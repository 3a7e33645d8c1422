"""How much of what changes lies in the active cells, and how many of them a game needs.

Contract: from tokens of one split alone; no game is known. The table of far changes and the count
are made of the training games and travel in the checkpoint.
"""

from dataclasses import dataclass

import numpy as np
import torch

from v2.data.atari_dataset import spread, window_starts
from v2.data.tokens import TokenData
from v2.models.cells import cell_order, far_changes, rank_of
from v2.models.temporal_world_model import WorldModelConfig

COUNTS = range(32, 337, 16)  # among which `choose_count` chooses
MIN_CHANGED, MIN_WHOLE = 0.999, 0.99  # shares that are enough
HISTORY = WorldModelConfig.history  # frames that the choice looks at
MAX_WINDOWS = 40_000  # looked at, evenly spread
BATCH = 1024


@dataclass(frozen=True)
class Coverage:
    """What M active cells hold of the next frames."""

    count: int  # M
    changed: float  # share of the changed tokens
    whole: float  # share of the frames all of whose changes they hold
    num_windows: int

    def __str__(self) -> str:
        return (
            f"{self.count} active cells hold {self.changed:.2%} of the changed tokens, all of "
            f"them in {self.whole:.1%} of {self.num_windows} frames"
        )


def far_rank(tokens: TokenData, grid: tuple[int, int]) -> torch.Tensor:
    """Return the place of each cell by its changes far from motion in the training games, (N,)."""
    changes = sum(far_changes(w[:, :-1], w[:, -1], grid) for w in _windows(tokens, "train"))
    return rank_of(changes)  # type: ignore[arg-type]  # a sum of tensors is one


def coverage(
    tokens: TokenData, rank: torch.Tensor, count: int, grid: tuple[int, int]
) -> Coverage:
    """Measure what `count` active cells hold of the held-out games' next frames."""
    return coverages(tokens, rank, grid, "val")[count]


def coverages(
    tokens: TokenData, rank: torch.Tensor, grid: tuple[int, int], split: str
) -> list[Coverage]:
    """Measure what 0, 1, ... N active cells hold of a split's next frames."""
    changed, whole = torch.zeros(2, len(rank) + 1, dtype=torch.long)  # by the cells they need
    for windows in _windows(tokens, split):
        history, following = windows[:, :-1], windows[:, -1]
        place = cell_order(history, rank, grid).argsort(1).argsort(1)
        needed = (place + 1) * (following != history[:, -1])  # 0: it stays
        changed += needed.flatten().bincount(minlength=len(changed))
        whole += needed.amax(1).bincount(minlength=len(whole))
    changed[0] = 0
    num_changed, num_windows = int(changed.sum()), int(whole.sum())
    return [
        Coverage(count, held / num_changed if num_changed else 1.0, frames / num_windows,
                 num_windows)
        for count, (held, frames) in enumerate(
            zip(changed.cumsum(0).tolist(), whole.cumsum(0).tolist(), strict=True)
        )
    ]  # fmt: skip


def choose_count(tokens: TokenData, rank: torch.Tensor, grid: tuple[int, int]) -> Coverage:
    """Return the smallest of `COUNTS` that holds enough of the training games, and what it holds.

    Enough is `MIN_CHANGED` of the changed tokens and all of them in `MIN_WHOLE` of the frames; a
    game in which much moves needs more cells, at most all.
    """
    of_counts = coverages(tokens, rank, grid, "train")
    for count in (*(n for n in COUNTS if n < len(rank)), len(rank)):
        found = of_counts[count]
        if found.changed >= MIN_CHANGED and found.whole >= MIN_WHOLE:
            break
    return found


def _windows(tokens: TokenData, split: str):
    """Yield windows of four frames and the next, int64 (B, 5, N), evenly spread over a split."""
    starts = window_starts(tokens.episode_ids, HISTORY + 1, tokens.rows_of(split))
    starts = spread(starts, MAX_WINDOWS)
    for first in range(0, len(starts), BATCH):
        rows = starts[first : first + BATCH, None] + np.arange(HISTORY + 1)
        yield torch.from_numpy(tokens.tokens[rows]).long()
