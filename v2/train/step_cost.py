"""What a training step computes: for the benchmark and the pipeline."""

from collections.abc import Callable

import numpy as np
import torch

from v2.data.tokens import TokenData
from v2.models.temporal_world_model import TemporalWorldModel
from v2.models.vqvae_hires import VQVAE
from v2.train.optim import Optimizers
from v2.train.recipe import WorldModelRecipe
from v2.train.sampling import Windows, read_windows
from v2.train.wm_loss import NUM_LOSS_DRAWS, WorldModelLoss


def image_work(vqvae: VQVAE) -> Callable[[], None]:
    """Return the work of one training image."""
    pixels = torch.rand(1, 3, 84, 64, device=next(vqvae.parameters()).device)
    return lambda: learn_images(vqvae, pixels)


def window_work(model: TemporalWorldModel, steps: int, *parts: int) -> Callable[[], None]:
    """Return the work of two windows of so many predicted frames; see `learn_windows`."""
    windows = read_windows(random_tokens(), np.arange(2) * 9, 4, steps)
    windows = windows.to(next(model.parameters()).device)
    return lambda: learn_windows(model, windows, *parts)


def learn_images(vqvae: VQVAE, pixels: torch.Tensor) -> None:
    """Compute a loss of images (B, 3, 84, 64) and its gradients."""
    vqvae.zero_grad(set_to_none=True)
    output = vqvae(pixels)
    ((output.pixels - pixels).square().mean() + output.commitment).backward()


def learn_windows(
    model: TemporalWorldModel, windows: Windows, num_cells: int = 0, num_layers: int = 0
) -> None:
    """Compute the loss of windows and its gradients, with cells and layers as `predict_next`."""
    config, device = model.config, windows.tokens.device
    loss = WorldModelLoss(
        WorldModelRecipe(), torch.eye(config.num_codes), torch.ones(config.num_positions),
        (config.grid_height, config.grid_width), device,
    )  # fmt: skip
    model.zero_grad(set_to_none=True)
    batch, steps = windows.reward_signs.shape
    is_forced = torch.zeros(batch, steps, dtype=torch.bool)
    draws = torch.rand(batch, steps, NUM_LOSS_DRAWS + config.num_positions)
    loss(model, windows, is_forced, draws, num_cells, num_layers)


def train_windows(
    model: TemporalWorldModel, windows: Windows, optimizers: Optimizers, num_layers: int = 0
) -> None:
    """Compute the loss of windows and its gradients; apply them at a rate of almost nothing."""
    learn_windows(model, windows, num_layers=num_layers)
    for group in optimizers.param_groups:
        group["lr"] = 1e-9
    optimizers.step()


def random_tokens() -> TokenData:
    """Return 4,096 frames of random tokens, one episode."""
    rng, count = np.random.default_rng(0), 4096
    zeros = np.zeros(count)
    return TokenData(
        tokens=rng.integers(0, 32, (count, 336), dtype=np.uint8), actions=zeros.astype(np.uint8),
        rewards=zeros.astype(np.float32), terminated=zeros.astype(bool),
        truncated=zeros.astype(bool), episode_ids=zeros.astype(np.int32),
        has_action=np.ones(count, bool), meta={},
    )  # fmt: skip
