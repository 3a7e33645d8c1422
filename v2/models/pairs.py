"""Which codes the game shows side by side, and dreamed frames mended that hold other pairs.

Contract: positions are predicted each by itself, so halves of two digits, or half of a ball, may
come to stand side by side, and what no frame of the game holds is never put right again. One table
for each row of the grid says which pairs the training games hold; a frame with others becomes the
likeliest one without, by max-product belief propagation (Pearl 1988). Knows nothing of models,
games or files.
"""

from typing import NamedTuple

import numpy as np
import torch

PENALTY = 30.0  # nats of a pair that was never seen
NUM_ROUNDS = 10  # in which what is known spreads by a cell
CHUNK = 20_000  # frames


class SeenPairs(NamedTuple):
    right: torch.Tensor  # bool (h, K, K): in a row, the second code right of the first
    below: torch.Tensor  # bool (h - 1, K, K): the second code below the first, which is in the row


def seen_pairs(
    tokens: np.ndarray, frames: np.ndarray, grid: tuple[int, int], num_codes: int
) -> SeenPairs:
    """Return the pairs of codes that some frames hold.

    Args:
        tokens: (M, N), of all frames; frames: rows of those that count, int (n,).
    """
    rows = np.arange(grid[0])[:, None]
    right = np.zeros((grid[0], num_codes, num_codes), bool)
    below = np.zeros((grid[0] - 1, num_codes, num_codes), bool)
    for start in range(0, len(frames), CHUNK):
        part = tokens[frames[start : start + CHUNK]].reshape(-1, *grid)
        right[rows, part[:, :, :-1], part[:, :, 1:]] = True
        below[rows[:-1], part[:, :-1], part[:, 1:]] = True
    return SeenPairs(torch.from_numpy(right), torch.from_numpy(below))


def either(first: SeenPairs, second: SeenPairs) -> SeenPairs:
    """Return the pairs that one of the two holds."""
    return SeenPairs(first.right | second.right, first.below | second.below)


def num_unseen(tokens: torch.Tensor, seen: SeenPairs) -> torch.Tensor:
    """Return how many pairs of each frame were never seen, (B,), from tokens (B, h, w)."""
    rows = torch.arange(tokens.shape[1], device=tokens.device)[:, None]
    right = seen.right[rows, tokens[:, :, :-1], tokens[:, :, 1:]]
    below = seen.below[rows[:-1], tokens[:, :-1], tokens[:, 1:]]
    return (~right).sum((1, 2)) + (~below).sum((1, 2))


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
    right, below = (-PENALTY * (~table).float()[:, None] for table in seen)  # (h, 1, K, K)
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
