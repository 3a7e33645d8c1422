"""Active cells: the few cells of a frame that a step predicts; the others are copied.

Contract: the same M cells for the same history, in training, evaluation, play and export: those
that moved in it, then their neighbours, then the cells two away, then those in which training saw
the most changes far from any motion (digits, lives). Nothing is drawn by chance, and what is
predicted is not looked at.
"""

import torch
from torch.nn import functional as F

RINGS = 2  # cells around motion that count as near


def distance_from_motion(history: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return how far each cell lies from what moved in a history (B, T, N): 0, 1, 2, or 3 for more.

    Returns:
        int64 (B, N).
    """
    moved = (history[:, 1:] != history[:, :-1]).any(1).float().unflatten(1, grid).unsqueeze(1)
    rings = [F.max_pool2d(moved, 2 * r + 1, stride=1, padding=r) for r in range(RINGS + 1)]
    return (RINGS + 1 - sum(rings)).flatten(1).long()  # type: ignore[union-attr]  # no int


def cell_order(
    history: torch.Tensor, far_rank: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """Return by what the cells of a history are chosen, the least first, int64 (B, N); all differ.

    Args: see `active_cells`.
    """
    return distance_from_motion(history, grid) * len(far_rank) + far_rank


def active_cells(
    history: torch.Tensor, far_rank: torch.Tensor, count: int, grid: tuple[int, int]
) -> torch.Tensor:
    """Choose M cells of each history, int64 (B, M), ascending.

    Args:
        history: tokens (B, T, N).
        far_rank: int64 (N,), a permutation; 0 is the cell with the most changes far from motion.
        count: M, at most N.
    """
    order = cell_order(history, far_rank, grid)
    return order.topk(count, largest=False, sorted=False).indices.sort(1).values


def nearest_cells(
    cells: torch.Tensor, place: torch.Tensor, count: int, grid: tuple[int, int]
) -> torch.Tensor:
    """Return those of the cells (B, M) that are nearest to one cell (B, 1), int64, at most M.

    Nearness is the larger of the distances in rows and columns, then the order in `cells`.
    """
    rows, columns = (cells // grid[1], cells % grid[1])
    row, column = place // grid[1], place % grid[1]
    distance = torch.maximum((rows - row).abs(), (columns - column).abs())
    order = distance * cells.shape[1] + torch.arange(cells.shape[1], device=cells.device)
    nearest = order.topk(min(count, cells.shape[1]), largest=False).indices
    return cells.gather(1, nearest)


def at_cells(values: torch.Tensor, cells: torch.Tensor | None) -> torch.Tensor:
    """Return values (B, N) or (B, N, K) at some cells (B, M); None: at all."""
    if cells is None:
        return values
    if values.ndim == 2:
        return values.gather(1, cells)
    return values.gather(1, cells.unsqueeze(2).expand(-1, -1, values.shape[2]))


def far_changes(history: torch.Tensor, following: torch.Tensor, grid) -> torch.Tensor:
    """Count, for each cell, the changes that came far from any motion, (N,).

    Args:
        history: tokens (B, T, N); following: the frame after, (B, N).
    """
    is_far = distance_from_motion(history, grid) > RINGS
    return (is_far & (following != history[:, -1])).sum(0)


def rank_of(changes: torch.Tensor) -> torch.Tensor:
    """Return the place of each cell in the order of most changes, (N,); ties by index."""
    order = changes.argsort(descending=True, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
