"""Train the world model on tokens, with multi-step rollouts and hybrid importance weights.

    python v2/train/train_wm_hires.py --epochs 100 --rollout-steps 5 --rollout-ratio 0.5
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import dataclasses
import time

import numpy as np
import torch
from tqdm import tqdm

from v2.data.ages import cut_ages, episode_steps, token_ages
from v2.data.atari_dataset import check_emulator, check_game, set_bad_aside, window_starts
from v2.data.coverage import choose_count, coverage, far_rank
from v2.data.games import find_weights, game_directory
from v2.data.patch_counts import fill, fold_of_rows, read_counts, write_counts
from v2.data.recordings import Data, check_recorded, default_data, shown
from v2.data.tokens import (
    TokenData,
    check_target,
    load_tokens,
    recordings_sha256,
    staleness,
    tokenize,
    tokens_path,
)
from v2.data.validation import array_sha256
from v2.eval.validate import Evaluation
from v2.models.patch_table import PatchTable
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig, fields_of
from v2.models.vqvae_hires import VQVAE
from v2.models.weights import load_vqvae, load_world_model, tokenizer_sha256, told
from v2.runtime import checkpoint
from v2.runtime.commands import command, given
from v2.runtime.device import compiled, flush_denormals, keep_memory
from v2.runtime.files import check_output, check_writable
from v2.runtime.run_dir import VQVAE_NAME, RunDir, is_of_smoke
from v2.train.distributed import Workers, join
from v2.train.flags import Parsed, parse, plain_args, training_parser
from v2.train.history_noise import NUM_DRAWS, add_noise
from v2.train.loop import run_trainer
from v2.train.optim import (
    GradientGuard,
    learning_rate,
    resumed_ema,
    update_ema,
    world_model_optimizers,
)
from v2.train.recipe import WORLD_MODEL_PRESETS, WorldModelRecipe
from v2.train.sampling import (
    Rows,
    Windows,
    event_chances,
    event_steps,
    known_steps,
    read_windows,
    step_rng,
)
from v2.train.wm_loss import NUM_LOSS_DRAWS, WorldModelLoss

MAX_COMPILED_ERROR = 0.2  # of the gradients, over their norm; rounding alone makes some percent
TABLE_NAME = "patch_table.npz"  # in a run's folder
EMA_STEPS = 8  # between two updates of the averaged weights, which pass over all of them
REWARM_STEPS = 300  # of a run that goes on without the optimizer's state


def build_parser():
    parser = training_parser(__file__, WORLD_MODEL_PRESETS)
    parser.add_argument("--tokens", type=cli.path, help="npz of tokens (default: in --out, else "
                        "beside --data); made when missing or stale")  # fmt: skip
    parser.add_argument("--vqvae", "--weights", type=cli.name, default="latest",
                        help="latest, in --out first; shipped, a run, a home, a folder or a file")
    return parser


def main(argv=None) -> int:
    parsed = parse(build_parser(), WORLD_MODEL_PRESETS, argv)
    args, recipe = parsed.args, parsed.recipe
    flush_denormals()  # before there are threads
    workers, device = join(args.device)
    workers.check_batch("--batch-size", recipe.batch_size)
    workers.check_batch("rollout_batch_size", recipe.rollout_batch_size)
    torch.manual_seed(args.seed)
    home = args.out or game_directory(args.game)
    check_writable(args.resume or home / "runs")
    if args.resume and workers.is_writer:
        RunDir(args.resume).check_free()
    data: Data = args.data or default_data(args.game, args.out)
    path = args.tokens or tokens_path(data, args.out)
    check_target(path)
    check_recorded(data, args.game)
    if args.skip_bad and workers.is_writer:
        set_bad_aside(data)
    workers.wait()
    check_game(data, args.game)
    if args.resume:
        vqvae_path = args.resume / VQVAE_NAME
    else:
        vqvae_path = find_weights(args.vqvae, "vqvae", args.game, args.out)
    vqvae, vqvae_state = load_vqvae(vqvae_path)
    check_emulator(data, vqvae_path, vqvae_state)
    print(f"data: {shown(data)}\nVQ-VAE: {vqvae_path}")
    remake = command("data/tokenize_atari.py", game=args.game, data=data, vqvae=vqvae_path,
                     out=path)  # fmt: skip
    with cli.StopRequest() as stop:
        tokens = _load_or_make_tokens(
            path, vqvae, data, device, args.resume, workers, stop, remake
        )
    if stop:
        print("stopped before the first step: run the same command again")
        return stop.exit_code
    assert tokens is not None
    if tokens.emulator.package:
        print(f"environment: {tokens.emulator.game} of {tokens.emulator.package}")
    model = _new_model(recipe, vqvae, tokens)
    if recipe.table_bits:
        _fill_table(model.patch_table, recipe, tokens, args.resume)
    model = model.to(device)
    keep_memory()  # now, not what was freed before
    trainer = Trainer(parsed, model, vqvae, tokens, data, device, workers)
    if recipe.init_from and not args.resume:
        trainer.start_from(find_weights(recipe.init_from, "world_model", args.game), data)
    run = RunDir(args.resume) if args.resume else None
    if workers.is_writer and not args.resume:
        is_smoke = recipe.is_smoke or is_of_smoke(vqvae_state)
        config = {"args": plain_args(args), "recipe": dataclasses.asdict(recipe),
                  "is_smoke": is_smoke, "game": tokens.emulator.game}  # fmt: skip
        run = RunDir.create(home, "world_model", config)
        kept = {key: vqvae_state[key] for key in checkpoint.HISTORY if key in vqvae_state}
        checkpoint.save_checkpoint(run.path / VQVAE_NAME, "vqvae", vqvae, **kept)
    counts = run and run.path / TABLE_NAME
    if counts and workers.is_writer and recipe.table_bits and not counts.exists():
        write_counts(counts, model.patch_table)
    return run_trainer(trainer, run)


def _load_or_make_tokens(
    path: Path, vqvae: VQVAE, data: Data, device, resumed, workers: Workers, stop, remake: str
) -> TokenData | None:
    """Load the tokens or make them, which `remake` would do alone."""
    tokens = load_tokens(path, vqvae, data)
    if tokens is None and workers.count > 1:  # the others would wait in vain
        raise ValueError(f"{path} is missing or stale: first run {remake}")
    if tokens is None:
        stale = staleness(path, vqvae, data) if path.exists() else "it is missing"
        if resumed and path.exists():
            raise ValueError(
                f"{resumed} needs other tokens than {path} ({stale}): restore --data, or name a "
                "new file in --tokens to make them"
            )
        check_output(path)
        print(f"{path}: {stale}; making it")
        tokens = tokenize(data, vqvae, device, stop=stop)
        if tokens is not None:
            tokens.save(path)
    return tokens


def _new_model(recipe: WorldModelRecipe, vqvae: VQVAE, tokens: TokenData) -> TemporalWorldModel:
    """Build the model of a recipe for a game; say what its active cells hold."""
    grid = vqvae.config.grid
    rank = far_rank(tokens, grid)
    num_cells = recipe.num_cells or choose_count(tokens, rank, grid).count
    print(f"held-out games: {coverage(tokens, rank, num_cells, grid)}")
    config = WorldModelConfig(
        num_actions=tokens.num_actions,
        num_codes=vqvae.config.num_codes,
        grid_height=grid[0],
        grid_width=grid[1],
        **fields_of(recipe) | {"num_cells": num_cells},
    )
    model = TemporalWorldModel(config)
    if recipe.first_layers:
        model.leave_for_later(recipe.first_layers)
    model.far_rank.copy_(rank)
    return model


def _fill_table(
    table: PatchTable, recipe: WorldModelRecipe, tokens: TokenData, run: Path | None
) -> None:
    """Count the table of patches, or read it from a run that goes on."""
    if run and (run / TABLE_NAME).exists():
        return read_counts(run / TABLE_NAME, table)
    entries = fill(table, tokens, fold_of_rows(tokens, recipe.table_folds))
    print(f"table of patches: {entries} entries, {entries / table.entries.numel():.0%} full")


class Trainer:
    """The state of a run: model, averaged weights, optimizer and step."""

    script = "train_wm_hires.py"

    def __init__(self, parsed: Parsed[WorldModelRecipe], model, vqvae: VQVAE, tokens: TokenData,
                 data: Data, device, workers: Workers):  # fmt: skip
        self.args, self.recipe, self.changed = parsed.args, parsed.recipe, parsed.changed
        self.model, self.tokens, self.device = model, tokens, device
        self.workers, recipe = workers, self.recipe
        self.forward = compiled(model) if recipe.compile else model
        self.checked: set[tuple] = set()  # kinds of batches, see `_check_compiled`
        self.has_all_layers = False  # those that join late have joined
        self.step, self.best = 0, -float("inf")
        self.warm_from = 0  # step at which it went on without the optimizer's state
        self.minutes_before, self.began = 0.0, time.monotonic()
        self.earlier: list[dict] = []  # the runs whose weights it began with
        self.loss = WorldModelLoss.of(recipe, vqvae, tokens, device)
        self.windows = _window_draws(recipe, tokens, self.loss.grid, model.config.history, workers)
        self.num_steps = recipe.num_steps(len(self.windows[1].rows))
        self.optimizer = world_model_optimizers(model, recipe, device)
        self.guard = GradientGuard(self.optimizer, 1.0, workers)
        self.ema = {k: v.clone() for k, v in model.state_dict().items()} if recipe.ema else None
        self.vqvae_sha256 = tokenizer_sha256(vqvae)
        self.tokens_sha256 = array_sha256(tokens.tokens)
        self.data_sha256 = tokens.meta["data_sha256"]
        self.recordings_sha256 = recordings_sha256(data)
        self.train_rows = tokens.rows_of("train")
        self.ages = token_ages(tokens.tokens, tokens.episode_ids) if recipe.has_age else None
        self.episode_steps = episode_steps(tokens.episode_ids)
        self.folds = fold_of_rows(tokens, recipe.table_folds) if recipe.table_bits else None
        if workers.is_writer:
            num_windows = min(recipe.eval_steps, self.num_steps) * recipe.batch_size
            self.evaluation = Evaluation(vqvae, tokens, data, device, num_windows, self.ages)

    @property
    def minutes(self) -> float:
        """Time spent training, earlier parts of a resumed run included."""
        return self.minutes_before + (time.monotonic() - self.began) / 60

    def next_command(self, run: RunDir) -> str:
        return command("play_atari_hires.py", **given(self.args, "game", "device"),
                       checkpoint=run.path)  # fmt: skip

    def train_step(self) -> tuple[dict, int]:
        """Do one step; return metrics and the number of frames predicted."""
        recipe, rng = self.recipe, step_rng(self.args.seed, self.step)
        is_rollout = recipe.unrolls(rng, self.step, self.num_steps)
        steps = recipe.rollout_steps if is_rollout else 1
        count = recipe.rollout_batch_size if is_rollout else recipe.batch_size
        starts = self.workers.part(self.windows[steps].draw(rng, count))
        windows = read_windows(self.tokens, starts, self.model.config.history, steps)
        if recipe.history_noise:
            draws = self.workers.part(rng.random((count, NUM_DRAWS)))
            tokens, grid = windows.tokens.numpy(), self.loss.grid
            others = self.tokens.tokens[self.workers.part(rng.choice(self.train_rows, count))]
            noisy = add_noise(tokens, others, grid, recipe.history_noise, draws)
            windows.history = torch.from_numpy(noisy)
        if self.ages is not None:
            last = starts + self.model.config.history - 1
            draws = self.workers.part(rng.random(count))
            known_for = known_steps(draws, recipe.unknown_age_share, self.model.config.history)
            windows.age = torch.from_numpy(
                cut_ages(self.ages[last], self.episode_steps[last], known_for)
            )
        if self.folds is not None:
            windows.fold = torch.from_numpy(self.folds[starts])
        self.batch = {name: v.numpy() for name, v in vars(windows).items() if v is not None}
        forced = rng.random((count, steps)) < recipe.teacher_forcing_prob
        windows, forced = windows.to(self.device), self.workers.part(forced)
        is_forced = torch.from_numpy(forced)
        num_draws = NUM_LOSS_DRAWS + self.model.config.num_positions
        batch = windows, is_forced, self._drawn(rng, count, steps, num_draws)
        num_cells = recipe.cells_at(self.step, self.num_steps, self.model.config.num_cells)
        num_layers = 0 if self.has_all_layers else recipe.layers_at(self.step, self.num_steps)
        self.has_all_layers = not num_layers
        if self.forward is not self.model:
            self._check_compiled(*batch, num_cells, num_layers)
        loss, metrics = self.loss(self.forward, *batch, num_cells, num_layers)
        self.workers.average(list(metrics.values()))
        rate = learning_rate(
            self.step, self.num_steps, recipe.lr, recipe.warmup_steps, recipe.decay
        )
        if self.warm_from:
            rate *= min(1.0, (self.step - self.warm_from + 1) / REWARM_STEPS)
        norm = self.guard.apply(loss, rate)
        if self.ema and self.step % EMA_STEPS == 0:
            update_ema(self.ema, self.model, recipe.ema, self.step, EMA_STEPS)
        prefix = "scheduled" if is_rollout else "one_step"  # open loop is what `evaluate` logs
        metrics = {f"{prefix}_{name}": value for name, value in metrics.items()}
        metrics |= {"lr": rate, "gradient_norm": norm, "skipped": self.guard.num_skipped}
        return metrics, count * steps

    def _check_compiled(
        self, windows: Windows, is_forced, draws, num_cells: int, num_layers: int
    ) -> None:
        """At the first batch of a kind, go on uncompiled where compiled gradients are others.

        Only the first step of a rollout is compared: after it a token may differ by rounding.
        """
        kind = len(windows.tokens), num_cells, num_layers
        if kind in self.checked:
            return
        self.checked.add(kind)
        first = windows.first_step(), is_forced[:, :1], draws, num_cells, num_layers
        gradients = []
        for forward in (self.model, self.forward):
            self.loss(forward, *first)
            parts = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
            gradients.append(torch.cat(parts))
            self.optimizer.zero_grad()
        plain, of_compiled = gradients
        error = float((of_compiled - plain).norm() / plain.norm().clamp_min(1e-12))
        if not error <= MAX_COMPILED_ERROR:
            tqdm.write(f"the compiled model's gradients are off by {error:.1f} times their size: "
                       "going on without --set compile")  # fmt: skip
            self.forward = self.model

    def _drawn(self, rng: np.random.Generator, *shape: int) -> torch.Tensor:
        """Return this worker's part of uniform numbers, one row a window of the batch."""
        return torch.from_numpy(self.workers.part(rng.random(shape, np.float32)))

    def evaluate(self, run: RunDir) -> None:
        """Measure the averaged weights on held-out episodes and keep the best."""
        trained = {k: v.clone() for k, v in self.model.state_dict().items()}
        if self.ema:
            self.model.load_state_dict(self.ema)
        self.model.eval()
        picture = run.path / "samples" / f"{self.step:06d}.png"
        held_out, score = self.evaluation(self.model, picture)
        run.log(self.step, **held_out)
        tqdm.write(f"step {self.step}: " + "  ".join(f"{k} {v:.4g}" for k, v in held_out.items()))
        self.model.load_state_dict(trained)
        self.model.train()
        if score > self.best:
            self.best = score
            self._save(checkpoint.save_checkpoint, run.path / "best.pt", held_out)

    def save(self, run: RunDir) -> None:
        self._save(checkpoint.save_rotating, run.path / "last.pt")

    def _save(self, write, path: Path, metrics: dict | None = None) -> None:
        write(
            path, "world_model", self.model,
            ema=self.ema, optimizer=self.optimizer.state_dict(), step=self.step,
            minutes=self.minutes, earlier=self.earlier,
            rng={"torch": torch.get_rng_state()}, metrics=metrics or {}, best=self.best,
            recipe=dataclasses.asdict(self.recipe), seed=self.args.seed,
            num_steps=self.num_steps,
            emulator=self.tokens.meta["emulator"],
            action_meanings=self.tokens.meta["action_meanings"],
            vqvae_sha256=self.vqvae_sha256, tokens_sha256=self.tokens_sha256,
            data_sha256=self.data_sha256, skipped=self.guard.num_skipped,
            warm_from=self.warm_from, has_all_layers=self.has_all_layers,
            recordings_sha256=self.recordings_sha256,
        )  # fmt: skip

    def load(self, run: RunDir) -> None:
        """Continue exactly where the run's last checkpoint is."""
        state = checkpoint.load_last(run.path, "world_model")
        checkpoint.check_resumable(state, run.path / "last.pt", "vqvae_sha256", "tokens_sha256")
        if state["vqvae_sha256"] != self.vqvae_sha256:
            raise ValueError(f"{run.path} was trained with another VQ-VAE than its {VQVAE_NAME}")
        if state.get("data_sha256", self.data_sha256) != self.data_sha256:  # not in older ones
            raise ValueError(f"{run.path} was trained on other data: --resume needs the same file")
        is_carried = not state["optimizer"]  # by v2/train/carry.py
        if state["tokens_sha256"] != self.tokens_sha256:
            if not is_carried:
                raise ValueError(f"{run.path} was trained on other tokens: --resume needs the same")
            print("some tokens are others than where it was trained: machines round differently")
        checkpoint.restore(self.model, told(state), run.path)
        self.warm_from = state.get("warm_from", 0)
        if is_carried:
            self.warm_from = state["step"]
            print(f"no optimizer's state: warming up again for {REWARM_STEPS} steps")
        else:
            self.optimizer.load_state_dict(state["optimizer"])
        self.ema = resumed_ema(state["ema"], self.model, bool(self.recipe.ema))
        self.step, self.best = state["step"], state["best"]
        self.has_all_layers = state.get("has_all_layers", False)
        self.guard.num_skipped = state.get("skipped", 0)
        self.minutes_before, self.earlier = state.get("minutes", 0.0), state.get("earlier", [])
        torch.set_rng_state(state["rng"]["torch"])

    def start_from(self, path: Path, data: Data) -> None:
        """Take the weights of another world model and nothing else.

        Convolutions that it lacks start at zero, and so change nothing at first.
        """
        model, info = load_world_model(path, self.vqvae_sha256)
        check_emulator(data, path, info)
        self.earlier = checkpoint.lineage(info)
        if model.config.past_actions != self.model.config.past_actions:
            raise ValueError(
                f"{path} reads {model.config.past_actions} past actions: past_actions must agree"
            )
        ignored = ("copy_bias", "local_layers", "num_decided")
        config = dataclasses.asdict(model.config)
        checkpoint.check_architecture(self.model, config, path, ignored)
        self.has_all_layers = True
        nothing = {k: torch.zeros_like(v) for k, v in self.model.state_dict().items()}
        own = {k: v for k, v in self.model.state_dict().items() if k.endswith("table.entries")}
        self.model.load_state_dict(nothing | model.state_dict() | own)
        if self.ema:
            self.ema = {k: v.clone() for k, v in self.model.state_dict().items()}


def _window_draws(
    recipe: WorldModelRecipe, tokens: TokenData, grid: tuple[int, int], history: int,
    workers: Workers,
) -> dict[int, Rows]:  # fmt: skip
    """Return the windows to draw from, by how many steps each predicts."""
    rows = tokens.rows_of("train")
    starts_of = {
        steps: window_starts(tokens.episode_ids, history + steps, rows)
        for steps in {1, recipe.rollout_steps}
    }
    longest = history + max(starts_of)
    lengths = np.bincount(tokens.episode_ids[rows])
    num_short = int(((lengths > 0) & (lengths < longest)).sum())
    if num_short and workers.is_writer:
        print(f"{num_short} of {(lengths > 0).sum()} episodes are shorter than a window of "
              f"{longest} frames: left out of the longest")  # fmt: skip
    events = event_steps(tokens.tokens, tokens.rewards, tokens.terminated, grid)
    return {
        steps: Rows(starts, event_chances(
            events, tokens.terminated, starts, history, steps, recipe.event_share
        ))
        for steps, starts in starts_of.items()
    }  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
