"""Which cells of a frame a step looks at: those near motion first.

Contract: from the history alone, so that the choice betrays nothing of what comes.
"""

import torch
from torch.nn import functional as F

MIN_POSITIONS = 9  # that `draw_positions` draws, one of them certain


def draw_positions(
    history: torch.Tensor, count: int, grid: tuple[int, int], draws: torch.Tensor,
    is_certain: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Draw positions, the nearer to what moved in the history the sooner; return them and chances.

    A quarter lies far from motion and holds a token that is rare in the last frame, such as digits
    or the edge of a hole in a wall, an eighth the other far ones.

    Args:
        history: tokens (B, 4, N). What is predicted is not looked at: the choice betrays nothing.
        count: M positions a sample, at least `MIN_POSITIONS`, and 8 more than are certain, for none
            to be left without a chance.
        draws: uniform in [0, 1), (B, N).
        is_certain: bool (B, N): drawn before all others, those with the least draws first.
    Returns:
        positions int64 (B, M) and the probability with which each was drawn, float32 (B, M).
    """
    group = 4 - sum(near.long() for near in _near_motion(history, grid))
    group = group + ((group == 4) & ~_is_rare(history[:, -1])).long()
    if is_certain is not None:
        group = group.masked_fill(is_certain, 0)
    numbers = F.one_hot(group, 6).sum(1)  # (B, 6)
    drawn = _shares(numbers, count)
    chances = (drawn / numbers.clamp_min(1)).gather(1, group).masked_fill(group == 0, 1)
    order = (draws + 3 * group).argsort(1)  # each group at random
    rank = torch.arange(order.shape[1], device=order.device)
    rank = rank - (numbers.cumsum(1) - numbers).gather(1, group).gather(1, order)  # in its group
    is_drawn = rank < drawn.gather(1, group).gather(1, order)
    positions = order[is_drawn].view(len(order), count)
    return positions, chances.gather(1, positions)


def _near_motion(history: torch.Tensor, grid: tuple[int, int]) -> list[torch.Tensor]:
    """Tell which positions moved in a history (B, T, N), and lie within one and two of such."""
    moved = (history[:, 1:] != history[:, :-1]).any(1)  # (B, N)
    cells = moved.float().unflatten(1, grid).unsqueeze(1)
    rings = [F.max_pool2d(cells, 2 * r + 1, stride=1, padding=r).flatten(1) > 0 for r in (1, 2)]
    return [moved, *rings]


def _is_rare(frame: torch.Tensor) -> torch.Tensor:
    """Tell which tokens of frames (B, N), below 256, occur in at most one cell of 64."""
    counts = frame.new_zeros(len(frame), 256).scatter_add_(1, frame, torch.ones_like(frame))
    return counts.gather(1, frame) <= frame.shape[1] // 64


def _shares(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Return how many positions to draw of each group, (B, 6), `count` together.

    Of those near motion the nearest come first, but some are of each group, so that all have a
    chance.

    Args:
        numbers: how many there are that are certain, moved, within one, within two, far and rare,
            and far.
    """
    certain = numbers[:, :1].clamp(max=count)
    left = count - certain
    few = torch.maximum(left // 16, (left >= MIN_POSITIONS - 1).long())
    least = torch.cat([few, few, few, left // 4, left // 8], 1)
    least = torch.minimum(least, numbers[:, 1:])
    more = left - least.sum(1, keepdim=True)
    filled = torch.minimum((numbers[:, 1:] - least).cumsum(1), more)
    return torch.cat([certain, least + filled.diff(dim=1, prepend=0 * certain)], 1)
