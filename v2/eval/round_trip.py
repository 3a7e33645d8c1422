"""Quick figures of a tokenizer round trip against the emulator's memory, for the training log."""

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    error = np.square(a.astype(np.float32) - b.astype(np.float32)).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-10))


def perplexity(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def ball_round_trip(game: str, ram: np.ndarray, decoded: np.ndarray, frames: np.ndarray) -> dict:
    """Return recall and position error of Breakout's ball in the black area below the bricks."""
    if game != "breakout":
        return {}
    x, y = (ram[:, 99].astype(float) - 49 + 1) / 2.5, (ram[:, 101].astype(float) + 9 + 2) / 2.5
    errors, num_found, num_balls, peaks = [], 0, 0, []
    for i in np.flatnonzero((ram[:, 101] > 0) & (y > 40) & (y < 72) & (x > 6) & (x < 58)):
        top, left = int(y[i]) - 3, int(x[i]) - 3
        true, seen = (a[i, top : top + 7, left : left + 7, 0].astype(float) for a in (frames, decoded))
        if true.max() < 30:
            continue
        num_balls += 1
        peaks.append(seen.max() / true.max())
        if seen.max() >= 0.5 * true.max():
            num_found += 1
            errors.append(np.hypot(*(_centre(seen) - _centre(true))))
    if not num_balls:
        return {}
    return {
        "ball_recall": num_found / num_balls,
        "ball_peak": float(np.mean(peaks)),
        "ball_error_px": float(np.median(errors)) if errors else float("nan"),
    }


def _centre(red: np.ndarray) -> np.ndarray:
    red = np.where(red > 0.2 * red.max(), red, 0)
    grid = np.indices(red.shape)
    return (grid * red).sum(axis=(1, 2)) / red.sum()
