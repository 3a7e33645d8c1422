"""Which codes the game shows side by side, and dreamed frames mended that hold other pairs.

Contract: positions are predicted each by itself, so halves of two digits, or half of a ball, may
come to stand side by side, and what no frame of the game holds is never put right again. One table
for each row of the grid says which pairs the training games hold; a frame with others becomes the
likeliest one without, by max-product belief propagation (Pearl 1988). The tables say, too, which
of them always move on within the frames that a model sees: it cannot tell how long they stood.
Knows nothing of models, games or files.
"""

from typing import NamedTuple

import numpy as np
import torch

PENALTY = 30.0  # nats of a pair that was never seen
NUM_ROUNDS = 10  # in which what is known spreads by a cell
CHUNK = 20_000  # frames
FEW = 30  # frames with a pair, which do not tell whether it ever stands
NEVER, PASSING, LASTING = 0, 1, 2  # never seen; always moved on within a window; may stand


class SeenPairs(NamedTuple):
    """Tables of NEVER, PASSING and LASTING, uint8."""

    right: torch.Tensor  # (h, K, K): in a row, the second code right of the first
    below: torch.Tensor  # (h - 1, K, K): the second code below the first, which is in the row


def seen_pairs(
    tokens: np.ndarray, frames: np.ndarray, starts: np.ndarray, length: int,
    grid: tuple[int, int], num_codes: int,
) -> SeenPairs:  # fmt: skip
    """Return the pairs of codes that some frames hold, and which of them may stand.

    Args:
        tokens: (M, N), of all frames; frames: rows of those that count, int (n,).
        starts: rows of the first frames of their windows; length: of a window, in frames.
    """
    counts = [np.zeros((height, num_codes, num_codes), int) for height in (grid[0], grid[0] - 1)]
    for some in _chunks(frames):
        part = tokens[some].reshape(-1, *grid)
        for count, (first, second) in zip(counts, _neighbours(part), strict=True):
            row = np.arange(len(count))[:, None]
            place = (row * num_codes + first) * num_codes + second
            count += np.bincount(place.ravel(), minlength=count.size).reshape(count.shape)
    tables = [
        np.select([count == 0, count < FEW], [NEVER, LASTING], PASSING).astype(np.uint8)
        for count in counts
    ]
    for some in _chunks(starts):
        window = tokens[some[:, None] + np.arange(length)].reshape(-1, length, *grid)
        pairs, stand = _neighbours(window[:, 0]), _neighbours((window == window[:, :1]).all(1))
        for table, (first, second), both in zip(tables, pairs, stand, strict=True):
            _, row, _ = (where := np.logical_and(*both).nonzero())
            table[row, first[where], second[where]] = LASTING
    return SeenPairs(*map(torch.from_numpy, tables))


def _chunks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def _neighbours(grids):
    """Return views of an array or tensor (B, h, w): left and right cells, upper and lower ones."""
    return (grids[:, :, :-1], grids[:, :, 1:]), (grids[:, :-1], grids[:, 1:])


def either(first: SeenPairs, second: SeenPairs) -> SeenPairs:
    """Return the pairs that one of the two holds."""
    return SeenPairs(*map(torch.maximum, first, second))


def num_overstayed(frames: torch.Tensor, seen: SeenPairs) -> torch.Tensor:
    """Return in how many pairs each place is that stand in all frames and never did, (B, h, w).

    Args:
        frames: tokens of a window, (B, T, h, w).
    """
    tokens, stands = frames[:, -1], (frames == frames[:, -1:]).all(1)
    count = torch.zeros_like(tokens)
    for states, (one, other), places in zip(
        _states(tokens, seen), _neighbours(stands), _neighbours(count), strict=True
    ):
        for place in places:
            place += (states == PASSING) & one & other
    return count


def num_unseen(tokens: torch.Tensor, seen: SeenPairs) -> torch.Tensor:
    """Return how many pairs of each frame were never seen, (B,), from tokens (B, h, w)."""
    return sum((states == NEVER).sum((1, 2)) for states in _states(tokens, seen))


def _states(tokens: torch.Tensor, seen: SeenPairs) -> list[torch.Tensor]:
    """Return what the tables say of the pairs of frames (B, h, w), to the right and below."""
    rows = torch.arange(tokens.shape[1], device=tokens.device)[:, None]
    pairs = zip(seen, _neighbours(tokens), strict=True)
    return [table[rows[: len(table)], first, second] for table, (first, second) in pairs]


@torch.no_grad()
def mended(tokens: torch.Tensor, scores: torch.Tensor, seen: SeenPairs) -> torch.Tensor:
    """Return frames (B, h, w) in which as few pairs as can be found were never seen.

    Args:
        scores: (B, h, w, K), in nats, how likely each code is at each place.
    """
    rows = num_unseen(tokens, seen).nonzero().flatten()
    if not len(rows):
        return tokens
    found = _likeliest(scores[rows], seen)
    is_better = _worth(found, scores[rows], seen) > _worth(tokens[rows], scores[rows], seen)
    chosen = torch.where(is_better[:, None, None], found, tokens[rows])
    return tokens.index_copy(0, rows, chosen)


def _likeliest(scores: torch.Tensor, seen: SeenPairs) -> torch.Tensor:
    right, below = (-PENALTY * (table == NEVER).float()[:, None] for table in seen)  # (h, 1, K, K)
    of_left, of_right, of_above, of_below = (torch.zeros_like(scores) for _ in range(4))
    for _ in range(NUM_ROUNDS):
        all_of = scores + of_left + of_right + of_above + of_below
        # what a cell hears from a neighbour leaves out what it told it
        messages = (
            _message((all_of - of_right)[:, :, :-1], right),
            _message((all_of - of_left)[:, :, 1:], right.mT),
            _message((all_of - of_below)[:, :-1], below),
            _message((all_of - of_above)[:, 1:], below.mT),
        )
        of_left[:, :, 1:], of_right[:, :, :-1], of_above[:, 1:], of_below[:, :-1] = messages
    return (scores + of_left + of_right + of_above + of_below).argmax(-1)


def _message(told: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Return what cells (B, h, w, K) let their neighbours expect, the best at zero."""
    best = (told.unsqueeze(-1) + penalty).amax(-2)
    return best - best.amax(-1, keepdim=True)


def _worth(tokens: torch.Tensor, scores: torch.Tensor, seen: SeenPairs) -> torch.Tensor:
    of_codes = scores.gather(3, tokens.unsqueeze(3)).sum((1, 2, 3))
    return of_codes - PENALTY * num_unseen(tokens, seen)
