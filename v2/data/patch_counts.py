"""Count what follows each patch in tokenized games, and fill a model's table with it.

Contract: deterministic, from tokens and actions alone; a whole game is in one fold; see
`v2.models.patch_table`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from v2.data.atari_dataset import seeds_of, window_starts
from v2.data.npz import read_npz, write_npz
from v2.data.tokens import TokenData
from v2.models.patch_table import FRAMES, LEVELS, SLOTS, PatchTable

BATCH, CELLS = 2048, 1 << 20  # frames, and cells, looked at together
SURE_FROM = (0.5, 0.7, 0.85, 0.95)  # shares of the counts; each is another degree of sure


class Seen(NamedTuple):
    """What was seen of n cells near motion."""

    keys: np.ndarray  # int32 (n, levels)
    guess: np.ndarray  # uint8 (n,): the token that it had
    tokens: np.ndarray  # uint8 (n,): what came
    folds: np.ndarray  # int8 (n,): of whose game


class Exceptions(NamedTuple):
    """Keys of a level that know better than the levels before, each (n,)."""

    keys: np.ndarray
    tokens: np.ndarray  # what came next most often
    gains: np.ndarray  # cells that become right
    sure: np.ndarray  # 1 to NUM_SURE - 1


def fold_of_rows(tokens: TokenData, num_folds: int) -> np.ndarray:
    """Return the fold of each row's game, int64 (M,); -1 outside of training, or of a lone game.

    A game is all episodes of a seed: after a rewind one repeats what the one before has shown.
    """
    rows, folds = tokens.rows_of("train"), np.full(len(tokens), -1)
    games, of_row = np.unique(
        seeds_of(tokens.meta["episodes"], tokens.episode_ids[rows]), return_inverse=True
    )
    if len(games) > 1:
        folds[rows] = of_row % num_folds
    return folds


@torch.inference_mode()
def fill(table: PatchTable, tokens: TokenData, folds: np.ndarray) -> int:
    """Count the steps of all games in folds into `entries`, and into `folds` without one each.

    Where a bucket is full, later levels, and of a level what gains less, are left out. Takes some
    60 bytes of memory for each cell near motion, 60 of which a frame of Breakout has.

    Args:
        folds: `fold_of_rows`, (M,).
    Returns:
        The entries that were written.
    """
    starts = window_starts(tokens.episode_ids, FRAMES + 1)
    last = starts + FRAMES - 1
    last = last[folds[last] >= 0]
    parts = np.array_split(last, len(last) // BATCH + 1)
    bar = tqdm(parts, desc="count patches", unit="batch", disable=None)
    found = [_seen(table, tokens, part, folds[part]) for part in bar]
    seen = Seen(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    del found
    num_folds = max(1, folds.max(initial=-1) + 1)
    of_folds = []
    for fold in range(num_folds):
        _count(table, seen, np.flatnonzero(seen.folds != fold))
        of_folds.append(table.entries.clone())
    table.folds = torch.stack(of_folds)
    return _count(table, seen, np.arange(len(seen.tokens)))


def write_counts(path: Path, table: PatchTable) -> None:
    """Keep what `fill` counted, which takes minutes."""
    assert table.folds is not None
    tables = torch.cat([table.entries.unsqueeze(0), table.folds]).cpu().numpy()
    write_npz(path, {"tables": tables}, {})


def read_counts(path: Path, table: PatchTable) -> None:
    """Fill a table as the one was that `write_counts` kept.

    Raises:
        FileNotFoundError, ValueError: no such file, or one of another size.
    """
    arrays, _ = read_npz(path, {"tables": (np.int32, tuple(table.entries.shape))})
    whole, folds = torch.from_numpy(arrays["tables"]).split([1, len(arrays["tables"]) - 1])
    table.entries, table.folds = whole[0].clone(), folds


def _count(table: PatchTable, seen: Seen, cells: np.ndarray) -> int:
    """Write `entries` from some cells, int64 (m,), and return how many entries there are."""
    guess, came = seen.guess[cells], seen.tokens[cells]
    table.entries.zero_()
    taken = np.zeros(table.num_buckets, np.int64)
    for level in range(len(LEVELS)):
        keys = seen.keys[cells, level]
        better = _exceptions(keys, guess, came, table.num_codes)
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
        for first in range(0, len(cells), CELLS):
            part = slice(first, first + CELLS)
            says = table.look_up(torch.from_numpy(keys[part]).long()).numpy()
            guess[part] = np.where(says > 0, says % table.num_codes, guess[part])
    return int(taken.sum())


def _seen(table: PatchTable, tokens: TokenData, rows: np.ndarray, folds: np.ndarray) -> Seen:
    """Return what was seen of the cells near motion in steps whose last frames are these rows.

    Args:
        rows, folds: (n,).
    """
    history = torch.from_numpy(tokens.tokens[rows[:, None] + np.arange(1 - FRAMES, 1)]).long()
    near = table.is_near_motion(history).numpy()
    keys = table.keys(history, torch.from_numpy(tokens.actions[rows]).long()).int().numpy()
    of_last, following = (tokens.tokens[part][near] for part in (rows, rows + 1))
    return Seen(keys[near], of_last, following, folds.astype(np.int8).repeat(near.sum(1)))


def _exceptions(
    keys: np.ndarray, guess: np.ndarray, came: np.ndarray, num_codes: int
) -> Exceptions:
    """Find the keys of a level that know better than what is guessed so far.

    Args:
        keys, guess, came: of each cell its key, what is guessed and which token came, (m,).
    """
    packed = (keys.astype(np.int64) * num_codes + came) * 2
    packed, count = np.unique(packed + (guess == came), return_counts=True)
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
