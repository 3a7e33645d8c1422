"""A number for the tokens around a cell, by which they are looked up as one key.

Contract: patches that are equal have equal numbers on every machine; two that differ share one by
a chance of about one in 2^31. Knows nothing of tables or games.
"""

import numpy as np
import torch
from torch.nn import functional as F

PRIME = 2**31 - 1
LARGEST_RADIUS = 3  # cells
# Below 2^27: a sum of seven products with numbers below `PRIME` fits int64. Rows and columns have
# their own, so that no two places of a patch count alike.
ROW_FACTORS, COLUMN_FACTORS, JOIN_FACTORS = (
    np.random.default_rng(seed).integers(2**20, 2**27, 2 * LARGEST_RADIUS + 1).tolist()
    for seed in range(3)
)


def hash_patches(tokens: torch.Tensor, radius: int, outside: int, grid) -> torch.Tensor:
    """Hash the patch around each cell of frames (B, N), int64 (B, N) below `PRIME`.

    Args:
        outside: stands for the tokens outside of the frame.
    """
    (height, width), span = grid, range(2 * radius + 1)
    padded = F.pad(tokens.unflatten(1, grid), (radius,) * 4, value=outside) + 1
    rows = sum(COLUMN_FACTORS[j] * padded[:, :, j : j + width] for j in span) % PRIME
    return (sum(ROW_FACTORS[i] * rows[:, i : i + height] for i in span) % PRIME).flatten(1)


def joined(key: torch.Tensor, other: torch.Tensor | int, which: int = 0) -> torch.Tensor:
    """Return the number of a key and another, in this order, below `PRIME`.

    Args:
        which: of several numbers, for keys that must not share all of them.
    """
    return (key * JOIN_FACTORS[which] + other) % PRIME
