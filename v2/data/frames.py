"""Pixels: the only preprocessing of emulator screens and the only pixel conversion.

Contract: uint8 (..., H, W, C) at rest and on the screen, float (..., C, H, W) in [0, 1] in models.
Knows nothing of emulators, files or models.
"""

import numpy as np
import torch

SCREEN_SHAPE = (210, 160, 3)
FRAME_SHAPE = (84, 64, 3)


def downsample_screen(screen: np.ndarray) -> np.ndarray:
    """Shrink an emulator screen by the exact 2.5x area average.

    Five pixels become two: (2a + 2b + c) / 5 and (c + 2d + 2e) / 5, along both axes, in integers
    and rounded once. Keeps the mass of a ball that is smaller than a pixel.

    Args:
        screen: uint8 (210, 160, 3).
    Returns:
        uint8 (84, 64, 3).
    """
    if screen.shape != SCREEN_SHAPE or screen.dtype != np.uint8:
        raise ValueError(f"screen must be uint8 {SCREEN_SHAPE}, got {screen.dtype} {screen.shape}")
    groups = screen.reshape(42, 5, 160 * 3).astype(np.uint16)
    a, b, c, d, e = (groups[:, k] for k in range(5))
    rows = np.empty((42, 2, 160 * 3), np.float32)
    rows[:, 0] = 2 * (a + b) + c
    rows[:, 1] = c + 2 * (d + e)
    sums = rows.reshape(84 * 32, 5 * 3) @ _COLUMNS  # exact: integers below 2^24
    return ((sums + 12) // 25).astype(np.uint8).reshape(FRAME_SHAPE)  # 25 is odd: no ties


# (5 pixels x 3 colours) -> (2 pixels x 3 colours)
_COLUMNS = np.kron(np.array([[2, 0], [2, 0], [1, 1], [0, 2], [0, 2]]), np.eye(3)).astype(np.float32)


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
