"""Parts of a training step that both training scripts share.

Contract: what a step does depends on the seed, the step and what a checkpoint holds, so that a
resumed run repeats it; a non-finite loss or gradient is never applied. Knows nothing of models or
data.
"""

import contextlib
import math
import shlex
from pathlib import Path

import numpy as np
import torch

from v2.command_line import DivergedError, is_out_of_memory
from v2.data.npz import write_npz
from v2.train.distributed import Workers

MAX_SKIPPED_STEPS = 5
BAD_BATCH_NAME = "nan_batch.npz"
FEW_WINDOWS = 8  # times as many as are drawn
MAX_HARD = 5.0  # times the mean loss: what cannot be learnt must not fill the batch


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Return the generator that decides batch and choices of one step."""
    return np.random.default_rng([seed, step])


def unrolls(args, rng: np.random.Generator, step: int, num_steps: int) -> bool:
    """Decide, with the step's generator, whether its batch unrolls K steps."""
    return step >= args.rollout_start * num_steps and rng.random() < args.rollout_ratio


def positions_learnt(args, step: int, num_steps: int) -> int:
    """Return at how many positions of a frame a step learns; 0: at all, as in the last steps."""
    return 0 if step >= (1 - args.whole_share) * num_steps else args.positions


class Rows:
    """Rows to draw batches from, the draws those of `Generator.choice`, sums made only once."""

    def __init__(self, rows: np.ndarray, chances: np.ndarray | None = None):
        self.rows, self.cumulative = rows, None
        if chances is not None:
            self.cumulative = chances.cumsum(dtype=np.float64)
            self.cumulative /= self.cumulative[-1]

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        if self.cumulative is None:
            return rng.choice(self.rows, count)
        return self.rows[self.cumulative.searchsorted(rng.random(count), side="right")]


class HardWindows:
    """The last windows that were learnt from, drawn again by their loss (as arXiv 1511.05952)."""

    def __init__(self, size: int = 8192):
        self.starts, self.losses = np.zeros(size, np.int64), np.zeros(size, np.float32)
        self.num_put = 0

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return places, none while few windows are there; those of huge losses not oftener."""
        known = self.losses[: self.num_put]
        if len(known) < FEW_WINDOWS * count or not known.any():
            return np.zeros(0, np.int64)
        chances = np.minimum(known, MAX_HARD * known.mean()).cumsum(dtype=np.float64)
        return chances.searchsorted(rng.random(count) * chances[-1], side="right")

    def remember(self, places: np.ndarray, fresh: np.ndarray, losses: np.ndarray) -> None:
        """Note the losses of the windows at these places and of fresh ones; below 0: unknown.

        What is unknown stays what it was, or counts as 0.
        """
        again, new = np.split(losses, [len(places)])
        self.losses[places] = np.where(again < 0, self.losses[places], again)
        self.put(fresh, new.clip(0))

    def put(self, starts: np.ndarray, losses: np.ndarray) -> None:
        """Replace the oldest by these."""
        places = (self.num_put + np.arange(len(starts))) % len(self.starts)
        self.starts[places], self.losses[places] = starts, losses
        self.num_put += len(starts)

    def state_dict(self) -> dict:
        arrays = {"starts": self.starts, "losses": self.losses}
        return {k: torch.from_numpy(v.copy()) for k, v in arrays.items()} | {"num": self.num_put}

    def load_state_dict(self, state: dict) -> None:
        self.starts, self.losses = (state[k].numpy().copy() for k in ("starts", "losses"))
        self.num_put = state["num"]


def learning_rate(step: int, num_steps: int, peak: float, warmup_steps: int, decay: float) -> float:
    """Warm up linearly, stay constant, then fall to zero over the last share `decay`."""
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    left = (num_steps - step) / max(num_steps * decay, 1)
    return peak * min(warm, max(0.0, min(1.0, left)))


OF_FLAGS = ("rate_scale", "weight_decay")  # of a parameter group


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
                f"{' and '.join(self.optimizers)}: --resume where it began, or use --init-from"
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


def check_weights(model: torch.nn.Module) -> None:
    """Raise a DivergedError where a weight is not finite: it must not replace a good save."""
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise DivergedError(f"weight {name} is not finite")


@contextlib.contextmanager
def failures_explained(trainer, folder: Path | None):
    """Say what to do when training diverges, the batch kept in the run, or memory ends.

    Args:
        trainer: has `step`, `args`, and the arrays of its last `batch`.
        folder: the writer's run; None in the other workers.
    """
    try:
        yield
    except DivergedError as error:
        if folder is None:
            raise
        write_npz(folder / BAD_BATCH_NAME, trainer.batch, {"step": trainer.step})
        raise DivergedError(
            f"step {trainer.step}: {error}; the batch is in {folder / BAD_BATCH_NAME}, what was "
            f"saved before is kept: try {_again(folder)}{_halved(trainer.args, 'lr')}"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if folder is None or not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"out of memory in step {trainer.step}; what was saved before is kept: "
            f"try {_again(folder)}{_halved(trainer.args, 'batch_size')}"
        ) from error


def _halved(args, ending: str) -> str:
    """Return the flags whose names end so, at half of what they are."""
    flags = {k: v for k, v in vars(args).items() if k.endswith(ending) and v}
    halves = {k: max(1, v // 2) if isinstance(v, int) else v / 2 for k, v in flags.items()}
    return " ".join(f"--{k.replace('_', '-')} {v:g}" for k, v in halves.items())


def _again(folder: Path) -> str:
    return f"--resume {shlex.quote(str(folder))} " if (folder / "last.pt").exists() else ""


@torch.no_grad()
def average_weights(
    average: dict[str, torch.Tensor], model: torch.nn.Module, decay: float, step: int
) -> None:
    """Move the averaged weights toward the model's; faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    state = model.state_dict()
    torch._foreach_lerp_([average[k] for k in state], list(state.values()), 1 - decay)


def resumed_average(
    stored: dict[str, torch.Tensor] | None, model: torch.nn.Module, is_asked: bool
) -> dict[str, torch.Tensor] | None:
    """Return the averaged weights of a checkpoint; where it has none, the model's if asked for."""
    if not stored and not is_asked:
        return None
    weights = model.state_dict()
    return {k: (stored or weights)[k].to(v.device, copy=True) for k, v in weights.items()}
