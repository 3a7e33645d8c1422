"""Learnt look-ups of what surrounds a cell (arXiv 1709.03933), as one key instead of many parts.

Contract: sums of embeddings say what each token means, and leave it to the layers to learn what
they mean together. Here a whole 3x3 patch has an embedding of its own in each frame (where in its
cells a ball is), and so has the last frame's patch together with the 5x5 patch of the frame before
(its velocity). Keys that fall on one row share it. Knows nothing of games.
"""

import torch
from torch import nn

from v2.models.cells import at_cells
from v2.models.patch_hash import hash_patches, joined

ROWS_OF_PAIR = 2  # two keys seldom share both


class PatchMemory(nn.Module):
    """Two tables: of 2^bits patches, and of twice as many for each of a pair's rows."""

    def __init__(self, bits: int, width: int, dim: int, history: int, num_codes: int, grid):
        super().__init__()
        self.num_codes, self.grid = num_codes, grid
        self.patches = nn.Embedding(1 << bits, width)
        self.pairs = nn.Embedding(ROWS_OF_PAIR << bits + 1, width)
        self.to_dim = nn.Linear((history + ROWS_OF_PAIR) * width, dim, bias=False)
        for table in (self.patches, self.pairs):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.to_dim.weight, std=0.15)  # large: rows that are seldom seen soon count

    def forward(self, history: torch.Tensor, cells: torch.Tensor | None) -> torch.Tensor:
        """Return what the tables hold for each cell of a history (B, T, N), (B, M, D).

        Args:
            cells: at these only, int64 (B, M); None: at all.
        """
        small = hash_patches(history.flatten(0, 1), 1, self.num_codes, self.grid).view_as(history)
        before = hash_patches(history[:, -2], 2, self.num_codes, self.grid)
        pairs = torch.stack([joined(before, small[:, -1], i) for i in range(ROWS_OF_PAIR)], 2)
        num_rows = self.pairs.num_embeddings // ROWS_OF_PAIR
        pairs = pairs % num_rows + torch.arange(ROWS_OF_PAIR, device=pairs.device) * num_rows
        patches = small.transpose(1, 2) % self.patches.num_embeddings
        found = [
            table(at_cells(keys, cells)).flatten(2)
            for table, keys in ((self.patches, patches), (self.pairs, pairs))
        ]
        return self.to_dim(torch.cat(found, 2))
