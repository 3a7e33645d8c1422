"""Optimizers, learning rates and averaged weights of both training scripts.

Contract: a non-finite loss or gradient is never applied. Knows nothing of models or data.
"""

import math
from collections import defaultdict

import torch

from v2.runtime.device import has_fast_bfloat16
from v2.runtime.errors import DivergedError
from v2.train.distributed import Workers
from v2.train.recipe import WorldModelRecipe

ADAM_BETAS = (0.9, 0.95)
MATRICES = ("qkv.weight", "attended.weight", "expand.weight", "contract.weight")
MAX_SKIPPED_STEPS = 5


def learning_rate(step: int, num_steps: int, peak: float, warmup_steps: int, decay: float) -> float:
    """Warm up linearly, stay constant, then fall to zero over the last share `decay`."""
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    left = (num_steps - step) / max(num_steps * decay, 1)
    return peak * min(warm, max(0.0, min(1.0, left)))


OF_FLAGS = ("rate_scale", "weight_decay")  # of a parameter group


class Muon(torch.optim.Muon):
    """PyTorch's Muon (Jordan et al. 2024), but all matrices of a shape at once.

    One after another they are too small for two cores: that takes 1.7 times as long.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for matrices in alike.values():
                self._step(group, matrices)

    def _step(self, group: dict, matrices: list[torch.Tensor]) -> None:
        gradients = [m.grad for m in matrices if m.grad is not None]
        momentum = group["momentum"]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        means = [self.state[m]["momentum_buffer"] for m in matrices]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, means, momentum) if group["nesterov"] else means
        stacked = torch.stack([matrix.bfloat16() for matrix in ahead])
        updates = orthogonalized(
            stacked, group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        rows, columns = matrices[0].shape
        rate = group["lr"] * math.sqrt(max(1, rows / columns))
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, list(updates.to(matrices[0].dtype)), alpha=-rate)


def orthogonalized(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float
) -> torch.Tensor:
    """Bring the singular values of matrices (B, M, N) near 1, by Newton-Schulz steps.

    Args:
        coefficients: of X, (X X^T) X and (X X^T)^2 X.
    """
    linear, cubic, quintic = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if is_tall else matrices
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(num_steps):
        gram = wide @ wide.mT
        update = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        wide = torch.baddbmm(wide, update, wide, beta=linear)
    return wide.mT if is_tall else wide


class Optimizers:
    """Several optimizers, each with its own parameters, as one."""

    def __init__(self, **optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict]:
        return [group for each in self.optimizers.values() for group in each.param_groups]

    def step(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict) -> None:
        """Restore each part, at the rates and decays of today's flags.

        Raises:
            ValueError: the state is that of other optimizers.
        """
        if state.keys() != self.optimizers.keys():
            raise ValueError(
                f"saved with {' and '.join(state)}, and this machine trains with "
                f"{' and '.join(self.optimizers)}: --resume where it began, or use --set init_from"
            )
        for name, optimizer in self.optimizers.items():
            flags = [{k: group[k] for k in OF_FLAGS if k in group}
                     for group in optimizer.param_groups]  # fmt: skip
            optimizer.load_state_dict(state[name])
            for group, today in zip(optimizer.param_groups, flags, strict=True):
                group.update(today)


class GradientGuard:
    """Clips, checks and applies gradients; counts what it refused.

    A parameter group may hold `rate_scale`: its rate over that of the schedule.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer | Optimizers, max_norm: float, workers: Workers
    ):
        self.optimizer, self.max_norm, self.workers = optimizer, max_norm, workers
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.num_skipped = self.num_in_a_row = 0

    @property
    def has_skipped(self) -> bool:
        """Whether the last step was refused."""
        return self.num_in_a_row > 0

    def apply(self, loss: torch.Tensor, rate: float) -> float:
        """Step with the gradients, averaged over the workers, where they are finite.

        Args:
            loss: detached; becomes the mean over the workers.
        Returns:
            The gradients' norm.

        Raises:
            DivergedError: the fifth non-finite step in a row.
        """
        self.workers.average([p.grad for p in self.parameters if p.grad is not None] + [loss])
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
                f"{self.num_in_a_row} steps in a row had a non-finite loss or gradient"
            )
        return float(norm)


@torch.no_grad()
def update_ema(
    average: dict[str, torch.Tensor], model: torch.nn.Module, decay: float, step: int,
    num_steps: int = 1,
) -> None:  # fmt: skip
    """Move the averaged weights toward the model's, for so many steps; faster in the first ones."""
    decay = min(decay, (1 + step) / (10 + step)) ** num_steps
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    torch._foreach_lerp_([average[k] for k in state], list(state.values()), 1 - decay)


def resumed_ema(
    stored: dict[str, torch.Tensor] | None, model: torch.nn.Module, is_asked: bool
) -> dict[str, torch.Tensor] | None:
    """Return the averaged weights of a checkpoint; where it has none, the model's if asked for."""
    if not stored and not is_asked:
        return None
    weights = model.state_dict()
    return {k: (stored or weights)[k].to(v.device, copy=True) for k, v in weights.items()}


def world_model_optimizers(
    model: torch.nn.Module, recipe: WorldModelRecipe, device: torch.device
) -> Optimizers:
    """Return Muon (Jordan et al. 2024) for the blocks' matrices and AdamW for tables and biases.

    Muon works in bfloat16: where that is emulated, AdamW takes all.
    """
    matrices = [p for n, p in model.named_parameters() if n.endswith(MATRICES)]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    tables = {"params": others, "weight_decay": 0.0}
    if recipe.muon_lr and has_fast_bfloat16(device):
        group = {"params": matrices, "rate_scale": recipe.muon_lr / recipe.lr}
        return Optimizers(
            muon=Muon([group], weight_decay=recipe.weight_decay),
            adamw=torch.optim.AdamW([tables], betas=ADAM_BETAS, fused=True),
        )
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, tables]
    return Optimizers(adamw=torch.optim.AdamW(groups, betas=ADAM_BETAS, fused=True))
