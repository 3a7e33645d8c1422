"""What matters in a frame: weights of pixels for the VQ-VAE and of tokens for the world model.

Contract: from pixels, tokens and the codebook alone; nothing here knows a game.
"""

import torch


def median_frame(pixels: torch.Tensor) -> torch.Tensor:
    """Return the per-pixel median of (B, 3, H, W) as (1, 3, H, W): what usually stands there."""
    return pixels.median(dim=0, keepdim=True).values


def rarity_weights(
    pixels: torch.Tensor, median: torch.Tensor, extra: float, threshold: float = 0.08
) -> torch.Tensor:
    """Return 1, plus `extra` where a pixel differs from the median frame, (B, 1, H, W)."""
    is_rare = ((pixels - median).abs() > threshold).any(dim=1, keepdim=True)
    return 1 + extra * is_rare.to(pixels.dtype)
