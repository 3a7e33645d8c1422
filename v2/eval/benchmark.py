"""Speed of every part, as a share of what this machine's matrix product reaches in the same run.

    python v2/eval/benchmark.py --json speed.json
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import json
import resource
import time

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from v2 import command_line
from v2.data.tokens import encode_frames
from v2.device import choose_device, compiled, has_fast_bfloat16
from v2.dream import DreamEngine
from v2.files import write_text
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.train.wm_loss import LossConfig, Windows, WorldModelLoss

NUM_ACTIONS = 4
TRAINING_BATCH = 8


def build_parser():
    parser = command_line.parser(__doc__.splitlines()[0], __doc__.splitlines()[2].strip())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=command_line.positive_float, default=3.0,
                        help="time spent on each figure")  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="also the compiled world model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    device = choose_device(args.device)
    torch.manual_seed(0)
    bench = Benchmark(device, args.seconds)
    bench.measure_peaks()
    print(f"{'what':42s} {'a second':>9s} {'p50 ms':>8s} {'p95 ms':>8s} {'GFLOP':>7s}  of peak")
    bench.dream_steps()
    bench.encoding()
    bench.training(args.compile)
    peak_bytes = _peak_memory(device)
    print(f"peak memory {peak_bytes / 2**30:.2f} GiB")
    figures = {"device": str(device), "peaks": bench.peaks, "rows": bench.rows,
               "peak_memory_bytes": peak_bytes}  # fmt: skip
    if args.json:
        write_text(args.json, json.dumps(figures, indent=1))
    print(json.dumps(figures))
    return 0


class Benchmark:
    """Times parts one after another and prints a row for each."""

    def __init__(self, device: torch.device, seconds: float):
        self.device, self.seconds = device, seconds
        self.peaks: dict[str, float] = {}
        self.rows: list[dict] = []
        self.vqvae = VQVAE(VQVAEConfig()).to(device, memory_format=torch.channels_last)
        self.world_model = TemporalWorldModel(WorldModelConfig(NUM_ACTIONS)).to(device)

    def measure_peaks(self) -> None:
        """Measure 2048 x 2048 matrix products in each precision."""
        dtypes = [torch.float32, *([torch.bfloat16] if has_fast_bfloat16(self.device) else [])]
        for dtype in dtypes:
            a = torch.randn(2048, 2048, device=self.device, dtype=dtype)
            times = self._times(lambda a=a: a @ a)
            name = str(dtype).removeprefix("torch.")
            self.peaks[name] = 2 * 2048**3 / min(times) / 1e9
            print(f"matrix product {name}: {self.peaks[name]:.0f} GFLOP/s")

    def row(self, name: str, work, count: int = 1, flops: float = 0.0) -> None:
        """Time `work`, which does `count` things of `flops` each."""
        times = np.array(self._times(work))
        rate = count / np.median(times)
        share = rate * flops / 1e9 / max(self.peaks.values())
        row = {"name": name, "per_second": float(rate), "p50_ms": 1e3 * float(np.median(times)),
               "p95_ms": 1e3 * float(np.quantile(times, 0.95)), "gflop": flops / 1e9,
               "share_of_peak": float(share)}  # fmt: skip
        self.rows.append(row)
        print(f"{name:42s} {rate:9.1f} {row['p50_ms']:8.1f} {row['p95_ms']:8.1f} "
              f"{flops / 1e9:7.2f} {share:8.0%}", flush=True)  # fmt: skip

    def dream_steps(self) -> None:
        """Predict, decode, to uint8."""
        engine = DreamEngine(self.vqvae, self.world_model, self.device)
        frames = np.random.default_rng(0).integers(0, 256, (4, 84, 64, 3), dtype=np.uint8)
        flops = 0.0
        for batch in (1, 4, 16, 64):
            engine.reset(np.stack([frames] * batch), np.zeros((batch, 3), int))
            actions = np.zeros(batch, int)
            if batch == 1:
                flops = _flops(lambda: engine.step(actions))  # noqa: B023
            self.row(f"dream step, batch {batch}", lambda: engine.step(actions), batch, flops)  # noqa: B023

    def encoding(self) -> None:
        pixels = torch.rand(16, 3, 84, 64, device=self.device)
        pixels = pixels.to(memory_format=torch.channels_last)
        with torch.inference_mode():
            flops = _flops(lambda: self.vqvae.encode(pixels)) / 16
            self.row("encode, every token", lambda: self.vqvae.encode(pixels), 16, flops)
        frames = np.zeros((128, 84, 64, 3), np.uint8)
        for t in range(128):
            frames[t, t % 80 : t % 80 + 2, t % 60 : t % 60 + 2] = 200  # a ball and nothing else
        self.row("tokenize, changed tokens only",
                 lambda: encode_frames(self.vqvae, frames, self.device), 128)  # fmt: skip

    def training(self, with_compiled: bool) -> None:
        """One training step of each model, without the optimizer."""
        pixels = torch.rand(16, 3, 84, 64, device=self.device)
        for name, memory_format in (
            ("contiguous", torch.contiguous_format),
            ("channels last", torch.channels_last),
        ):
            model = self.vqvae.to(memory_format=memory_format)
            batch = pixels.to(memory_format=memory_format)
            flops = _flops(lambda: _train_vqvae(model, batch)) / 16  # noqa: B023
            self.row(f"VQ-VAE training image, {name}",
                     lambda: _train_vqvae(model, batch), 16, flops)  # fmt: skip  # noqa: B023
        for steps in (1, 5):
            windows = _windows(TRAINING_BATCH if steps == 1 else 4, steps).to(self.device)
            count = len(windows.tokens) * steps
            variants = {"eager": self.world_model}
            if with_compiled:
                variants["compiled"] = compiled(self.world_model)
            flops = _flops(lambda: self._train(self.world_model, windows)) / count  # noqa: B023
            for name, model in variants.items():
                self.row(f"world model training sample, K={steps}, {name}",
                         lambda: self._train(model, windows), count, flops)  # fmt: skip  # noqa: B023

    def _train(self, model, windows: Windows) -> None:
        codebook, grid = self.vqvae.quantizer.codebook, self.vqvae.config.grid
        loss = WorldModelLoss(LossConfig(), codebook, torch.ones(336), grid, self.device)
        self.world_model.zero_grad(set_to_none=True)
        batch, steps = windows.reward_signs.shape
        loss(model, windows, torch.zeros(batch, steps, dtype=torch.bool))

    def _times(self, work) -> list[float]:
        work()
        self._wait()
        times, began = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - began < self.seconds:
            start = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - start)
        return times

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _train_vqvae(model: VQVAE, pixels: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    output = model(pixels)
    ((output.pixels - pixels).square().mean() + output.commitment).backward()


def _windows(batch: int, steps: int) -> Windows:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(32, (batch, 4 + steps, 336), generator=generator)
    actions = torch.randint(NUM_ACTIONS, (batch, 3 + steps), generator=generator)
    return Windows(tokens, actions, torch.ones(batch, steps).long(), torch.zeros(batch, steps))


def _flops(work) -> float:
    """Count multiplications and additions of matrix products, attention and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    command_line.run(main)
