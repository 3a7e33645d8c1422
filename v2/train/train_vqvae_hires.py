"""Train the VQ-VAE that turns frames into tokens.

    python v2/train/train_vqvae_hires.py --epochs 50
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import shlex
import time

import numpy as np
import torch
from tqdm import tqdm

from v2.data.atari_dataset import (
    DATA_NAME,
    GameData,
    check_emulator,
    check_game,
    check_training_games,
    data_sha256,
    load_game_data,
    read_episodes,
    set_bad_aside,
)
from v2.data.frames import float_to_frames, frames_to_float
from v2.data.games import game_directory
from v2.eval.metrics import ball_scores, code_histogram, perplexity, psnr
from v2.eval.objects.detector import has_truth, read_frames, read_ram
from v2.eval.pictures import save_grid
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.models.weights import load_vqvae
from v2.runtime import checkpoint
from v2.runtime.device import autocast, moved
from v2.runtime.files import check_writable
from v2.runtime.run_dir import RunDir, parse_resumable, plain_args
from v2.train.distributed import Workers, join
from v2.train.loop import run_trainer
from v2.train.optim import GradientGuard, average_weights, learning_rate, resumed_average
from v2.train.sampling import Rows, rare_motion_chances, step_rng
from v2.train.vqvae_loss import deviation_rarity, median_frame, pixel_weights

NUM_MEDIAN_FRAMES = 1001
NUM_HELD_OUT_FRAMES = 512
NUM_PICTURES = 8
BALL_FIGURES = ("recall", "precision", "false_balls", "error_median_px")
OVERSHOOT = 0.1  # below black


def build_parser():
    parser = cli.parser(__doc__.splitlines()[0], __doc__.splitlines()[2].strip())
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--data", type=cli.path,
                        help="npz of frames (default: the game's)")  # fmt: skip
    parser.add_argument("--skip-bad", action="store_true",
                        help="rename damaged shards to *.bad and go on without")  # fmt: skip
    parser.add_argument("--out", type=cli.path,
                        help="directory of runs/ (default: the game's)")  # fmt: skip
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0)
    parser.add_argument("--smoke", action="store_true", help="never shipped, never latest")
    length = parser.add_argument_group("length")
    length.add_argument("--epochs", type=cli.positive_int, default=50)
    length.add_argument("--samples-per-epoch", type=cli.non_negative_int, default=768,
                        help="random draws of frames an epoch, some of them drawn twice; "
                        "0: as many draws as there are frames")  # fmt: skip
    length.add_argument("--steps", type=cli.positive_int, help="instead of --epochs")
    length.add_argument("--max-minutes", type=cli.positive_float,
                        help="save and stop then; --resume goes on")  # fmt: skip
    length.add_argument("--resume", type=cli.path, metavar="RUN",
                        help="continue a run's folder")  # fmt: skip
    length.add_argument("--init-from", type=cli.path, metavar="FILE",
                        help="start from these weights and their codebook")  # fmt: skip
    length.add_argument("--decoder-only", action="store_true",
                        help="keep the tokens of --init-from as they are")  # fmt: skip
    length.add_argument("--save-minutes", type=cli.positive_float, default=5.0)
    length.add_argument("--eval-steps", type=cli.positive_int, default=200)
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--batch-size", type=cli.batch_size, default=16)
    recipe.add_argument("--lr", type=cli.positive_float, default=2e-3)
    recipe.add_argument("--warmup-steps", type=cli.non_negative_int, default=50)
    recipe.add_argument("--decay", type=cli.probability, default=0.6,
                        help="share of the steps over which the rate falls to zero")  # fmt: skip
    recipe.add_argument("--ema", type=cli.probability, default=0.998,
                        help="decay of the averaged weights; 0: off")  # fmt: skip
    recipe.add_argument("--unquantized", type=cli.probability, default=0.03,
                        help="share of the steps before the codebook starts")  # fmt: skip
    recipe.add_argument("--revive-until", type=cli.probability, default=0.7,
                        help="share of the steps after which dead codes stay")  # fmt: skip
    recipe.add_argument("--rarity", type=cli.non_negative_float, default=20.0,
                        help="extra weight near what is unlike the median frame")  # fmt: skip
    recipe.add_argument("--motion", type=cli.non_negative_float, default=40.0,
                        help="extra weight near what is unlike the frame before")  # fmt: skip
    recipe.add_argument("--rare-motion", type=cli.probability, default=0.7,
                        help="share of the frames drawn for motion where it is rare")  # fmt: skip
    recipe.add_argument("--worst-pixel", type=cli.non_negative_float, default=0.01)
    return parser


def main(argv=None) -> int:
    args = parse_resumable(build_parser(), argv)
    if args.resume and args.init_from:
        raise ValueError("--resume and --init-from exclude each other")
    if args.decoder_only and not (args.init_from or args.resume):
        raise ValueError("--decoder-only needs --init-from: whose tokens are kept?")
    workers, device = join(args.device)
    workers.check_batch("--batch-size", args.batch_size)
    torch.manual_seed(args.seed)
    directory = game_directory(args.game)
    check_writable(args.resume or args.out or directory)
    data_path = args.data or directory / f"{DATA_NAME}.npz"
    if args.skip_bad and workers.is_writer:
        set_bad_aside(data_path)
    workers.wait()
    check_game(data_path, args.game)
    check_training_games(data_path, read_episodes(data_path))
    data = load_game_data(data_path)
    train_rows, held_out_rows = data.rows_of("train"), data.rows_of("val")
    per_epoch = args.samples_per_epoch or len(train_rows)
    num_steps = args.steps or max(1, args.epochs * per_epoch // args.batch_size)
    model = VQVAE(VQVAEConfig()).to(device, memory_format=torch.channels_last)
    earlier = []
    if args.init_from:
        began, info = load_vqvae(args.init_from)
        check_emulator(data_path, args.init_from, info)
        checkpoint.check_architecture(model, info["config"], args.init_from)
        model.load_state_dict(began.state_dict())
        if not args.decoder_only:  # float16 holds no count above 65,504: sums must fit to it
            codes = model.quantizer
            codes.sums.copy_(codes.codebook * codes.counts.unsqueeze(1))
        earlier = checkpoint.lineage(info)
    trainer = Trainer(args, model, data, train_rows, held_out_rows, num_steps, device, workers)
    trainer.earlier = earlier
    if args.resume:
        run = RunDir(args.resume)
    elif workers.is_writer:
        config = {"args": plain_args(args), "is_smoke": args.smoke, "game": data.emulator.game}
        run = RunDir.create(args.out or directory, "vqvae", config)
    else:
        run = None
    return run_trainer(trainer, run)


class Trainer:
    """The state of a run: model, optimizer and step."""

    script = "train_vqvae_hires.py"

    def __init__(self, args, model, data: GameData, train_rows, held_out_rows, num_steps, device,
                 workers: Workers):  # fmt: skip
        self.args, self.model, self.data, self.device = args, model, data, device
        self.workers = workers
        self.train_rows, self.num_steps, self.step = train_rows, num_steps, 0
        self.warmup = 0  # steps without quantization
        if not args.init_from:
            self.warmup = min(max(1, int(args.unquantized * num_steps)), num_steps - 1)
        self.minutes_before, self.began = 0.0, time.monotonic()
        self.earlier: list[dict] = []  # the runs that --init-from began with
        if args.decoder_only:
            model.encoder.requires_grad_(False)
        learning = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, weight_decay=0.0, fused=True)
        self.average = {k: v.clone() for k, v in model.state_dict().items()} if args.ema else None
        self.guard = GradientGuard(self.optimizer, 1.0, workers)
        self.generator = torch.Generator().manual_seed(args.seed)
        spread = np.linspace(0, len(train_rows) - 1, min(NUM_MEDIAN_FRAMES, len(train_rows)))
        usual = self.pixels(train_rows[spread.astype(int)])
        self.median = median_frame(usual)
        self.rarity = deviation_rarity(usual, self.median)
        count = min(NUM_HELD_OUT_FRAMES, len(held_out_rows))
        spread = np.linspace(0, len(held_out_rows) - 1, count)
        self.held_out_rows = held_out_rows[spread.astype(int)]
        is_first = np.diff(data.episode_ids, prepend=-1) != 0
        self.before = np.arange(len(is_first)) - ~is_first  # the row before, in the same episode
        chances = None
        if args.rare_motion:
            chances = rare_motion_chances(
                data.frames, train_rows, self.before[train_rows], args.rare_motion
            )
        self.rows = Rows(train_rows, chances)
        self.best = -float("inf")

    def pixels(self, rows: np.ndarray) -> torch.Tensor:
        """Return frames as float (B, 3, H, W), channels last."""
        return frames_to_float(moved(torch.from_numpy(self.data.frames[rows]), self.device))

    @property
    def minutes(self) -> float:
        """Time spent training, earlier parts of a resumed run included."""
        return self.minutes_before + (time.monotonic() - self.began) / 60

    def next_command(self, run: RunDir) -> str:
        path = shlex.quote(str(run.path))
        return f"python v2/data/tokenize_atari.py --game {self.args.game} --vqvae {path}"

    def train_step(self) -> tuple[dict, int]:
        """Do one step; return metrics and the number of images seen."""
        args, step = self.args, self.step
        rows = self.rows.draw(step_rng(args.seed, step), args.batch_size)
        rows = self.workers.part(np.sort(rows))
        self.batch = {"frames": self.data.frames[rows]}
        pixels = self.pixels(rows)
        if step == self.warmup and not args.init_from:
            self.start_codebook()
        with autocast(self.device):
            output = self.model(pixels, is_quantized=step >= self.warmup)
        loss, metrics = self.loss(pixels, self.pixels(self.before[rows]), output.pixels.float())
        if step >= self.warmup and not args.decoder_only:
            loss = loss + self.model.config.commitment_weight * output.commitment
            metrics |= {"commitment": output.commitment.detach()} | self.code_use(output.tokens)
        loss.backward()
        self.workers.average([v for v in metrics.values() if torch.is_tensor(v)])
        rate = learning_rate(step, self.num_steps, args.lr, args.warmup_steps, args.decay)
        metrics["gradient_norm"] = self.guard.apply(loss.detach(), rate)
        if not (step < self.warmup or args.decoder_only or self.guard.has_skipped):
            is_reviving = step < args.revive_until * self.num_steps
            latents = output.latents.detach().float()
            self.model.quantizer.update(latents, output.tokens, 1.0 if is_reviving else 0.0)
        if self.average:
            average_weights(self.average, self.model, args.ema, step)
            if args.decoder_only:  # averaged with itself a -0 becomes a 0, which changes the hash
                kept = self.model.state_dict().items()
                self.average |= {k: v.clone() for k, v in kept if "decoder." not in k}
        metrics |= {"lr": rate, "skipped": self.guard.num_skipped}
        return metrics, args.batch_size

    def loss(self, pixels: torch.Tensor, before: torch.Tensor, decoded: torch.Tensor):
        """Return the weighted squared error with the worst pixel's, and metrics."""
        # Below black nothing is seen: free to overshoot a little, what is black stays clean.
        target = torch.where(pixels <= 0, decoded.detach().clamp(-OVERSHOOT, 0), pixels)
        squared = (decoded - target).square()
        scales = (self.args.rarity, self.args.motion)
        weights = pixel_weights(pixels, before, self.median, self.rarity, *scales)
        total = weights.sum()
        self.workers.average([total])  # the batch's, not only this part's
        reconstruction = (squared * weights).sum() / (total * 3)
        worst = squared.mean(1).flatten(1).amax(1).mean()
        return reconstruction + self.args.worst_pixel * worst, {
            "reconstruction_loss": reconstruction.detach(),
            "worst_pixel": worst.detach(),
        }

    @torch.no_grad()
    def start_codebook(self) -> None:
        rows = step_rng(self.args.seed, self.num_steps).choice(self.train_rows, 64)
        latents = self.model.encoder(self.pixels(np.sort(rows))).float()
        self.model.quantizer.initialise(latents, self.generator)
        self.workers.share(self.model.quantizer.state_dict().values())
        if self.average:
            self.average = {k: v.clone() for k, v in self.model.state_dict().items()}

    @torch.no_grad()
    def evaluate(self, run: RunDir) -> None:
        """Measure the averaged weights and keep the best."""
        trained = {k: v.clone() for k, v in self.model.state_dict().items()}
        if self.average:
            self.model.load_state_dict(self.average)
        held_out, score = self.measure(run)
        self.model.load_state_dict(trained)
        if self.step > self.warmup and score > self.best:
            self.best = score
            state = self.state(held_out)
            checkpoint.save_checkpoint(run.path / "best.pt", "vqvae", self.model, **state)

    def measure(self, run: RunDir) -> tuple[dict, float]:
        """Measure the round trip of held-out frames, as tokenizing does it, and draw some."""
        frames = self.data.frames[self.held_out_rows]
        decoded, tokens = [], []
        for rows in np.array_split(self.held_out_rows, max(1, len(self.held_out_rows) // 32)):
            with autocast(self.device):
                tokens.append(self.model.encode(self.pixels(rows)))
                pixels = self.model.decode(tokens[-1])
            decoded.append(float_to_frames(pixels).cpu().numpy())
        decoded = np.concatenate(decoded)
        held_out = {"held_out_psnr": float(np.mean(psnr(decoded, frames)))}
        held_out |= {f"held_out_{k}": v for k, v in self.code_use(torch.cat(tokens)).items()}
        game = self.data.emulator.game
        if has_truth(game):
            truth = read_ram(game, self.data.ram[self.held_out_rows])
            balls = ball_scores(truth, read_frames(game, decoded))
            held_out |= {f"ball_{k}": balls[k] for k in BALL_FIGURES}
        run.log(self.step, **held_out)
        tqdm.write(f"step {self.step}: " + "  ".join(f"{k} {v:.4g}" for k, v in held_out.items()))
        shown = np.linspace(0, len(frames) - 1, NUM_PICTURES).astype(int)
        save_grid(run.path / "samples" / f"{self.step:06d}.png", [frames[shown], decoded[shown]])
        found = held_out.get("ball_recall", 0.0) * held_out.get("ball_precision", 0.0)
        score = held_out["held_out_psnr"] + (20 * found if np.isfinite(found) else 0.0)
        return held_out, score  # nan: no held-out frame has a ball

    def code_use(self, tokens: torch.Tensor) -> dict:
        shares = code_histogram(tokens.cpu(), self.model.config.num_codes)
        return {"codes_used": int((shares > 0).sum()), "perplexity": perplexity(shares)}

    def state(self, metrics: dict | None = None) -> dict:
        return {
            "optimizer": self.optimizer.state_dict(),
            "ema": self.average,
            "step": self.step,
            "minutes": self.minutes,
            "earlier": self.earlier,
            "rng": {"generator": self.generator.get_state(), "torch": torch.get_rng_state()},
            "metrics": metrics or {},
            "best": self.best,
            "skipped": self.guard.num_skipped,
            "train_args": plain_args(self.args),
            "num_steps": self.num_steps,
            "warmup": self.warmup,
            "emulator": self.data.meta["emulator"],
            "action_meanings": self.data.meta["action_meanings"],
            "data_sha256": data_sha256(self.data.meta),
        }

    def save(self, run: RunDir) -> None:
        checkpoint.save_rotating(run.path / "last.pt", "vqvae", self.model, **self.state())

    def load(self, run: RunDir) -> None:
        """Continue exactly where the run's last checkpoint is."""
        state = checkpoint.load_last(run.path, "vqvae")
        checkpoint.check_resumable(state, run.path / "last.pt", "data_sha256", "warmup")
        if state["data_sha256"] != data_sha256(self.data.meta):
            raise ValueError(f"{run.path} was trained on other data: --resume needs the same file")
        checkpoint.restore(self.model, state, run.path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = resumed_average(state["ema"], self.model, bool(self.args.ema))
        self.step, self.best, self.warmup = state["step"], state["best"], state["warmup"]
        self.guard.num_skipped = state.get("skipped", 0)
        self.minutes_before, self.earlier = state.get("minutes", 0.0), state.get("earlier", [])
        self.generator.set_state(state["rng"]["generator"])
        torch.set_rng_state(state["rng"]["torch"])


if __name__ == "__main__":
    cli.run(main)
