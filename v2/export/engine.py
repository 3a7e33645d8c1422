"""A dream whose steps run in ONNX Runtime: the quickest on a CPU.

Contract: the same tokens as the DreamEngine in float32. The graph is exported once for each pair of
weights and kept beside the game's data. A batch, or tokens that are sampled, run in PyTorch.
"""

import dataclasses
import functools
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from v2.data.frames import FRAME_SHAPE
from v2.data.games import find_weights, game_directory, shipped_directory
from v2.dream import DreamEngine
from v2.export.graph import (
    DECODING_VERSION,
    ENCODER_INPUTS,
    GRAPH_VERSION,
    INPUTS,
    export_encoder,
    export_graph,
    no_cells,
)
from v2.models.vqvae_hires import MARGIN, WINDOW
from v2.runtime.device import choose_device, has_fast_bfloat16
from v2.runtime.files import check_writable, file_sha256, write_text

GRAPHS = "graphs"  # folder of exported graphs
NUM_TIMED = 20  # steps


class OnnxDream(DreamEngine):
    """A DreamEngine that takes the steps of one greedy dream in ONNX Runtime."""

    runtime = "ONNX Runtime"
    has_cast_weights = False
    _session: onnxruntime.InferenceSession | None = None
    _encoder: onnxruntime.InferenceSession | None = None
    _encoded: tuple[np.ndarray, np.ndarray] | None = None  # the last frame's pixels and tokens
    _kept: tuple[np.ndarray, np.ndarray]  # tokens, and what the graph keeps of their frame

    def use_graph(self, path: Path) -> None:
        """Step with an exported graph of these models."""
        self._session, self._kept = open_graph(path), no_cells(self.vqvae)

    def use_encoder(self, path: Path) -> None:
        """Tokenize single frames with an exported encoder: what changed since the last one."""
        # small: one thread is no slower, and waits for no other
        self._encoder, self._encoded = open_graph(path, num_threads=1), None

    def encode(self, frames: np.ndarray) -> np.ndarray:
        is_one = np.shape(frames) == (1, *FRAME_SHAPE) and np.asarray(frames).dtype == np.uint8
        if self._encoder is None or not is_one:
            return super().encode(frames)
        pixels = np.pad(frames[0], ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
        before, tokens = self._encoded or (None, np.zeros(self.grid, np.int64))
        rows, columns = _windows(pixels != before).any((2, 3, 4)).nonzero()
        if len(rows):
            given = _windows(pixels)[rows, columns], rows, columns
            (found,) = self._encoder.run(None, dict(zip(ENCODER_INPUTS, given, strict=True)))
            tokens = tokens.copy()
            tokens[rows, columns] = found
        self._encoded = pixels, tokens
        return tokens[None].copy()

    def _step(self, action: int | np.ndarray, is_decoded: bool) -> None:
        state = self._state
        if self._session is None or len(state.tokens) > 1 or self.sampling.temperature:
            return super()._step(action, is_decoded)
        actions = self._with_action(action)
        values = (part[0].numpy() for part in (state.tokens, actions, state.age))
        given = dict(zip(INPUTS, (*values, *self._kept), strict=True))
        *found, cells = self._session.run(None, given)
        self._kept = found[0], cells
        tokens, reward, end, frames = (np.asarray(part)[None] for part in found)
        sign = (reward.argmax(-1) - 1).astype(np.float32)
        self._go_on(actions, torch.from_numpy(tokens), tokens, frames, sign, end)
        self.logits = None


def load_quickest(
    name: str = "latest", game: str = "breakout", device: str = "auto", **sampling
) -> DreamEngine:
    """Load an engine as `DreamEngine.load` does: the one whose step is quickest on this machine.

    On a CPU both are timed once for these weights; the graph and the times are kept beside them,
    or beside the user's data. Where nothing can be kept there, it is PyTorch.
    """
    load_plain = functools.partial(DreamEngine.load, name, game, device, **sampling)
    if choose_device(device).type != "cpu" or sampling.get("temperature"):
        return load_plain()
    quick = OnnxDream.load(name, game, device, **sampling)
    try:
        folder = _graphs_of(find_weights(name, "world_model", game), game)
        graph, encoder = cached_graphs(quick, folder)
        quick.use_graph(graph)
        quick.use_encoder(encoder)
        times_file = graph.with_suffix(f".{_processor()}.json")
        times = _kept_times(times_file)
        if not times:
            times = {engine.runtime: _step_seconds(engine) for engine in (load_plain(), quick)}
            write_text(times_file, json.dumps(times))
    except OSError as error:
        print(f"{error}: going on in PyTorch", flush=True)
        return load_plain()
    is_quicker = times[OnnxDream.runtime] < times[DreamEngine.runtime]
    return quick if is_quicker else load_plain()


def _windows(pixels: np.ndarray) -> np.ndarray:
    """Return what each token sees of a frame with its margin, (21, 16, 10, 10, 3), a view."""
    seen = np.lib.stride_tricks.sliding_window_view(pixels, (WINDOW, WINDOW), axis=(0, 1))
    return seen[::4, ::4].transpose(0, 1, 3, 4, 2)


def open_graph(path: Path, num_threads: int = 0) -> onnxruntime.InferenceSession:
    """Open an exported graph on the CPU, with as many threads as PyTorch has or as said."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def cached_graphs(engine: DreamEngine, folder: Path) -> tuple[Path, Path]:
    """Return the exported step and encoder of an engine's models, made where they are not there."""
    config = dataclasses.asdict(engine.world_model.config)  # holds what decoding needs
    versions = f"{GRAPH_VERSION} {DECODING_VERSION} {torch.__version__}"
    what = f"{engine.info['sha256']} {config} {versions}"
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    path, encoder = (folder / f"{name}-{key}.onnx" for name in ("step", "encode"))
    sums = folder / f"{key}.sha256"  # so that a copy that was cut short is made again
    are_there = path.exists() and encoder.exists() and sums.exists()
    if not are_there or sums.read_text("utf-8") != _hashes(path, encoder):
        check_writable(folder)
        print("exporting the step for ONNX Runtime, once for these weights ...", flush=True)
        export_encoder(engine.vqvae, encoder)
        export_graph(engine.vqvae, engine.world_model, path)
        write_text(sums, _hashes(path, encoder))
    return path, encoder


def _hashes(*paths: Path) -> str:
    return "".join(f"{file_sha256(path)}  {path.name}\n" for path in paths)


def _graphs_of(weights: Path, game: str) -> Path:
    """Return the folder beside a run's weights, or beside the user's data for shipped ones."""
    is_shipped = weights.parent == shipped_directory(game)
    return (game_directory(game) if is_shipped else weights.parent) / GRAPHS


def _kept_times(file: Path) -> dict[str, float]:
    """Return the seconds of a step by each runtime, as measured before; nothing where unknown."""
    try:
        times = json.loads(file.read_text("utf-8"))
        return {name: float(times[name]) for name in (OnnxDream.runtime, DreamEngine.runtime)}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _step_seconds(engine: DreamEngine) -> float:
    frames = np.random.default_rng(0).integers(0, 256, (4, *FRAME_SHAPE), dtype=np.uint8)
    engine.reset(frames)
    seconds = []
    for _ in range(NUM_TIMED):
        began = time.perf_counter()
        engine.step(0)
        seconds.append(time.perf_counter() - began)
    engine.history = None
    return float(np.median(seconds))


def _processor() -> str:
    """Name what decides which runtime is quicker."""
    kind = torch.backends.cpu.get_cpu_capability().lower()
    has_amx = torch.cpu._is_amx_tile_supported()
    return kind + ("-bf16" if has_fast_bfloat16(torch.device("cpu")) else "") + "-amx" * has_amx
