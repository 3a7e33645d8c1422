"""For how long recorded tokens have not changed, counted as `v2.decoding.next_age` does."""

import numpy as np

from v2.models.temporal_world_model import MAX_AGE


def token_ages(tokens: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
    """Return for how many steps each token has not changed, uint8 (M, N), 0 unknown.

    Args:
        tokens: uint8 (M, N), consecutive frames; episode_ids: (M,).
    """
    ages = np.zeros(tokens.shape, np.uint8)
    for row in np.flatnonzero(np.diff(episode_ids) == 0) + 1:
        before = ages[row - 1]
        ages[row] = before + ((before > 0) & (before < MAX_AGE))
        ages[row, tokens[row] != tokens[row - 1]] = 1
    return ages


def episode_steps(episode_ids: np.ndarray) -> np.ndarray:
    """Return for how many steps each row's episode has gone on, int64 (M,)."""
    rows = np.arange(len(episode_ids))
    is_first = np.diff(episode_ids, prepend=-1) != 0
    return rows - np.maximum.accumulate(np.where(is_first, rows, 0))


def cut_ages(
    ages: np.ndarray, limits: np.ndarray, known_for: np.ndarray | int = MAX_AGE
) -> np.ndarray:
    """Return ages as a dream knows them that has gone on for so many steps, int64 (B, N).

    Args:
        ages: rows of `token_ages`, (B, N); limits: `episode_steps` of these rows, (B,).
        known_for: (B,), or one number for all.
    """
    ages, known_for = ages.astype(np.int64), np.minimum(known_for, limits)[:, None]
    is_known = (ages > 0) & (ages <= known_for)
    return np.where(is_known, ages, -known_for)
