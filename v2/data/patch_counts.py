"""Count what follows each patch in tokenized games, and fill a model's table with it.

Contract: deterministic, from tokens and actions alone; see `v2.models.patch_table`.
"""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from v2.data.atari_dataset import seeds_of, window_starts
from v2.data.tokens import TokenData
from v2.models.patch_table import FRAMES, LEVELS, SLOTS, PatchTable

BATCH, CELLS = 2048, 1 << 20  # frames, and cells, looked at together
SURE_FROM = (0.5, 0.7, 0.85, 0.95)  # shares of the counts; each is another degree of sure


class Seen(NamedTuple):
    """What was seen of n cells near motion."""

    keys: np.ndarray  # int32 (n, levels)
    guess: np.ndarray  # uint8 (n,): what the levels so far say comes next
    tokens: np.ndarray  # uint8 (n,): what came


class Exceptions(NamedTuple):
    """Keys of a level that know better than the levels before, each (n,)."""

    keys: np.ndarray
    tokens: np.ndarray  # what came next most often
    gains: np.ndarray  # cells that become right
    sure: np.ndarray  # 1 to NUM_SURE - 1


def counted_rows(tokens: TokenData, share: float) -> np.ndarray:
    """Return the rows of those training games that are counted; no window comes from them.

    A game is all episodes of a seed: after a rewind one repeats what the one before has shown.
    """
    rows = tokens.rows_of("train")
    of_row = seeds_of(tokens.meta["episodes"], tokens.episode_ids[rows])
    games = np.unique(of_row)
    order = np.arange(len(games))
    is_counted = np.floor((order + 1) * share) > np.floor(order * share)
    return rows[np.isin(of_row, games[is_counted])]


@torch.inference_mode()
def fill(table: PatchTable, tokens: TokenData, rows: np.ndarray) -> int:
    """Count the steps within these rows (whole games), write the table, and return its entries.

    Where a bucket is full, later levels, and of a level what gains less, are left out. Takes some
    30 bytes of memory for each cell near motion, 60 of which a frame of Breakout has.
    """
    starts = window_starts(tokens.episode_ids, FRAMES + 1)
    last = starts[np.isin(starts, rows)] + FRAMES - 1
    parts = np.array_split(last, len(last) // BATCH + 1)
    bar = tqdm(parts, desc="count patches", unit="batch", disable=None)
    found = [_seen(table, tokens, part) for part in bar]
    seen = Seen(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    del found
    taken = np.zeros(table.num_buckets, np.int64)
    for level in range(len(LEVELS)):
        better = _exceptions(seen, level, table.num_codes)
        bucket, rest = table.place(better.keys)
        order = np.lexsort((-better.gains, bucket))
        bucket, rest = bucket[order], rest[order]
        better = Exceptions(*(part[order] for part in better))
        slot = np.arange(len(bucket)) - np.searchsorted(bucket, bucket) + taken[bucket]
        entry = rest * table.num_found + better.sure * table.num_codes + better.tokens
        has_room = slot < SLOTS
        entries = torch.from_numpy(entry[has_room]).int()
        table.entries[bucket[has_room], slot[has_room]] = entries
        taken = np.minimum(SLOTS, taken + np.bincount(bucket, minlength=len(taken)))
        for first in range(0, len(seen.tokens), CELLS):
            part = slice(first, first + CELLS)
            says = table.look_up(torch.from_numpy(seen.keys[part, level]).long()).numpy()
            seen.guess[part] = np.where(says > 0, says % table.num_codes, seen.guess[part])
    return int(taken.sum())


def _seen(table: PatchTable, tokens: TokenData, rows: np.ndarray) -> Seen:
    """Return what was seen of the cells near motion in steps whose last frames are these rows."""
    history = torch.from_numpy(tokens.tokens[rows[:, None] + np.arange(1 - FRAMES, 1)]).long()
    near = table.is_near_motion(history)
    keys = table.keys(history, torch.from_numpy(tokens.actions[rows]).long())[near]
    of_last = tokens.tokens[rows][near.numpy()]
    return Seen(keys.int().numpy(), of_last, tokens.tokens[rows + 1][near.numpy()])


def _exceptions(seen: Seen, level: int, num_codes: int) -> Exceptions:
    """Find the keys of a level that know better than what is guessed so far."""
    packed = (seen.keys[:, level].astype(np.int64) * num_codes + seen.tokens) * 2
    packed, count = np.unique(packed + (seen.guess == seen.tokens), return_counts=True)
    was_right, packed = packed % 2, packed // 2  # ascending by key, then by token
    first = np.flatnonzero(np.diff(packed, prepend=-1))
    was_right = np.add.reduceat(count * was_right, first)
    packed, count = packed[first], np.add.reduceat(count, first)
    keys, next_tokens = packed // num_codes, packed % num_codes
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    most = np.maximum.reduceat(count * num_codes + next_tokens, first)
    total, before = np.add.reduceat(count, first), np.add.reduceat(was_right, first)
    right = most // num_codes
    sure = 3 + np.digitize(right / (total + 1), SURE_FROM)
    sure = np.where((total <= 2) & (right == total), total, sure)  # never otherwise, but seldom
    found = Exceptions(keys[first], most % num_codes, right - before, sure)
    is_better = found.gains > 0
    return Exceptions(*(part[is_better] for part in found))
