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

import dataclasses
import time

import numpy as np
import torch
from tqdm import tqdm

from v2.data.atari_dataset import (
    GameData,
    check_emulator,
    check_game,
    check_training_games,
    data_sha256,
    hold_out_end,
    load_game_data,
    set_bad_aside,
    spread,
)
from v2.data.frames import float_to_frames, frames_to_float
from v2.data.games import find_weights, game_directory
from v2.data.recordings import Data, check_recorded, default_data, list_episodes, shown
from v2.data.tokens import TOKENS_NAME, recordings_sha256
from v2.eval.metrics import ball_scores, code_histogram, perplexity, psnr
from v2.eval.objects.detector import has_truth, read_frames, read_ram
from v2.eval.pictures import save_grid
from v2.models.vqvae_hires import USUAL_COLOUR, VQVAE, VQVAEConfig
from v2.models.weights import load_vqvae, told
from v2.runtime import checkpoint
from v2.runtime.commands import command, given
from v2.runtime.device import autocast, laid_out, moved, tune_cpu
from v2.runtime.files import check_writable
from v2.runtime.run_dir import RunDir
from v2.train.distributed import Workers, join
from v2.train.flags import Parsed, parse, plain_args, training_parser
from v2.train.loop import run_trainer
from v2.train.optim import ADAM_BETAS, GradientGuard, learning_rate, resumed_ema, update_ema
from v2.train.recipe import VQVAE_PRESETS, VQVAERecipe
from v2.train.sampling import Rows, rare_motion_chances, step_rng
from v2.train.vqvae_loss import ReconstructionLoss

NUM_MEDIAN_FRAMES = 1001
NUM_HELD_OUT_FRAMES, NUM_PICTURES = 512, 8  # at most, and at least
BALL_FIGURES = ("recall", "precision", "false_balls", "error_median_px")


def build_parser():
    return training_parser(__file__, VQVAE_PRESETS)


def main(argv=None) -> int:
    parsed = parse(build_parser(), VQVAE_PRESETS, argv)
    args, recipe = parsed.args, parsed.recipe
    tune_cpu()
    workers, device = join(args.device)
    workers.check_batch("--batch-size", recipe.batch_size)
    torch.manual_seed(args.seed)
    home = args.out or game_directory(args.game)
    check_writable(args.resume or home / "runs")
    if args.resume and workers.is_writer:
        RunDir(args.resume).check_free()
    named: Data = args.data or default_data(args.game, args.out)
    check_recorded(named, args.game)
    if args.skip_bad and workers.is_writer:
        set_bad_aside(named)
    workers.wait()
    check_game(named, args.game)
    check_training_games(named, list_episodes(named).episodes)
    print(f"data: {shown(named)}")
    data = load_game_data(named)
    hold_out_end(data)
    if data.emulator.package:
        print(f"environment: {data.emulator.game} of {data.emulator.package}")
    earlier: list[dict] = []
    if args.resume:
        model = VQVAE(_config_at(checkpoint.load_last(args.resume, "vqvae")["config"]))
    elif recipe.init_from:
        start = find_weights(recipe.init_from, "vqvae", args.game)
        model, earlier = _started_from(start, recipe, named)
    else:
        model = VQVAE(_config_at(_usual_colour(data)))
    model = laid_out(model, device)
    trainer = Trainer(parsed, model, data, device, workers)
    trainer.earlier, trainer.recordings_sha256 = earlier, recordings_sha256(named)
    run = RunDir(args.resume) if args.resume else None
    if workers.is_writer and not args.resume:
        config = {"args": plain_args(args), "recipe": dataclasses.asdict(recipe),
                  "is_smoke": recipe.is_smoke, "game": data.emulator.game}  # fmt: skip
        run = RunDir.create(home, "vqvae", config)
    return run_trainer(trainer, run)


def _usual_colour(data: GameData) -> dict[str, float]:
    """Return the median of each colour over the training games, as the config has it."""
    frames = data.frames[spread(data.rows_of("train"), NUM_MEDIAN_FRAMES)]
    median = np.median(frames.reshape(-1, 3), axis=0) / 255
    return dict(zip(USUAL_COLOUR, median.tolist(), strict=True))


def _config_at(colour: dict) -> VQVAEConfig:
    """Return today's config at a usual colour, or at that of a stored config."""
    return VQVAEConfig(**{k: colour.get(k, 0.0) for k in USUAL_COLOUR})


def _started_from(path: Path, recipe: VQVAERecipe, data: Data) -> tuple[VQVAE, list[dict]]:
    """Return a VQ-VAE with the weights of another one, and how those were trained."""
    began, info = load_vqvae(path)
    check_emulator(data, path, info)
    stored = dataclasses.asdict(began.config)
    model = VQVAE(_config_at(stored))
    checkpoint.check_architecture(model, stored, path)
    model.load_state_dict(began.state_dict())
    if not recipe.decoder_only:  # float16 holds no count above 65,504: sums must fit to it
        codes = model.quantizer
        codes.sums.copy_(codes.codebook * codes.counts.unsqueeze(1))
    return model, checkpoint.lineage(info)


class Trainer:
    """The state of a run: model, optimizer and step."""

    script = "train_vqvae_hires.py"

    def __init__(self, parsed: Parsed[VQVAERecipe], model, data: GameData, device,
                 workers: Workers):  # fmt: skip
        self.args, self.recipe, self.changed = parsed.args, parsed.recipe, parsed.changed
        self.model, self.data, self.device, self.workers = model, data, device, workers
        recipe = self.recipe
        self.train_rows, held_out_rows = data.rows_of("train"), data.rows_of("val")
        self.num_steps, self.step = recipe.num_steps(len(self.train_rows)), 0
        self.warmup = 0  # steps without quantization
        if not recipe.init_from:
            most = max(1, self.num_steps // 10)
            self.warmup = min(recipe.unquantized_steps, most, self.num_steps - 1)
        self.minutes_before, self.began = 0.0, time.monotonic()
        self.earlier: list[dict] = []  # the runs whose weights it began with
        self.recordings_sha256: list[str] = []
        if recipe.decoder_only:
            model.encoder.requires_grad_(False)
        learning = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, betas=ADAM_BETAS, weight_decay=0.0, fused=True)
        self.ema = {k: v.clone() for k, v in model.state_dict().items()} if recipe.ema else None
        self.guard = GradientGuard(self.optimizer, 1.0, workers)
        self.generator = torch.Generator().manual_seed(self.args.seed)
        usual = self.pixels(spread(self.train_rows, NUM_MEDIAN_FRAMES))
        self.loss = ReconstructionLoss(recipe, usual, workers.average)
        num_seen = min(recipe.eval_steps, self.num_steps) * recipe.batch_size
        num_held_out = max(NUM_PICTURES, min(NUM_HELD_OUT_FRAMES, num_seen // 2))
        self.held_out_rows = spread(held_out_rows, num_held_out)
        is_first = np.diff(data.episode_ids, prepend=-1) != 0
        self.before = np.arange(len(is_first)) - ~is_first  # the row before, in the same episode
        chances = None
        if recipe.rare_motion:
            chances = rare_motion_chances(
                data.frames, self.train_rows, self.before[self.train_rows], recipe.rare_motion
            )
        self.rows = Rows(self.train_rows, chances)
        self.best = -float("inf")

    def pixels(self, rows: np.ndarray) -> torch.Tensor:
        """Return frames as float (B, 3, H, W), channels last."""
        return frames_to_float(moved(torch.from_numpy(self.data.frames[rows]), self.device))

    @property
    def minutes(self) -> float:
        """Time spent training, earlier parts of a resumed run included."""
        return self.minutes_before + (time.monotonic() - self.began) / 60

    def next_command(self, run: RunDir) -> str:
        args = self.args
        tokens = args.out and args.out / f"{TOKENS_NAME}.npz"
        return command("data/tokenize_atari.py", **given(args, "game", "data", "device"),
                       vqvae=run.path, out=tokens)  # fmt: skip

    def train_step(self) -> tuple[dict, int]:
        """Do one step; return metrics and the number of images seen."""
        recipe, step = self.recipe, self.step
        rows = self.rows.draw(step_rng(self.args.seed, step), recipe.batch_size)
        rows = self.workers.part(np.sort(rows))
        self.batch = {"frames": self.data.frames[rows]}
        pixels = self.pixels(rows)
        if step == self.warmup and not recipe.init_from:
            self.start_codebook()
        with autocast(self.device):
            output = self.model(pixels, is_quantized=step >= self.warmup)
        loss, metrics = self.loss(pixels, self.pixels(self.before[rows]), output.pixels.float())
        if step >= self.warmup and not recipe.decoder_only:
            loss = loss + self.model.config.commitment_weight * output.commitment
            metrics |= {"commitment": output.commitment.detach()} | self.code_use(output.tokens)
        loss.backward()
        self.workers.average([v for v in metrics.values() if torch.is_tensor(v)])
        rate = learning_rate(step, self.num_steps, recipe.lr, recipe.warmup_steps, recipe.decay)
        metrics["gradient_norm"] = self.guard.apply(loss.detach(), rate)
        if not (step < self.warmup or recipe.decoder_only or self.guard.has_skipped):
            is_reviving = step < recipe.revive_until * self.num_steps
            latents = output.latents.detach().float()
            self.model.quantizer.update(latents, output.tokens, 1.0 if is_reviving else 0.0)
        if self.ema:
            update_ema(self.ema, self.model, recipe.ema, step)
            if recipe.decoder_only:  # averaged with itself a -0 becomes a 0, which changes the hash
                kept = self.model.state_dict().items()
                self.ema |= {k: v.clone() for k, v in kept if "decoder." not in k}
        metrics |= {"lr": rate, "skipped": self.guard.num_skipped}
        return metrics, recipe.batch_size

    @torch.no_grad()
    def start_codebook(self) -> None:
        rows = step_rng(self.args.seed, self.num_steps).choice(self.train_rows, 64)
        latents = self.model.encoder(self.pixels(np.sort(rows))).float()
        self.model.quantizer.initialise(latents, self.generator)
        self.workers.share(self.model.quantizer.state_dict().values())
        if self.ema:
            self.ema = {k: v.clone() for k, v in self.model.state_dict().items()}

    @torch.no_grad()
    def evaluate(self, run: RunDir) -> None:
        """Measure the averaged weights and keep the best."""
        trained = {k: v.clone() for k, v in self.model.state_dict().items()}
        if self.ema:
            self.model.load_state_dict(self.ema)
        held_out, score = self.measure(run)
        self.model.load_state_dict(trained)
        if self.step > self.warmup and score > self.best:
            self.best = score
            state = self.state(held_out)
            checkpoint.save_checkpoint(run.path / "best.pt", "vqvae", self.model, **state)

    def measure(self, run: RunDir) -> tuple[dict, float]:
        """Measure the round trip of held-out frames, as tokenizing does it, and draw some."""
        frames = self.data.frames[self.held_out_rows]
        parts, tokens = [], []
        for rows in np.array_split(self.held_out_rows, max(1, len(self.held_out_rows) // 32)):
            with autocast(self.device):
                tokens.append(self.model.encode(self.pixels(rows)))
                pixels = self.model.decode(tokens[-1])
            parts.append(float_to_frames(pixels).cpu().numpy())
        decoded = np.concatenate(parts)
        held_out = {"held_out_psnr": float(np.mean(psnr(decoded, frames)))}
        held_out |= {f"held_out_{k}": v for k, v in self.code_use(torch.cat(tokens)).items()}
        game = self.data.emulator.game
        if has_truth(game):
            truth = read_ram(game, self.data.ram[self.held_out_rows])
            balls = ball_scores(truth, read_frames(game, decoded))
            held_out |= {f"ball_{k}": balls[k] for k in BALL_FIGURES}
        run.log(self.step, **held_out)
        tqdm.write(f"step {self.step}: " + "  ".join(f"{k} {v:.4g}" for k, v in held_out.items()))
        shown = spread(np.arange(len(frames)), NUM_PICTURES)
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
            "ema": self.ema,
            "step": self.step,
            "minutes": self.minutes,
            "earlier": self.earlier,
            "rng": {"generator": self.generator.get_state(), "torch": torch.get_rng_state()},
            "metrics": metrics or {},
            "best": self.best,
            "skipped": self.guard.num_skipped,
            "recipe": dataclasses.asdict(self.recipe),
            "seed": self.args.seed,
            "num_steps": self.num_steps,
            "warmup": self.warmup,
            "emulator": self.data.meta["emulator"],
            "action_meanings": self.data.meta["action_meanings"],
            "data_sha256": data_sha256(self.data.meta),
            "recordings_sha256": self.recordings_sha256,
        }

    def save(self, run: RunDir) -> None:
        checkpoint.save_rotating(run.path / "last.pt", "vqvae", self.model, **self.state())

    def load(self, run: RunDir) -> None:
        """Continue exactly where the run's last checkpoint is."""
        state = checkpoint.load_last(run.path, "vqvae")
        checkpoint.check_resumable(state, run.path / "last.pt", "data_sha256", "warmup")
        if state["data_sha256"] != data_sha256(self.data.meta):
            raise ValueError(f"{run.path} was trained on other data: --resume needs the same file")
        checkpoint.restore(self.model, told(state), run.path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema = resumed_ema(state["ema"], self.model, bool(self.recipe.ema))
        self.step, self.best, self.warmup = state["step"], state["best"], state["warmup"]
        self.guard.num_skipped = state.get("skipped", 0)
        self.minutes_before, self.earlier = state.get("minutes", 0.0), state.get("earlier", [])
        self.generator.set_state(state["rng"]["generator"])
        torch.set_rng_state(state["rng"]["torch"])


if __name__ == "__main__":
    cli.run(main)
