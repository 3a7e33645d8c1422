"""A number for the tokens around a cell, by which they are looked up as one key.

Contract: patches that are equal have equal numbers on every machine; two that differ share one by
a chance of about one in 2^31. Knows nothing of tables or games.
"""

import numpy as np
import torch
from torch.nn import functional as F

PRIME = 2**31 - 1
LARGEST_RADIUS = 3  # cells
# Below 2^27: a sum of seven products with numbers below `PRIME` fits int64.
FACTORS = np.random.default_rng(0).integers(2**20, 2**27, 2 * LARGEST_RADIUS + 1).tolist()


def hash_patches(tokens: torch.Tensor, radius: int, outside: int, grid) -> torch.Tensor:
    """Hash the patch around each cell of frames (B, N), int64 (B, N) below `PRIME`.

    Args:
        outside: stands for the tokens outside of the frame.
    """
    (height, width), factors = grid, FACTORS[: 2 * radius + 1]
    padded = F.pad(tokens.unflatten(1, grid), (radius,) * 4, value=outside) + 1
    row = sum(f * padded[:, :, j : j + width] for j, f in enumerate(factors)) % PRIME
    return (sum(f * row[:, i : i + height] for i, f in enumerate(factors)) % PRIME).flatten(1)


def joined(key: torch.Tensor, other: torch.Tensor | int, factor: int = FACTORS[0]) -> torch.Tensor:
    """Return the number of a key and another, in this order, below `PRIME`."""
    return (key * factor + other) % PRIME
