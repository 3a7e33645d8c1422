"""Noise on the history that the world model reads in training: mistakes like those of its dreams.

Contract: from tokens alone, no game; the frame to be predicted and the weights of its tokens are
never touched. The idea is GameNGen's (arXiv 2408.14837), the kinds are ours.
"""

import numpy as np

NUM_DRAWS = 8  # numbers in [0, 1) that decide what happens to a sample
PASTED_SHARE = 0.5  # of the mistakes
MAX_PATCH = 3  # rows and columns of what is pasted
REACH = 2  # an object is what stands out within so many cells


def add_noise(
    tokens: np.ndarray, others: np.ndarray, grid: tuple[int, int], rate: float, draws: np.ndarray
) -> np.ndarray:
    """Return the histories (B, 4, N) of windows, some of them with a mistake.

    An object (what differs from the window's most frequent tokens) is dropped, doubled three to
    five cells away, or shifted by one cell; or a patch of another frame is pasted where the two
    differ, as what a dream got wrong stays in it. In the last frame or more of them.

    Args:
        tokens: int64 (B, 4 + K, N), all of each window.
        others: (B, N), for each window a frame to paste from.
        rate: share of the samples with a mistake.
        draws: uniform in [0, 1), (B, NUM_DRAWS).
    """
    histories = tokens[:, :4].copy()
    for window, other, history, draw in zip(tokens, others, histories, draws, strict=True):
        if draw[0] >= rate:
            continue
        if draw[1] < PASTED_SHARE:
            _paste(history.reshape(-1, *grid), other.reshape(grid), draw[2:])
        else:
            history[:] = _misplaced(window.reshape(-1, *grid), draw[2:]).reshape(history.shape)
    return histories


def _paste(history: np.ndarray, other: np.ndarray, draw: np.ndarray) -> None:
    """Put up to 3 x 3 cells of another frame (h, w) into the last frames of (4, h, w), in place."""
    cells = np.argwhere(history[3] != other)
    if not len(cells):
        return
    row, column = cells[int(draw[0] * len(cells))]
    first = max(0, int(draw[1] * 7) - 3)  # in most cases all four frames: it has long been there
    height, width = 1 + (draw[2:4] * MAX_PATCH).astype(int)
    top, left = max(0, row - int(draw[4] * height)), max(0, column - int(draw[5] * width))
    box = np.s_[first:, top : top + height, left : left + width]
    history[box] = other[box[1:]]


def _misplaced(window: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Return the history (4, h, w) with an object of its last frame dropped, doubled or shifted."""
    history, usual = window[:4].copy(), _most_frequent(window)
    cells = np.argwhere(history[3] != usual)
    if not len(cells):
        return history
    row, column = cells[int(draw[0] * len(cells))]
    mistake, first = int(draw[1] * 3), int(draw[2] * 4)
    distance = 3 + int(draw[3] * 3) if mistake == 1 else 1
    angle = 2 * np.pi * draw[4]
    offset = np.rint(distance * np.array([np.sin(angle), np.cos(angle)])).astype(int)
    top, left = max(0, row - REACH), max(0, column - REACH)
    box = np.s_[top : row + REACH + 1, left : column + REACH + 1]
    for frame in history[first:]:
        inside = np.argwhere(frame[box] != usual[box]) + (top, left)
        codes = frame[tuple(inside.T)]
        if mistake != 1:
            frame[tuple(inside.T)] = usual[tuple(inside.T)]
        if mistake != 0:
            there = inside + offset
            is_in = ((there >= 0) & (there < frame.shape)).all(1)
            frame[tuple(there[is_in].T)] = codes[is_in]
    return history


def _most_frequent(window: np.ndarray) -> np.ndarray:
    """Return the most frequent code of every cell of (T, h, w)."""
    counts = (window[:, None] == window[None]).sum(1)  # how often each occurs, (T, h, w)
    return np.take_along_axis(window, counts.argmax(0)[None], 0)[0]
