"""Hashed look-ups of what surrounds a cell (arXiv 1709.03933), as one key instead of many parts.

Contract: sums of embeddings say what each token means, and leave it to the layers to learn what
they mean together. Here a whole 3x3 patch has an embedding of its own in each frame (where in its
cells a ball is), and so has the last frame's patch together with the 5x5 patch of the frame before
(its velocity). Keys are sums of fixed random numbers, one for each place and token (Zobrist 1970);
keys that fall on one row share it. Knows nothing of games.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from v2.models.cells import at_cells

NUM_PAIR_HASHES = 2  # rows of a pair: two keys seldom share both


class PatchMemory(nn.Module):
    """Two tables: of 2^bits patches, and of twice as many rows for each hash of a pair."""

    def __init__(self, bits: int, width: int, dim: int, history: int, num_codes: int, grid):
        super().__init__()
        num_rows = 1 << bits
        self.patch_hash = PatchHash((1,), num_rows, num_codes, grid, seed=0)
        self.pair_hashes = nn.ModuleList(
            PatchHash((2, 1), 2 * num_rows, num_codes, grid, seed=1 + i)
            for i in range(NUM_PAIR_HASHES)
        )
        self.patches = nn.Embedding(num_rows, width)
        self.pairs = nn.Embedding(NUM_PAIR_HASHES * 2 * num_rows, width)
        self.to_dim = nn.Linear((history + NUM_PAIR_HASHES) * width, dim, bias=False)
        for table in (self.patches, self.pairs):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.to_dim.weight, std=0.15)  # large: rows that are seldom seen soon count

    def forward(self, history: torch.Tensor, cells: torch.Tensor | None) -> torch.Tensor:
        """Return what the tables hold for each cell of a history (B, T, N), (B, M, D).

        Args:
            cells: at these only, int64 (B, M); None: at all.
        """
        patches = self.patch_hash(history.flatten(0, 1).unsqueeze(1)).view_as(history)
        pairs = torch.stack([each(history[:, -2:]) for each in self.pair_hashes], 2)  # (B, N, 2)
        num_rows = self.pairs.num_embeddings // NUM_PAIR_HASHES
        pairs = pairs + torch.arange(NUM_PAIR_HASHES, device=history.device) * num_rows
        found = [
            table(at_cells(keys, cells)).flatten(2)
            for table, keys in ((self.patches, patches.transpose(1, 2)), (self.pairs, pairs))
        ]
        return self.to_dim(torch.cat(found, 2))


class PatchHash(nn.Module):
    """A number below `num_rows` for the tokens around each cell, in one frame or several."""

    numbers: torch.Tensor  # int64 (places, K + 1)

    def __init__(self, radii: tuple[int, ...], num_rows: int, num_codes: int, grid, seed: int):
        super().__init__()
        self.radii, self.num_rows, self.outside, self.grid = radii, num_rows, num_codes, grid
        shape = sum((2 * r + 1) ** 2 for r in radii), num_codes + 1
        numbers = np.random.default_rng(seed).integers(num_rows, size=shape)
        self.register_buffer("numbers", torch.from_numpy(numbers))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the row of each cell, int64 (B, N), for tokens (B, one for each radius, N)."""
        (height, width), margin = self.grid, max(self.radii)
        padded = F.pad(frames.unflatten(2, self.grid), (margin,) * 4, value=self.outside)
        places = []
        for frame, radius in enumerate(self.radii):
            span = range(margin - radius, margin + radius + 1)
            places += [padded[:, frame, i : i + height, j : j + width] for i in span for j in span]
        first = torch.arange(len(places), device=frames.device) * self.numbers.shape[1]
        index = torch.stack(places, 1).flatten(2) + first.view(-1, 1)  # (B, places, N)
        return self.numbers.flatten()[index].sum(1) % self.num_rows
