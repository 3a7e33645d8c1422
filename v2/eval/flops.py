"""Counted FLOPs, and the speed of this machine's own matrix product.

Contract: FLOPs are multiplications and additions of matrix products, attention and convolutions;
speeds are of the device at this moment.
"""

import math
import time

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop,
    sdpa_flop,
    shape_wrapper,
)

from v2.runtime.device import has_fast_bfloat16

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
    times: list[float] = []
    began = time.perf_counter()
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
