"""Speed of every part, as a share of what this machine's matrix product reaches in the same run.

    python v2/eval/benchmark.py --json speed.json
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import contextlib
import copy
import functools
import json
import resource
import tempfile
from typing import Any
from unittest import mock

import numpy as np
import torch

from v2.agents.dreams import Dreams
from v2.data.dream_starts import load_starts
from v2.data.emulator import make_atari_env
from v2.data.frames import FRAME_SHAPE, frames_to_float
from v2.data.tokens import encode_frames
from v2.dream import DreamEngine
from v2.dream_env import DreamAtariVectorEnv
from v2.eval.documents import hand_on
from v2.eval.flops import count_flops, matrix_products, timed
from v2.eval.objects import detector
from v2.export.engine import OnnxDream
from v2.export.graph import export_graph
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig, fields_of
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.runtime.device import (
    autocast,
    cast_weights,
    choose_device,
    compiled,
    laid_out,
    moved,
    tune_cpu,
)
from v2.runtime.files import check_output
from v2.train.optim import world_model_optimizers
from v2.train.recipe import WorldModelRecipe
from v2.train.sampling import read_windows
from v2.train.step_cost import (
    image_work,
    learn_images,
    random_tokens,
    train_windows,
    window_work,
)

NUM_ACTIONS = 4
NUM_CELLS, FEWER_CELLS = 128, (48, 64, 96)  # active cells
NUM_DREAMS = (1, 8, 32, 128)  # in a batch of the environment
SURE_TO_COPY = 12.0  # a copy bias that leaves no doubt


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=cli.positive_float, default=3.0,
                        help="time spent on each figure")  # fmt: skip
    parser.add_argument("--compile", action="store_true",
                        help="also the compiled models: minutes of compiling")  # fmt: skip
    parser.add_argument("--json", type=cli.path, metavar="FILE", help="write the figures")
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    tune_cpu()
    device = choose_device(args.device)
    if args.json:
        check_output(args.json)
    torch.manual_seed(0)
    bench = Benchmark(device, args.seconds)
    for name, rate in bench.peaks.items():
        print(f"matrix product {name}: {rate:.0f} GFLOP/s")
    print(f"{'what':58s} {'a second':>9s} {'p50 ms':>8s} {'p95 ms':>8s} {'GFLOP':>7s}  of peak"
          "  peak MiB")
    bench.dream_steps(args.compile)
    bench.environments()
    bench.encoding()
    bench.train_vqvae(args.compile)
    bench.train_world_model(args.compile)
    peak_bytes = max(row["peak_memory_bytes"] for row in bench.rows)
    print(f"peak memory {peak_bytes / 2**30:.2f} GiB")
    figures = {"device": str(device), "peaks": bench.peaks, "rows": bench.rows,
               "peak_memory_bytes": peak_bytes}  # fmt: skip
    hand_on(figures, json.dumps(figures), args.json)
    return 0


class Benchmark:
    """Times parts one after another and prints a row for each."""

    def __init__(self, device: torch.device, seconds: float):
        self.device, self.seconds = device, seconds
        self.peaks = matrix_products(device, seconds)
        self.rows: list[dict] = []
        self.vqvae = laid_out(VQVAE(VQVAEConfig()), device)
        self.world_model = TemporalWorldModel(_config()).to(device)

    def row(self, name: str, work, count: int = 1, flops: float = 0.0) -> dict:
        """Time `work`, which does `count` things of `flops` each; print and return the figures."""
        _forget_peak_memory(self.device)
        times = np.array(timed(work, self.seconds, self.device))
        rate = count / np.median(times)
        share = rate * flops / 1e9 / max(self.peaks.values())
        row: dict[str, Any] = {
            "name": name, "per_second": float(rate), "p50_ms": 1e3 * float(np.median(times)),
            "p95_ms": 1e3 * float(np.quantile(times, 0.95)), "gflop": flops / 1e9,
            "share_of_peak": float(share), "peak_memory_bytes": _peak_memory(self.device),
        }  # fmt: skip
        self.rows.append(row)
        print(f"{name:58s} {rate:9.1f} {row['p50_ms']:8.1f} {row['p95_ms']:8.1f} "
              f"{flops / 1e9:7.2f} {share:8.0%} {row['peak_memory_bytes'] / 2**20:9.0f}",
              flush=True)  # fmt: skip
        return row

    def dream_steps(self, with_compiled: bool) -> None:
        """Predict, decode, to uint8: by what runs it, over active cells and over dreams."""
        frames = np.random.default_rng(0).integers(0, 256, (4, *FRAME_SHAPE), dtype=np.uint8)
        vqvae = copy.deepcopy(self.vqvae)
        cast_weights(vqvae, self.device)
        for num_cells in (*FEWER_CELLS, NUM_CELLS, 0):
            plain = self.model(num_cells)
            model = copy.deepcopy(plain)
            cast_weights(model, self.device)
            engine = DreamEngine(vqvae, model, self.device)
            engines = {"in PyTorch": engine, "float32": DreamEngine(self.vqvae, plain, self.device)}
            if self.device.type == "cpu":
                engines["in ONNX Runtime, float32"] = self._exported(plain)
            if with_compiled and num_cells == NUM_CELLS:
                own = copy.deepcopy(model)
                engines["compiled"] = DreamEngine(vqvae, own, self.device).compile()
            for name, each in engines.items():
                each.reset(frames, np.zeros(3, int))
                with _precision(name):
                    flops = 0.0
                    if name in ("in PyTorch", "float32"):
                        with torch.inference_mode():
                            flops = count_flops(functools.partial(each.step, 0))
                    title = f"dream step {name}, {_cells(num_cells)}"
                    self.row(title, functools.partial(each.step, 0), 1, flops)
            if num_cells != NUM_CELLS:
                continue
            for batch in (4, 16, 64):
                engine.reset(np.stack([frames] * batch), np.zeros((batch, 3), int))
                actions = np.zeros(batch, int)
                for what, step in (("", engine.step), (", tokens alone", engine.step_tokens)):
                    self.row(f"dream steps, batch {batch}, {_cells(num_cells)}{what}",
                             functools.partial(step, actions), batch)  # fmt: skip

    def _exported(self, model: TemporalWorldModel) -> OnnxDream:
        engine = OnnxDream(self.vqvae, model)
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "step.onnx"
            export_graph(self.vqvae, model, graph)
            engine.use_graph(graph)
        return engine

    def environments(self) -> None:
        """Step batches of the environment, what a step is made of, and the real game."""
        vqvae, model = copy.deepcopy(self.vqvae), copy.deepcopy(self.model(NUM_CELLS))
        for each in (vqvae, model):
            cast_weights(each, self.device)
        starts, of = load_starts("breakout"), f"{NUM_CELLS} active cells"
        for batch in NUM_DREAMS:
            for observation in ("rgb", "tokens") if batch == NUM_DREAMS[-2] else ("rgb",):
                engine = DreamEngine(vqvae, model, self.device)
                dreams = Dreams(engine, starts, batch, observation)
                envs = DreamAtariVectorEnv(dreams=dreams, max_episode_steps=500)
                envs.reset(seed=0)
                actions = np.zeros(batch, int)
                self.row(f"environment, {batch} dreams, {observation}, {of}",
                         functools.partial(envs.step, actions), batch)  # fmt: skip
                if batch == NUM_DREAMS[-2] and observation == "rgb":
                    frames, tokens = dreams.frames(), engine.tokens
                    for name, work in (
                        ("world model", functools.partial(engine.step_tokens, actions)),
                        ("decoder", functools.partial(engine.decode, tokens)),
                        ("lives", functools.partial(detector.read_lives, "breakout", frames)),
                    ):
                        self.row(f"environment, {batch} dreams: {name} alone", work, batch)
        env = make_atari_env("breakout")
        env.reset()
        self.row("environment, the real game", functools.partial(_real_step, env))

    def model(self, num_cells: int) -> TemporalWorldModel:
        """Return the world model with so many active cells; 0: all."""
        model = TemporalWorldModel(_config(num_cells)).to(self.device)
        model.load_state_dict(self.world_model.state_dict(), strict=False)
        return model

    def encoding(self) -> None:
        frames = np.zeros((128, *FRAME_SHAPE), np.uint8)
        for t in range(128):
            frames[t, t % 80 : t % 80 + 2, t % 60 : t % 60 + 2] = 200  # a ball and nothing else
        engine = DreamEngine(self.vqvae, self.world_model, self.device)
        pixels = self._noise(16)
        with torch.inference_mode():
            flops = count_flops(lambda: self.vqvae.encode(pixels)) / 16
        for name in ("every token", "every token, float32"):
            with _precision(name):
                self.row(f"encode, {name}", lambda: engine.encode(frames[:16]), 16, flops)
        self.row("tokenize, changed tokens only",
                 lambda: encode_frames(self.vqvae, frames, self.device), 128)  # fmt: skip

    def train_vqvae(self, with_compiled: bool) -> None:
        """Forward and backward of a batch, without the optimizer; and its data."""
        rng, what = np.random.default_rng(0), "VQ-VAE training image"
        frames = rng.integers(0, 256, (4096, *FRAME_SHAPE), np.uint8)
        rows = np.sort(rng.integers(1, 4096, 16))
        loading = self.row(f"{what}: its data alone",
                           lambda: (self._pixels(frames[rows]), self._pixels(frames[rows - 1])),
                           len(rows))  # fmt: skip
        pixels = self._noise(len(rows))
        flops = count_flops(image_work(self.vqvae))
        variants = {
            "float32": torch.contiguous_format, "float32, channels last": torch.channels_last,
            "autocast": torch.contiguous_format, "as trained": torch.channels_last,
        }  # fmt: skip
        for name in [*variants, *(["compiled"] if with_compiled else [])]:
            memory_format = variants.get(name, torch.channels_last)
            model = laid_out(self.vqvae, self.device, memory_format)
            model = compiled(model) if name == "compiled" else model
            batch = pixels.to(memory_format=memory_format)
            with _precision(name), autocast(self.device):
                row = self.row(f"{what}, {name}",
                               functools.partial(learn_images, model, batch), len(rows), flops)
            row["share_waiting_for_data"] = row["per_second"] / loading["per_second"]

    def _noise(self, count: int) -> torch.Tensor:
        height, width, channels = FRAME_SHAPE
        return torch.rand(count, channels, height, width, device=self.device)

    def _pixels(self, frames: np.ndarray) -> torch.Tensor:
        return frames_to_float(moved(torch.from_numpy(frames), self.device))

    def train_world_model(self, with_compiled: bool) -> None:
        """A step of a batch of windows, its optimizer included; and its data."""
        tokens, recipe = random_tokens(), WorldModelRecipe()
        of_rollouts = recipe.rollout_batch_size, recipe.rollout_steps
        for (batch, steps), num_cells, num_layers in (
            ((recipe.batch_size, 1), recipe.first_cells, recipe.first_layers),
            *(((recipe.batch_size, 1), cells, 0) for cells in (*FEWER_CELLS, NUM_CELLS, 0)),
            *((of_rollouts, cells, 0) for cells in (NUM_CELLS, 0)),
        ):
            plain = self.model(num_cells)
            starts = np.arange(batch) * 9
            windows = read_windows(tokens, starts, 4, steps).to(self.device)
            name = f"world model training frame, K={steps}, {_cells(num_cells)}"
            name += f", {num_layers} layers" if num_layers else ""
            loading = self.row(f"{name}: its data alone",
                               lambda: read_windows(tokens, starts, 4, steps), batch * steps)  # noqa: B023
            flops = count_flops(window_work(plain, steps, 0, num_layers)) / (2 * steps)
            variants = {"": plain}
            if num_cells == NUM_CELLS:
                variants |= {", float32": plain}
                variants |= {", compiled": compiled(plain)} if with_compiled else {}
            for variant, model in variants.items():
                with _precision(variant):
                    optimizers = world_model_optimizers(plain, recipe, self.device)
                    work = functools.partial(
                        train_windows, model, windows, optimizers, num_layers
                    )
                    row = self.row(f"{name}{variant}", work, batch * steps, flops)
                row["share_waiting_for_data"] = row["per_second"] / loading["per_second"]


def _config(num_cells: int = 0) -> WorldModelConfig:
    """Return that of the default recipe's model, with so many active cells."""
    own = {"copy_bias": SURE_TO_COPY, "num_cells": num_cells}
    return WorldModelConfig(NUM_ACTIONS, **fields_of(WorldModelRecipe()) | own)


def _cells(num_cells: int) -> str:
    return f"{num_cells} cells" if num_cells else "all cells"


def _real_step(env) -> None:
    if env.step(1)[2]:
        env.reset()


def _precision(name: str):
    """Return a context of float32, without TF32, where a name says so."""
    context = contextlib.ExitStack()
    if "float32" in name:
        context.enter_context(mock.patch("v2.runtime.device.has_fast_bfloat16", return_value=False))
        context.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
    return context


def _forget_peak_memory(device: torch.device) -> None:
    """Let the next peak be that of what follows, where the system can (Linux, CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    cli.run(main)
