"""Pixels: the only preprocessing of emulator screens and the only pixel conversion.

Contract: uint8 (..., H, W, C) at rest and on the screen, float (..., C, H, W) in [0, 1] in models.
Knows nothing of emulators, files or models.
"""

import functools
import math

import numpy as np
import torch

SCREEN_WIDTH = 160
FRAME_SHAPE = (84, 64, 3)


def downsample_screen(screen: np.ndarray) -> np.ndarray:
    """Shrink an emulator screen by the exact area average, in integers and rounded once.

    Of a screen 210 high, as most are, five pixels become two along both axes, (2a + 2b + c) / 5 and
    (c + 2d + 2e) / 5. Keeps the mass of a ball that is smaller than a pixel.

    Args:
        screen: uint8 (H, 160, 3).
    Returns:
        uint8 (84, 64, 3).
    """
    if screen.shape[1:] != (SCREEN_WIDTH, 3) or screen.dtype != np.uint8:
        raise ValueError(
            f"screen must be uint8 (H, {SCREEN_WIDTH}, 3), got {screen.dtype} {screen.shape}"
        )
    shares = area_shares(len(screen), FRAME_SHAPE[0])
    group = shares.shape[1]
    rows = shares @ screen.reshape(-1, group, SCREEN_WIDTH * 3).astype(np.float32)
    sums = rows.reshape(84 * 32, 5 * 3) @ _COLUMNS  # exact: integers below 2^24
    area = 5 * group  # odd where H is 210: no ties
    return ((sums + area // 2) // area).astype(np.uint8).reshape(FRAME_SHAPE)


def fit_screen(screen: np.ndarray, fit: str) -> np.ndarray:
    """Bring a screen of any size to a frame by the exact area average.

    Args:
        screen: uint8 (H, W, 3).
        fit: `stretch` takes the whole screen; `pad` the whole in its own proportions, between black
            bars; `crop` its middle in its own proportions.
    Returns:
        uint8 (84, 64, 3).
    """
    if screen.ndim != 3 or screen.shape[2] != 3 or screen.dtype != np.uint8 or not screen.size:
        raise ValueError(f"screen must be uint8 (H, W, 3), got {screen.dtype} {screen.shape}")
    rows, columns, height, width = fitted(screen.shape[0], screen.shape[1], fit)
    shown = screen[rows, columns]
    by_row, by_column = all_shares(shown.shape[0], height), all_shares(shown.shape[1], width)
    lines = by_row @ shown.reshape(len(shown), -1).astype(np.float32)  # exact: below 2^24
    sums = by_column @ lines.reshape(height, -1, 3).astype(np.float64)  # exact: below 2^53
    area = int(by_row[0].sum() * by_column[0].sum())
    top, left = (FRAME_SHAPE[0] - height) // 2, (FRAME_SHAPE[1] - width) // 2
    frame = np.zeros(FRAME_SHAPE, np.uint8)
    frame[top : top + height, left : left + width] = (sums.astype(np.int64) + area // 2) // area
    return frame


def fitted(height: int, width: int, fit: str) -> tuple[slice, slice, int, int]:
    """Return which rows and columns of a screen are shown, and on how many of a frame."""
    rows, columns, (most, wide) = slice(0, height), slice(0, width), FRAME_SHAPE[:2]
    if fit == "pad":
        scale = min(most / height, wide / width)
        return rows, columns, max(1, round(height * scale)), max(1, round(width * scale))
    if fit == "crop":
        kept = max(1, min(height, round(width * most / wide)))
        kept_wide = max(1, min(width, round(height * wide / most)))
        rows = slice((height - kept) // 2, (height - kept) // 2 + kept)
        columns = slice((width - kept_wide) // 2, (width - kept_wide) // 2 + kept_wide)
    return rows, columns, most, wide


@functools.cache
def area_shares(native: int, pixels: int) -> np.ndarray:
    """Return how much of each native pixel every pixel covers, in the smallest group that repeats.

    Five native pixels become two: [[2, 2, 1, 0, 0], [0, 0, 1, 2, 2]].
    """
    common = math.gcd(native, pixels)
    old, new = native // common, pixels // common
    x, y = np.arange(old), np.arange(new)[:, None]
    covered = np.minimum(new * (x + 1), old * (y + 1)) - np.maximum(new * x, old * y)
    return covered.clip(0).astype(np.float32)  # (new, old), rows sum to `old`


@functools.cache
def all_shares(native: int, pixels: int) -> np.ndarray:
    """Return the same of all native pixels, not of a group alone, (pixels, native)."""
    groups = np.eye(math.gcd(native, pixels), dtype=np.float32)
    return np.kron(groups, area_shares(native, pixels))


# (5 pixels x 3 colours) -> (2 pixels x 3 colours)
_COLUMNS = np.kron(area_shares(SCREEN_WIDTH, FRAME_SHAPE[1]).T, np.eye(3, dtype=np.float32))


def grey_frames(frames: np.ndarray) -> np.ndarray:
    """Turn uint8 (..., H, W, 3) into luminance, uint8 (..., H, W, 1), by Rec. 601's weights."""
    sums = frames.astype(np.uint16) @ np.array([[77], [150], [29]], np.uint16)  # of 256
    return (sums >> 8).astype(np.uint8)


def frames_to_float(frames: torch.Tensor) -> torch.Tensor:
    """Turn uint8 (..., H, W, C) into float32 (..., C, H, W) in [0, 1]."""
    if frames.dtype != torch.uint8 or frames.shape[-1] != 3:
        raise ValueError(
            f"frames must be uint8 (..., H, W, 3), got {frames.dtype} {tuple(frames.shape)}"
        )
    return frames.movedim(-1, -3).float() / 255


def float_to_frames(pixels: torch.Tensor) -> torch.Tensor:
    """Turn float (..., C, H, W) into uint8 (..., H, W, C), clamped to [0, 1] and rounded."""
    return (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).contiguous()
