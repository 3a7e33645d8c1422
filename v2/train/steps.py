"""Parts of a training step that both training scripts share.

Contract: what a step does depends on (seed, step) alone, so that a resumed run repeats it; a
non-finite loss or gradient is never applied. Knows nothing of models or data.
"""

import math

import numpy as np
import torch

from v2.command_line import DivergedError

MAX_SKIPPED_STEPS = 5


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Return the generator that decides batch and choices of one step."""
    return np.random.default_rng([seed, step])


def learning_rate(step: int, num_steps: int, peak: float, warmup_steps: int, decay: float) -> float:
    """Warm up linearly, stay constant, then fall to zero over the last share `decay`."""
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    left = (num_steps - step) / max(num_steps * decay, 1)
    return peak * min(warm, max(0.0, min(1.0, left)))


class GradientGuard:
    """Clips, checks and applies gradients; counts what it refused."""

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float):
        self.optimizer, self.max_norm = optimizer, max_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.num_skipped = self.num_in_a_row = 0

    def apply(self, loss: torch.Tensor, rate: float) -> float:
        """Step with the gradients as they are; return their norm.

        Raises:
            DivergedError: the fifth non-finite step in a row.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm, foreach=True)
        if math.isfinite(float(norm)) and math.isfinite(float(loss)):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("rate_scale", 1.0)
            self.optimizer.step()
            self.num_in_a_row = 0
        else:
            self.num_skipped += 1
            self.num_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        if self.num_in_a_row >= MAX_SKIPPED_STEPS:
            raise DivergedError(
                f"{self.num_in_a_row} steps in a row had a non-finite loss or gradient: "
                "lower --lr; the last good state is kept"
            )
        return float(norm)


@torch.no_grad()
def average_weights(
    average: dict[str, torch.Tensor], model: torch.nn.Module, decay: float, step: int
) -> None:
    """Move the averaged weights toward the model's; faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    state = model.state_dict()
    torch._foreach_lerp_([average[k] for k in state], list(state.values()), 1 - decay)
