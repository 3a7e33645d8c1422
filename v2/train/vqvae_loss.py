"""The VQ-VAE's loss: squared error in which rare and moving pixels count more.

Contract: from pixels alone; nothing here knows a game.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from v2.train.recipe import VQVAERecipe

OVERSHOOT = 0.1  # below black


class ReconstructionLoss:
    """The weighted squared error of decoded pixels, with each image's worst pixel."""

    def __init__(
        self, recipe: VQVAERecipe, usual: torch.Tensor,
        average: Callable[[list[torch.Tensor]], None],
    ):  # fmt: skip
        """Args:
        usual: frames (B, 3, H, W) that show what is usual.
        average: replaces tensors by their mean over the training processes.
        """
        self.recipe, self.average = recipe, average
        self.median = median_frame(usual)
        self.rarity = deviation_rarity(usual, self.median)

    def __call__(
        self, pixels: torch.Tensor, before: torch.Tensor, decoded: torch.Tensor
    ) -> tuple[torch.Tensor, dict]:
        """Return the loss of a batch's part, and detached metrics.

        Args:
            pixels, before, decoded: frames, those before them, and their reconstructions, all
                float (B, 3, H, W).
        """
        # Below black nothing is seen: free to overshoot a little, what is black stays clean.
        target = torch.where(pixels <= 0, decoded.detach().clamp(-OVERSHOOT, 0), pixels)
        squared = (decoded - target).square()
        scales = (self.recipe.rarity_scale, self.recipe.motion_scale)
        weights = pixel_weights(pixels, before, self.median, self.rarity, *scales)
        total = weights.sum()
        self.average([total])  # the batch's, not only this part's
        reconstruction = (squared * weights).sum() / (total * 3)
        worst = squared.mean(1).flatten(1).amax(1).mean()
        metrics = {"reconstruction_loss": reconstruction.detach(), "worst_pixel": worst.detach()}
        return reconstruction + self.recipe.worst_pixel * worst, metrics


def median_frame(pixels: torch.Tensor) -> torch.Tensor:
    """Return the per-pixel median of (B, 3, H, W) as (1, 3, H, W): what usually stands there."""
    return pixels.median(dim=0, keepdim=True).values


def deviates(pixels: torch.Tensor, median: torch.Tensor, threshold: float = 0.08) -> torch.Tensor:
    """Tell where pixels (B, 3, H, W) differ from others in some colour, float (B, 1, H, W)."""
    return ((pixels - median).abs() > threshold).any(dim=1, keepdim=True).to(pixels.dtype)


def deviation_rarity(pixels: torch.Tensor, median: torch.Tensor) -> torch.Tensor:
    """Return how rare it is that a pixel deviates from the median, in [0, 1], (1, 1, H, W)."""
    share = (deviates(pixels, median).sum(0, keepdim=True) + 1) / (len(pixels) + 1)
    return -share.log() / math.log(len(pixels) + 1)


def pixel_weights(
    pixels: torch.Tensor,
    before: torch.Tensor,
    median: torch.Tensor,
    rarity: torch.Tensor,
    rarity_scale: float,
    motion_scale: float,
) -> torch.Tensor:
    """Return w = 1 + a rarity + b motion of every pixel, (B, 1, H, W).

    Args:
        pixels, before: a frame and the one before it, (B, 3, H, W).
        median, rarity: `median_frame`, and `deviation_rarity`, which counts where a pixel deviates.
        motion_scale: of what moved. Both have a margin of 4 px: specks beside it count too.
    """
    unusual, moved = rarity * deviates(pixels, median), deviates(pixels, before)
    return 1 + _with_margin(rarity_scale * unusual) + _with_margin(motion_scale * moved)


def _with_margin(weights: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(weights, 9, stride=1, padding=4)
