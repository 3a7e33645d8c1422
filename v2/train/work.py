"""What training computes: its steps without optimizers, their FLOPs, and the machine's own speed.

Contract: FLOPs are multiplications and additions of matrix products, attention and convolutions;
speeds are of the device at this moment. For the benchmark and the pipeline; no training uses it.
"""

import math
import time

import numpy as np
import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop,
    sdpa_flop,
    shape_wrapper,
)

from v2.data.tokens import TokenData
from v2.device import has_fast_bfloat16
from v2.models.temporal_world_model import TemporalWorldModel
from v2.models.vqvae_hires import VQVAE
from v2.train.wm_loss import LossConfig, Windows, WorldModelLoss, read_windows

ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ON_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@shape_wrapper
def _convolution_backward_flop(gradient, _, weight, *flags, **__) -> int:
    """Count the gradients of input and weight: torch counts a depthwise weight's as a dense one's.

    Args:
        gradient: shape of the output's; weight: (out, in / groups, ...); flags: the last says
            which gradients are computed.
    """
    return 2 * math.prod(gradient) * math.prod(weight[1:]) * sum(flags[-1][:2])


FORMULAS = {
    ON_CPU: sdpa_flop,
    ON_CPU_BACKWARD: sdpa_backward_flop,
    torch.ops.aten.convolution_backward: _convolution_backward_flop,
}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}  # long enough to hide a launch


def timed(work, seconds: float, device: torch.device) -> list[float]:
    """Do some work again and again for so long; return how many seconds each time took."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    times, began = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        times.append(once())
    return times


def matrix_products(device: torch.device, seconds: float) -> dict[str, float]:
    """Return the GFLOP/s of a large matrix product in each precision."""
    peaks, side = {}, MATRIX_SIDE.get(device.type, 2048)
    for dtype in [torch.float32, *([torch.bfloat16] if has_fast_bfloat16(device) else [])]:
        a = torch.randn(side, side, device=device, dtype=dtype)
        fastest = min(timed(lambda a=a: a @ a, seconds, device))
        peaks[str(dtype).removeprefix("torch.")] = 2 * side**3 / fastest / 1e9
    return peaks


def count_flops(work) -> float:
    counter = FlopCounterMode(display=False)
    counter.flop_registry |= FORMULAS
    with counter:
        work()
    return float(counter.get_total_flops())


def image_flops(vqvae: VQVAE) -> float:
    """Count what a training image takes."""
    pixels = torch.rand(1, 3, 84, 64, device=next(vqvae.parameters()).device)
    return count_flops(lambda: learn_images(vqvae, pixels))


def window_flops(model: TemporalWorldModel, steps: int, positions: int) -> float:
    """Count what a predicted frame takes in training."""
    windows = read_windows(random_tokens(), np.arange(2) * 9, 4, steps)
    windows = windows.to(next(model.parameters()).device)
    return count_flops(lambda: learn_windows(model, windows, positions)) / (2 * steps)


def learn_images(vqvae: VQVAE, pixels: torch.Tensor) -> None:
    """Compute a loss of images (B, 3, 84, 64) and its gradients."""
    vqvae.zero_grad(set_to_none=True)
    output = vqvae(pixels)
    ((output.pixels - pixels).square().mean() + output.commitment).backward()


def learn_windows(model: TemporalWorldModel, windows: Windows, positions: int) -> None:
    """Compute the loss of windows at so many positions (0: all) and its gradients."""
    config, device = model.config, windows.tokens.device
    loss = WorldModelLoss(
        LossConfig(), torch.eye(config.num_codes), torch.ones(config.num_positions),
        (config.grid_height, config.grid_width), device,
    )  # fmt: skip
    model.zero_grad(set_to_none=True)
    batch, steps = windows.reward_signs.shape
    is_forced = torch.zeros(batch, steps, dtype=torch.bool)
    draws = torch.rand(batch, steps, config.num_positions)
    loss(model, windows, is_forced, positions, draws, torch.rand(batch, steps, 2))


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
