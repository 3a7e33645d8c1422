"""What followed a patch in training: a table of counts beside the layers.

Contract: a key is what surrounds a cell in the last frames: where an object is, and how it moves.
Its entry is the token that came next most often, and how sure that is. Levels go from small keys
to large ones; each has only the keys for which it knows better than the levels before (backing
off, Katz 1987). The table is counted once, by `v2.data.patch_counts`; the layers learn how far to
trust it. A training window reads one that was counted without its own game (cross-fitting, Stone
1974), since what a table says of what it has counted is too good. Knows nothing of games.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from v2.models.cells import at_cells
from v2.models.patch_hash import PRIME, hash_patches, joined

NUM_SURE = 8  # how sure an entry is, from 1; 0: there is none
SLOTS = 8  # entries of a bucket


class Level(NamedTuple):
    radii: tuple[int, ...]  # of the patches in the last frame, in the one before, ...
    has_moved_only: bool = True  # what stood still in the last step is left out of the patches
    has_action: bool = False


LEVELS = (
    Level((1, 1)),
    Level((2, 2)),
    Level((2, 3)),
    Level((2, 3, 2)),
    Level((2, 2), has_moved_only=False, has_action=True),
)
FRAMES = max(len(level.radii) for level in LEVELS)
RADIUS = 2  # cells around motion that have an entry


class Patch(NamedTuple):
    """Around a cell, in one of the frames of a history."""

    back: int  # frames before the last
    radius: int
    has_moved_only: bool


def _patches(level: Level) -> list[Patch]:
    return [Patch(back, r, level.has_moved_only) for back, r in enumerate(level.radii)]


class PatchTable(nn.Module):
    """A hash table of 2^bits buckets."""

    entries: torch.Tensor  # int32 (buckets, SLOTS): what is left of the key, times 8 K, + found
    folds: torch.Tensor | None  # (folds, buckets, SLOTS): each without some games; in training

    def __init__(self, bits: int, num_codes: int, grid: tuple[int, int]):
        super().__init__()
        self.num_codes, self.grid, self.num_buckets = num_codes, grid, 1 << bits
        self.num_found = NUM_SURE * num_codes  # what an entry may say: K * sure + token
        self.register_buffer("entries", torch.zeros(self.num_buckets, SLOTS, dtype=torch.int32))
        self.register_buffer("folds", None, persistent=False)

    def forward(
        self, history: torch.Tensor, action: torch.Tensor, cells: torch.Tensor | None,
        fold: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Look up what each level says of each cell, int64 (B, M, levels); 0 where it has nothing.

        Args:
            history: tokens (B, T, N), oldest first; action: int64 (B,), the one taken now.
            cells: at these only, int64 (B, M); None: at all.
            fold: which of `folds` each sample reads, int64 (B,), -1 nothing; None: the whole table.
        """
        is_near = at_cells(self.is_near_motion(history), cells).unsqueeze(2)
        keys = at_cells(self.keys(history, action), cells)
        if fold is None:
            return self.look_up(keys) * is_near
        fold = fold.view(-1, 1, 1)
        return self.look_up(keys, fold.clamp(min=0)) * is_near * (fold >= 0)

    def look_up(self, keys: torch.Tensor, fold: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the entries of keys say, int64 of the same shape; 0 where there is none."""
        bucket, rest = self.place(keys)
        if fold is None:
            entries = self.entries[bucket]  # (..., SLOTS)
        else:
            assert self.folds is not None
            entries = self.folds[fold, bucket]
        is_it = entries // self.num_found == rest.unsqueeze(-1)
        return torch.where(is_it, entries % self.num_found, 0).amax(-1).long()

    def place(self, keys):
        """Return the bucket of keys, and what of a key stands in its entry to tell it from others.

        Args:
            keys: below `PRIME`, a tensor or an array.
        """
        return keys % self.num_buckets, keys // self.num_buckets % (PRIME // self.num_found)

    def of_last_level(self, found: torch.Tensor) -> torch.Tensor:
        """Return what the last level says that says something, as `level * num_found + found`.

        Args:
            found: int64 (..., levels).
        Returns:
            int64 (...), 0 where none does.
        """
        last = torch.zeros_like(found[..., 0])
        for level, here in enumerate(found.unbind(-1)):
            last = torch.where(here > 0, here + level * self.num_found, last)
        return last

    def keys(self, history: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return each level's key of each cell, int64 (B, N, levels) below `PRIME`."""
        hashed = self._hashed(history)
        keys: list[torch.Tensor] = []
        for level in LEVELS:
            key = history[:, -1] if level.has_moved_only else action.unsqueeze(1)
            for patch in _patches(level):
                key = joined(key, hashed[patch])
            keys.append(joined(key, len(keys)))
        return torch.stack(torch.broadcast_tensors(*keys), 2)

    def _hashed(self, history: torch.Tensor) -> dict[Patch, torch.Tensor]:
        """Hash what the levels read, all of a radius at once: each int64 (B, N)."""
        hashed: dict[Patch, torch.Tensor] = {}
        stood = history[:, -1] == history[:, -2]
        moved = torch.where(stood.unsqueeze(1), self.num_codes + 1, history)
        wanted = dict.fromkeys(patch for level in LEVELS for patch in _patches(level))
        for radius in {patch.radius for patch in wanted}:
            patches = [patch for patch in wanted if patch.radius == radius]
            frames = [
                (moved if patch.has_moved_only else history)[:, -1 - patch.back]
                for patch in patches
            ]
            found = hash_patches(torch.cat(frames), radius, self.num_codes, self.grid)
            hashed |= dict(zip(patches, found.chunk(len(patches)), strict=True))
        return hashed

    def is_near_motion(self, history: torch.Tensor) -> torch.Tensor:
        """Tell which cells lie within two of a change of the last step, bool (B, N)."""
        moved = (history[:, -1] != history[:, -2]).float().unflatten(1, self.grid).unsqueeze(1)
        return F.max_pool2d(moved, 2 * RADIUS + 1, stride=1, padding=RADIUS).flatten(1) > 0
