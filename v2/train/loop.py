"""The loop around training steps: progress, logs, evaluation, saving, stopping.

Contract: the same for both models; a stop asked for by a signal or by `--max-minutes` saves first;
with several workers all of them leave in the same step and one of them writes.
Knows nothing of models, data or losses.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from v2.data.npz import write_npz
from v2.runtime.cli import StopRequest
from v2.runtime.commands import command, quoted
from v2.runtime.errors import DivergedError, is_out_of_memory
from v2.runtime.run_dir import RunDir
from v2.train.recipe import Recipe

LOG_STEPS, SHORT_RUN_LOG_STEPS = 20, 5
SHORT_RUN_STEPS = 200
LOSSES = ("reconstruction_loss", "one_step_loss", "scheduled_loss")


def run_trainer(trainer, run: RunDir | None) -> int:
    """Train to the last step, a stop or the time limit; return the exit code.

    Args:
        trainer: has args, recipe, changed, step, num_steps, minutes, device, workers, `script`,
            and train_step(), evaluate(run), save(run), load(run), next_command(run).
        run: the writer's new folder; the folder to resume for all workers; else None.
    """
    workers, args = trainer.workers, trainer.args
    # On the CPU equal sums whatever the threads do, so that resume is exact.
    torch.use_deterministic_algorithms(trainer.device.type == "cpu")
    deterministic: Any = torch.utils.deterministic  # torch makes its attribute at run time
    deterministic.fill_uninitialized_memory = False
    own = run if workers.is_writer else None  # the folder that this process writes into
    if own and args.resume:
        own.acquire()
    try:
        workers.wait()
        if args.resume:
            trainer.load(run)
            if trainer.num_steps < trainer.step:
                raise ValueError(
                    f"{args.resume} is at step {trainer.step} and would end at "
                    f"{trainer.num_steps}: ask for more steps"
                )
            if own:
                own.forget_after(trainer.step)
                print(f"resumed {own.path} at step {trainer.step}")
                own.note_changes(trainer.step, trainer.changed)
                if trainer.step < trainer.num_steps:
                    own.set_status(is_finished=False, step=trainer.step, minutes=trainer.minutes)
        with StopRequest() as stop, failures_explained(trainer, own.path if own else None):
            with workers.loss_explained():
                workers.share(trainer.model.state_dict().values())
                evaluating, losses = _steps(trainer, own, stop)
        if own:
            _finish(trainer, own, evaluating, losses)
        workers.wait()  # one that leaves early aborts the others
        workers.leave()
        return stop.exit_code
    finally:
        if own:
            own.release()


def _steps(trainer, run: RunDir | None, stop: StopRequest) -> tuple[float, dict[str, list]]:
    """Train; return the share of the time that evaluation took, and the losses that were logged.

    Args:
        run: the folder that this process writes into; None in the other workers.
    """
    args = trainer.args
    began = saved = time.monotonic()
    num_samples, evaluating, is_ending = 0, 0.0, False
    losses: dict[str, list] = {name: [] for name in LOSSES}
    is_short = trainer.num_steps < SHORT_RUN_STEPS
    log_steps = SHORT_RUN_LOG_STEPS if is_short else LOG_STEPS
    with tqdm(total=trainer.num_steps, initial=trainer.step, unit="step",
              disable=None if run else True) as bar:  # fmt: skip
        while trainer.step < trainer.num_steps and not is_ending:
            metrics, samples = trainer.train_step()
            trainer.step += 1
            num_samples += samples
            now = time.monotonic()
            is_out_of_time = bool(args.max_minutes) and now - began > 60 * args.max_minutes
            is_ending = trainer.workers.any(bool(stop) or is_out_of_time, trainer.device)
            if run is None:
                continue
            bar.update()
            is_last = trainer.step == trainer.num_steps
            if trainer.step % log_steps == 0 or is_last:
                rate = num_samples / (now - began)
                run.log(trainer.step, **metrics, samples_per_second=rate)
                bar.set_postfix({k: f"{float(metrics[k]):.4f}" for k in metrics if "loss" in k})
                for name in metrics.keys() & losses.keys():
                    losses[name].append(float(metrics[name]))
            if trainer.step % trainer.recipe.eval_steps == 0 or is_last:
                trainer.evaluate(run)
                evaluating += time.monotonic() - now
            if is_last or is_ending or now - saved > 60 * trainer.recipe.save_minutes:
                check_weights(trainer.model)
                trainer.save(run)
                saved = now
    return evaluating / max(time.monotonic() - began, 1e-9), losses


def _finish(trainer, run: RunDir, evaluating: float, losses: dict[str, list]) -> None:
    is_finished = trainer.step >= trainer.num_steps
    for name, values in losses.items():
        if len(values) > 1:
            print(f"{name} {values[0]:.4f} -> {values[-1]:.4f}")
    run.set_status(is_finished=is_finished, step=trainer.step, minutes=trainer.minutes)
    print(f"{trainer.step} of {trainer.num_steps} steps, "
          f"{evaluating:.1%} of the time for evaluation: {run.path}")  # fmt: skip
    resume = command(f"train/{trainer.script}", resume=run.path)
    print(f"next: {trainer.next_command(run) if is_finished else resume}")


BAD_BATCH_NAME = "nan_batch.npz"


def check_weights(model: torch.nn.Module) -> None:
    """Raise a DivergedError where a weight is not finite: it must not replace a good save."""
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise DivergedError(f"weight {name} is not finite")


@contextlib.contextmanager
def failures_explained(trainer, folder: Path | None):
    """Say what to do when training diverges, the batch kept in the run, or disk or memory end.

    Args:
        trainer: has `step`, `recipe`, and the arrays of its last `batch`.
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
            f"saved before is kept: try {_again(folder)}{_halved(trainer.recipe, 'lr')}"
        ) from error
    except OSError as error:
        if folder is None or not (folder / "last.pt").exists():
            raise
        raise type(error)(f"{error}; then go on with {_again(folder)}".rstrip()) from error
    except (MemoryError, RuntimeError) as error:
        if folder is None or not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"out of memory in step {trainer.step}; what was saved before is kept: "
            f"try {_again(folder)}{_halved(trainer.recipe, 'batch_size')}"
        ) from error


def _halved(recipe: Recipe, ending: str) -> str:
    """Return the settings whose names end so, at half of what they are."""
    fields = {k: v for k, v in vars(recipe).items() if k.endswith(ending) and v}
    halves = {k: max(1, v // 2) if isinstance(v, int) else v / 2 for k, v in fields.items()}
    return "--set " + " ".join(f"{k}={v:g}" for k, v in halves.items())


def _again(folder: Path) -> str:
    return f"--resume {quoted(str(folder))} " if (folder / "last.pt").exists() else ""
