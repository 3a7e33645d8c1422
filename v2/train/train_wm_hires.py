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

import argparse
import shlex
import time

import numpy as np
import torch
from tqdm import tqdm

from v2.data.atari_dataset import (
    DATA_NAME,
    check_emulator,
    check_game,
    set_bad_aside,
    window_starts,
)
from v2.data.games import find_weights, game_directory
from v2.data.tokens import TOKENS_NAME, TokenData, check_target, load_tokens, staleness, tokenize
from v2.data.validation import array_sha256
from v2.eval.validate import Evaluation
from v2.models.cells import MIN_POSITIONS
from v2.models.pairs import either, seen_pairs
from v2.models.temporal_world_model import COPY_BIAS, TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE
from v2.models.weights import load_vqvae, load_world_model, stored_pairs, tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.device import compiled, has_fast_bfloat16
from v2.runtime.files import check_output, check_writable
from v2.runtime.run_dir import RunDir, is_of_smoke, parse_resumable, plain_args
from v2.train.distributed import Workers, join
from v2.train.history_noise import KINDS, NUM_DRAWS, add_noise
from v2.train.loop import run_trainer
from v2.train.optim import (
    GradientGuard,
    Optimizers,
    average_weights,
    learning_rate,
    resumed_average,
)
from v2.train.sampling import (
    HardWindows,
    Rows,
    Windows,
    event_chances,
    event_steps,
    positions_learnt,
    read_windows,
    step_rng,
    unrolls,
)
from v2.train.token_weights import ImportanceConfig
from v2.train.wm_loss import LossConfig, WorldModelLoss

ADAM_BETAS = (0.9, 0.95)
MATRICES = ("qkv.weight", "attended.weight", "expand.weight", "contract.weight")
MAX_PAST_ACTIONS = WorldModelConfig.history - 1
MAX_COMPILED_ERROR = 0.2  # of the gradients, over their norm; rounding alone makes some percent
VQVAE_NAME = "vqvae.pt"  # the copy that a world-model run keeps beside its weights


def build_parser():
    loss, importance = LossConfig(), ImportanceConfig()
    parser = cli.parser(__doc__.splitlines()[0], __doc__.splitlines()[2].strip())
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--data", type=cli.path,
                        help="npz of frames (default: the game's)")  # fmt: skip
    parser.add_argument("--skip-bad", action="store_true",
                        help="rename damaged shards to *.bad and go on without")  # fmt: skip
    parser.add_argument("--tokens", type=cli.path, help="npz of tokens (default: the "
                        "game's); made when missing or stale")  # fmt: skip
    parser.add_argument("--vqvae", default="latest", help="latest, shipped, a run or a file")
    parser.add_argument("--out", type=cli.path,
                        help="directory of runs/ (default: the game's)")  # fmt: skip
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0)
    parser.add_argument("--smoke", action="store_true", help="never shipped, never latest")
    length = parser.add_argument_group("length")
    length.add_argument("--epochs", type=cli.positive_int, default=100)
    length.add_argument("--samples-per-epoch", type=cli.non_negative_int, default=800,
                        help="random draws of windows an epoch, some of them drawn twice; "
                        "0: as many draws as there are windows")  # fmt: skip
    length.add_argument("--steps", type=cli.positive_int, help="instead of --epochs")
    length.add_argument("--max-minutes", type=cli.positive_float,
                        help="save and stop then; --resume goes on")  # fmt: skip
    length.add_argument("--resume", type=cli.path, metavar="RUN",
                        help="continue a run's folder")  # fmt: skip
    length.add_argument("--init-from", type=cli.path, metavar="FILE",
                        help="start from these weights, with a fresh optimizer")  # fmt: skip
    length.add_argument("--other-vqvae", action="store_true",
                        help="--init-from learnt the tokens of another one: go on with these")
    length.add_argument("--save-minutes", type=cli.positive_float, default=5.0)
    length.add_argument("--eval-steps", type=cli.positive_int, default=400)
    length.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False,
                        help="compile the model first: a minute of waiting for faster steps")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--batch-size", type=cli.batch_size, default=32)
    recipe.add_argument("--positions", type=cli.non_negative_int, default=96,
                        help="at how many of a frame it learns, at least "
                        f"{MIN_POSITIONS}; 0: all")  # fmt: skip
    recipe.add_argument("--whole-share", type=cli.probability, default=0.1,
                        help="share of the steps, the last ones, that learn at all positions, as "
                        "dreams are made, at about three times the time")  # fmt: skip
    recipe.add_argument("--lr", type=cli.positive_float, default=3e-3)
    recipe.add_argument("--muon-lr", type=cli.non_negative_float, default=1e-2,
                        help="of the blocks' matrices; 0: AdamW for all")  # fmt: skip
    recipe.add_argument("--weight-decay", type=cli.non_negative_float, default=0.01)
    recipe.add_argument("--warmup-steps", type=cli.non_negative_int, default=100)
    recipe.add_argument("--decay", type=cli.probability, default=0.5,
                        help="share of the steps over which the rate falls to zero")  # fmt: skip
    recipe.add_argument("--ema", type=cli.probability, default=0.998,
                        help="decay of the averaged weights; 0: off")  # fmt: skip
    recipe.add_argument("--event-share", type=cli.probability, default=0.5,
                        help="share of the windows drawn among those with an event: a reward, an "
                        "end, a change where nothing moved, an object that returns; 0: off")
    recipe.add_argument("--hard-share", type=cli.probability, default=0.0,
                        help="share of the windows drawn again among the last 8,192, by their "
                        "loss; 0: off")  # fmt: skip
    recipe.add_argument("--given-share", type=cli.probability, default=loss.given_share,
                        help="share of the predictions that are told one changed token; 0: off")
    recipe.add_argument("--history-noise", type=cli.probability, default=0.15,
                        help="share of the windows whose history has a mistake; "
                        "0: off")  # fmt: skip
    recipe.add_argument("--noise-kind", choices=KINDS, default=KINDS[0],
                        help="an object dropped, doubled or shifted, or a patch of another frame; "
                        "standing: or time stands still; uniform: random tokens")  # fmt: skip
    recipe.add_argument("--copy-bias", type=cli.non_negative_float,
                        default=COPY_BIAS,
                        help="first logit of the last frame's token")  # fmt: skip
    recipe.add_argument("--past-actions", type=cli.non_negative_int, default=3,
                        help="how many it reads before the one taken now, at most "
                        f"{MAX_PAST_ACTIONS}")  # fmt: skip
    rollouts = parser.add_argument_group("rollouts")
    rollouts.add_argument("--rollout-steps", type=cli.positive_int, metavar="K",
                          default=5)  # fmt: skip
    rollouts.add_argument("--rollout-ratio", type=cli.probability, default=0.5,
                          help="share of the batches that unroll K steps; 0: off")  # fmt: skip
    rollouts.add_argument("--rollout-batch-size", type=cli.batch_size, default=12,
                          help="smaller than --batch-size: each window is predicted K times")
    rollouts.add_argument("--rollout-start", type=cli.probability, default=0.6,
                          help="share of the steps before the first rollout")  # fmt: skip
    rollouts.add_argument("--teacher-forcing-prob", type=cli.probability,
                          default=0.1, help="a rollout's chance a step to see the truth")
    rollouts.add_argument("--max-wrong", type=cli.non_negative_int,
                          default=loss.max_wrong, metavar="TOKENS", help="a rollout with more of "
                          "them wrong goes on from the truth; 336: never")  # fmt: skip
    rollouts.add_argument("--discount", type=cli.probability, default=loss.discount)
    weights = parser.add_argument_group("importance weights")
    weights.add_argument("--motion-scale", type=cli.non_negative_float,
                         default=importance.motion_scale)  # fmt: skip
    weights.add_argument("--event-scale", type=cli.non_negative_float,
                         default=importance.event_scale)  # fmt: skip
    weights.add_argument("--persistence-scale", type=cli.non_negative_float,
                         default=importance.persistence_scale)  # fmt: skip
    weights.add_argument("--importance-cap", type=cli.positive_float,
                         default=importance.cap, help="times the sample's median")  # fmt: skip
    weights.add_argument("--ghost-scale", type=cli.non_negative_float,
                         default=importance.ghost_scale,
                         help="of tokens that stay but were thought to change")  # fmt: skip
    weights.add_argument("--no-importance", action="store_true",
                         help="equal weights; a run that began so stays so")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = parse_resumable(build_parser(), argv)
    _check_flags(args)
    workers, device = join(args.device)
    workers.check_batch("--batch-size", args.batch_size)
    workers.check_batch("--rollout-batch-size", args.rollout_batch_size)
    torch.manual_seed(args.seed)
    directory = game_directory(args.game)
    check_writable(args.resume or args.out or directory)
    if args.tokens:
        check_target(args.tokens)
        check_output(args.tokens)
    data = args.data or directory / f"{DATA_NAME}.npz"
    if args.skip_bad and workers.is_writer:
        set_bad_aside(data)
    workers.wait()
    check_game(data, args.game)
    if args.resume:
        vqvae_path = args.resume / VQVAE_NAME
    else:
        vqvae_path = find_weights(args.vqvae, "vqvae", args.game)
    vqvae, vqvae_state = load_vqvae(vqvae_path)
    check_emulator(data, vqvae_path, vqvae_state)
    print(f"VQ-VAE: {vqvae_path}")
    tokens_path = args.tokens or directory / f"{TOKENS_NAME}.npz"
    with cli.StopRequest() as stop:
        tokens = _load_or_make_tokens(tokens_path, vqvae, data, device, args.resume, workers, stop)
    if stop:
        print("stopped before the first step: run the same command again")
        return stop.exit_code
    model = TemporalWorldModel(_model_config(args, vqvae, tokens)).to(device)
    trainer = Trainer(args, model, vqvae, tokens, data, device, workers)
    if args.init_from:
        trainer.start_from(args.init_from, data)
    run = RunDir(args.resume) if args.resume else None
    if workers.is_writer and not args.resume:
        is_smoke = args.smoke or is_of_smoke(vqvae_state)
        config = {"args": plain_args(args), "is_smoke": is_smoke, "game": tokens.emulator.game}
        run = RunDir.create(args.out or directory, "world_model", config)
        kept = ("step", "minutes", "metrics", "train_args", "emulator", "earlier", "data_sha256")
        extra = {key: vqvae_state[key] for key in kept if key in vqvae_state}
        checkpoint.save_checkpoint(run.path / VQVAE_NAME, "vqvae", vqvae, **extra)
    return run_trainer(trainer, run)


def _check_flags(args) -> None:
    """Refuse what would fail only after the data are read."""
    if 0 < args.positions < MIN_POSITIONS:
        raise ValueError(
            f"--positions must be 0 or at least {MIN_POSITIONS}, got {args.positions}"
        )
    if args.hard_share == 1:
        raise ValueError("--hard-share must be below 1, got 1.0: new windows must come in, too")
    if args.past_actions > MAX_PAST_ACTIONS:
        raise ValueError(
            f"--past-actions must be at most {MAX_PAST_ACTIONS}, got {args.past_actions}"
        )
    if args.importance_cap < 1:
        raise ValueError(f"--importance-cap must be at least 1, got {args.importance_cap}")
    if args.copy_bias > checkpoint.MAX_CONFIG_NUMBER:
        raise ValueError(
            f"--copy-bias must be at most {checkpoint.MAX_CONFIG_NUMBER}, got {args.copy_bias}"
        )
    if args.resume and args.init_from:
        raise ValueError("--resume and --init-from exclude each other")
    if args.other_vqvae and not (args.init_from or args.resume):
        raise ValueError("--other-vqvae needs --init-from: whose weights go on?")


def _load_or_make_tokens(
    path: Path, vqvae: VQVAE, data: Path, device, resumed, workers: Workers, stop
) -> TokenData | None:
    tokens = load_tokens(path, vqvae, data)
    if tokens is None and workers.count > 1:  # the others would wait in vain
        raise ValueError(f"{path} is missing or stale: first run python v2/data/tokenize_atari.py")
    if tokens is None:
        stale = staleness(path, vqvae, data) if path.exists() else "it is missing"
        if resumed and path.exists():
            raise ValueError(
                f"{resumed} needs other tokens than {path} ({stale}): restore --data, or name a "
                "new file in --tokens to make them"
            )
        print(f"{path}: {stale}; making it")
        tokens = tokenize(data, vqvae, device, stop=stop)
        if tokens is not None:
            tokens.save(path)
    return tokens


def _model_config(args, vqvae: VQVAE, tokens: TokenData) -> WorldModelConfig:
    height, width = vqvae.config.grid
    return WorldModelConfig(
        num_actions=tokens.num_actions,
        num_codes=vqvae.config.num_codes,
        grid_height=height,
        grid_width=width,
        copy_bias=args.copy_bias,
        past_actions=args.past_actions,
    )


class Trainer:
    """The state of a run: model, averaged weights, optimizer and step."""

    script = "train_wm_hires.py"

    def __init__(self, args, model, vqvae: VQVAE, tokens: TokenData, data: Path, device,
                 workers: Workers):  # fmt: skip
        self.args, self.model, self.tokens, self.device = args, model, tokens, device
        self.workers = workers
        self.forward = compiled(model) if args.compile else model
        self.checked: set[tuple[int, int]] = set()  # kinds of batches, see `_check_compiled`
        self.step, self.best = 0, -float("inf")
        self.minutes_before, self.began = 0.0, time.monotonic()
        self.earlier: list[dict] = []  # the runs that --init-from began with
        self.loss = WorldModelLoss.of(_loss_config(args), vqvae, tokens, device)
        self.train_rows = rows = tokens.rows_of("train")
        history = model.config.history
        starts_of = {
            steps: window_starts(tokens.episode_ids, history + steps, rows)
            for steps in {1, args.rollout_steps}
        }
        lengths = np.bincount(tokens.episode_ids[rows])
        num_short = int(((lengths > 0) & (lengths < history + max(starts_of))).sum())
        if num_short and workers.is_writer:
            print(f"{num_short} of {(lengths > 0).sum()} episodes are shorter than a window of "
                  f"{history + max(starts_of)} frames: left out of the longest")  # fmt: skip
        events = event_steps(tokens.tokens, tokens.rewards, tokens.terminated, self.loss.grid)
        ends = tokens.terminated
        self.windows = {
            steps: Rows(
                starts, event_chances(events, ends, starts, history, steps, args.event_share)
            )
            for steps, starts in starts_of.items()
        }
        self.hard = {steps: HardWindows() for steps in starts_of} if args.hard_share else {}
        per_epoch = args.samples_per_epoch or len(starts_of[1])
        self.num_steps = args.steps or max(1, args.epochs * per_epoch // args.batch_size)
        self.optimizer = _optimizer(model, args, device)
        self.guard = GradientGuard(self.optimizer, 1.0, workers)
        self.average = {k: v.clone() for k, v in model.state_dict().items()} if args.ema else None
        self.vqvae_sha256 = tokenizer_sha256(vqvae)
        self.tokens_sha256 = array_sha256(tokens.tokens)
        self.data_sha256 = tokens.meta["data_sha256"]
        if workers.is_writer:
            self.seen = seen_pairs(tokens.tokens, rows, self.loss.grid, model.config.num_codes)
            self.evaluation = Evaluation(vqvae, tokens, data, device)

    @property
    def minutes(self) -> float:
        """Time spent training, earlier parts of a resumed run included."""
        return self.minutes_before + (time.monotonic() - self.began) / 60

    def next_command(self, run: RunDir) -> str:
        path = shlex.quote(str(run.path))
        return f"python v2/play_atari_hires.py --game {self.args.game} --checkpoint {path}"

    def train_step(self) -> tuple[dict, int]:
        """Do one step; return metrics and the number of frames predicted."""
        args, rng = self.args, step_rng(self.args.seed, self.step)
        is_rollout = unrolls(args, rng, self.step, self.num_steps)
        steps = args.rollout_steps if is_rollout else 1
        count = args.rollout_batch_size if is_rollout else args.batch_size
        places = np.zeros(0, np.int64)
        if self.hard:
            places = self.hard[steps].draw(rng, int(args.hard_share * count))
        drawn = self.windows[steps].draw(rng, count - len(places))
        if len(places):
            drawn = np.concatenate([self.hard[steps].starts[places], drawn])
        starts = self.workers.part(drawn)
        windows = read_windows(self.tokens, starts, self.model.config.history, steps)
        if args.history_noise:
            draws = self.workers.part(rng.random((count, NUM_DRAWS)))
            tokens, grid = windows.tokens.numpy(), self.loss.grid
            others = self.tokens.tokens[self.workers.part(rng.choice(self.train_rows, count))]
            noisy = add_noise(tokens, others, grid, args.noise_kind, args.history_noise, draws)
            windows.history = torch.from_numpy(noisy)
        self.batch = {name: v.numpy() for name, v in vars(windows).items() if v is not None}
        is_forced = rng.random((count, steps)) < args.teacher_forcing_prob
        windows, is_forced = windows.to(self.device), self.workers.part(is_forced)
        is_forced = torch.from_numpy(is_forced)
        num_positions = self.model.config.num_positions
        given_draws, draws, num_learnt = None, None, 0
        if self.loss.config.given_share:
            given_draws = self._drawn(rng, count, steps, 2)
        if 0 < (asked := positions_learnt(args, self.step, self.num_steps)) < num_positions:
            num_learnt, draws = asked, self._drawn(rng, count, steps, num_positions)
        batch = windows, is_forced, num_learnt, draws, given_draws
        if self.forward is not self.model:
            self._check_compiled(*batch)
        loss, losses, metrics = self.loss(self.forward, *batch)
        self.workers.average(list(metrics.values()))
        if self.hard:
            self._remember(self.hard[steps], drawn, places, windows, losses)
        rate = learning_rate(self.step, self.num_steps, args.lr, args.warmup_steps, args.decay)
        norm = self.guard.apply(loss, rate)
        if self.average:
            average_weights(self.average, self.model, args.ema, self.step)
        prefix = "scheduled" if is_rollout else "one_step"  # open loop is what `evaluate` logs
        metrics = {f"{prefix}_{name}": value for name, value in metrics.items()}
        metrics |= {"lr": rate, "gradient_norm": norm, "skipped": self.guard.num_skipped}
        return metrics, count * steps

    def _remember(self, hard: HardWindows, drawn, places, windows: Windows, losses) -> None:
        """Keep the losses of the step's windows, but not of those with a mistake in the history."""
        if windows.history is not None:
            kept = windows.tokens[:, : windows.history.shape[1]]
            losses = torch.where((windows.history == kept).all(2).all(1), losses, -1.0)
        of_all = losses.new_zeros(len(drawn))
        of_all[self.workers.rank :: self.workers.count] = losses * self.workers.count
        self.workers.average([of_all])
        of_all = np.nan_to_num(of_all.cpu().numpy(), nan=0.0, posinf=0.0)
        hard.remember(places, drawn[len(places) :], of_all)

    def _check_compiled(self, windows: Windows, is_forced, num_learnt, draws, given_draws) -> None:
        """At the first batch of a kind, go on uncompiled where compiled gradients are others.

        Only the first step of a rollout is compared: after it a token may differ by rounding.
        """
        kind = len(windows.tokens), num_learnt
        if kind in self.checked:
            return
        self.checked.add(kind)
        first = windows.first_step(), is_forced[:, :1], num_learnt, draws, given_draws
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
                       "going on without --compile")  # fmt: skip
            self.forward = self.model

    def _drawn(self, rng: np.random.Generator, *shape: int) -> torch.Tensor:
        """Return this worker's part of uniform numbers, one row a window of the batch."""
        return torch.from_numpy(self.workers.part(rng.random(shape, np.float32)))

    def evaluate(self, run: RunDir) -> None:
        """Measure the averaged weights on held-out episodes and keep the best."""
        trained = {k: v.clone() for k, v in self.model.state_dict().items()}
        if self.average:
            self.model.load_state_dict(self.average)
        self.model.eval()
        picture = run.path / "samples" / f"{self.step:06d}.png"
        held_out, score = self.evaluation(self.model, self.seen, picture)
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
            ema=self.average, optimizer=self.optimizer.state_dict(), step=self.step,
            minutes=self.minutes, earlier=self.earlier,
            rng={"torch": torch.get_rng_state()}, metrics=metrics or {}, best=self.best,
            train_args=plain_args(self.args), num_steps=self.num_steps,
            emulator=self.tokens.meta["emulator"],
            action_meanings=self.tokens.meta["action_meanings"],
            vqvae_sha256=self.vqvae_sha256, tokens_sha256=self.tokens_sha256,
            data_sha256=self.data_sha256, skipped=self.guard.num_skipped,
            seen_pairs=self.seen._asdict(),
            hard={str(steps): hard.state_dict() for steps, hard in self.hard.items()},
        )  # fmt: skip

    def load(self, run: RunDir) -> None:
        """Continue exactly where the run's last checkpoint is."""
        state = checkpoint.load_last(run.path, "world_model")
        checkpoint.check_resumable(state, run.path / "last.pt", "vqvae_sha256", "tokens_sha256")
        if state["vqvae_sha256"] != self.vqvae_sha256:
            raise ValueError(f"{run.path} was trained with another VQ-VAE than its {VQVAE_NAME}")
        if state["tokens_sha256"] != self.tokens_sha256:
            raise ValueError(f"{run.path} was trained on other tokens: --resume needs the same")
        if state.get("data_sha256", self.data_sha256) != self.data_sha256:  # not in older ones
            raise ValueError(f"{run.path} was trained on other data: --resume needs the same file")
        checkpoint.restore(self.model, state, run.path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = resumed_average(state["ema"], self.model, bool(self.args.ema))
        self.step, self.best = state["step"], state["best"]
        self.guard.num_skipped = state.get("skipped", 0)
        self.minutes_before, self.earlier = state.get("minutes", 0.0), state.get("earlier", [])
        self._see(state, run.path / "last.pt")
        for steps, hard in self.hard.items():
            if str(steps) in state.get("hard", {}):  # not in older ones
                hard.load_state_dict(state["hard"][str(steps)])
        torch.set_rng_state(state["rng"]["torch"])

    def start_from(self, path: Path, data: Path) -> None:
        """Take the weights of another world model and nothing else.

        Convolutions that it lacks start at zero, and so change nothing at first.
        """
        expected = None if self.args.other_vqvae else self.vqvae_sha256
        model, info = load_world_model(path, expected)
        check_emulator(data, path, info)
        self.earlier = checkpoint.lineage(info)
        if model.config.past_actions != self.model.config.past_actions:
            raise ValueError(
                f"{path} reads {model.config.past_actions} past actions: --past-actions must agree"
            )
        ignored = ("copy_bias", "local_layers")
        checkpoint.check_architecture(self.model, info["config"], path, ignored)
        nothing = {k: torch.zeros_like(v) for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(nothing | model.state_dict())
        if self.average:
            self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        if not self.args.other_vqvae:
            self._see(info, path)

    def _see(self, info: dict, path: Path) -> None:
        """Let dreams hold the pairs of a checkpoint's games, too."""
        stored = stored_pairs(info, self.model.config, path)
        if stored and self.workers.is_writer:
            self.seen = either(self.seen, stored)


def _loss_config(args) -> LossConfig:
    importance = ImportanceConfig(
        args.motion_scale, args.event_scale, args.persistence_scale, args.importance_cap,
        args.ghost_scale,
    )  # fmt: skip
    return LossConfig(
        discount=args.discount,
        max_wrong=args.max_wrong,
        given_share=args.given_share,
        importance=None if args.no_importance else importance,
    )


def _optimizer(model: TemporalWorldModel, args, device: torch.device) -> Optimizers:
    """Return Muon (Jordan et al. 2024) for the blocks' matrices and AdamW for tables and biases.

    Muon works in bfloat16: where that is emulated, AdamW takes all.
    """
    matrices = [p for n, p in model.named_parameters() if n.endswith(MATRICES)]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    tables = {"params": others, "weight_decay": 0.0}
    if args.muon_lr and has_fast_bfloat16(device):
        group = {"params": matrices, "rate_scale": args.muon_lr / args.lr}
        return Optimizers(
            muon=torch.optim.Muon([group], weight_decay=args.weight_decay),
            adamw=torch.optim.AdamW([tables], betas=ADAM_BETAS, fused=True),
        )
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, tables]
    return Optimizers(adamw=torch.optim.AdamW(groups, betas=ADAM_BETAS, fused=True))


if __name__ == "__main__":
    cli.run(main)
