"""The step of a dream as one ONNX graph, for play on CPUs and for the page in the browser.

Contract: the one step of `v2.decoding`, of one dream, greedy: active cells, decided cells and the
choice of tokens are inside. Of the decoder's cells only those are computed whose tokens changed
since the frame that was decoded before. Knows nothing of emulators or windows.
"""

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from v2.data.frames import float_to_frames, frames_to_float
from v2.decoding import predict_next
from v2.models.temporal_world_model import TemporalWorldModel
from v2.models.vqvae_hires import VQVAE, WINDOW, ResidualBlock
from v2.runtime.files import atomic_path

GRAPH_NAME = "step.onnx"  # in a folder: weights in float16, what the page loads
GRAPH_VERSION = 2  # of inputs, outputs and what they mean
DECODING_VERSION = 2  # raise it when `v2.decoding` chooses other tokens: graphs kept are made anew
INPUTS = ("tokens", "actions", "age", "decoded", "cells")
OUTPUTS = ("next_tokens", "reward_logits", "end_prob", "frame", "next_cells")
ENCODER_INPUTS = ("windows", "rows", "columns")
NOT_DECODED = -1  # in `decoded`
MIN_HALF_SIZE = 256  # numbers; smaller weights stay in float32


class StepGraph(nn.Module):
    """One step: what the graph computes."""

    def __init__(self, vqvae: VQVAE, world_model: TemporalWorldModel):
        super().__init__()
        self.world_model, self.decoder = world_model, KeepingDecoder(vqvae)

    def forward(
        self, tokens: torch.Tensor, actions: torch.Tensor, age: torch.Tensor,
        decoded: torch.Tensor, cells: torch.Tensor,
    ):  # fmt: skip
        """Args:
            tokens: int64 (4, N), oldest first.
            actions: int64 (4,): the three between them and the one taken now.
            age: int64 (N,), see `v2.decoding.next_age`.
            decoded, cells: tokens int64 (N,) that were decoded before, `NOT_DECODED` where none
                was, and the `next_cells` of it.
        Returns:
            The next tokens int64 (N,), reward logits (3,), the probability of an end (), the
            decoded frame uint8 (84, 64, 3), and its cells, one for 2x2 tokens, (88, 4 dim)
            of 21x16.
        """
        step = predict_next(self.world_model, tokens[None], actions[None], age=age[None])
        pixels, cells = self.decoder(step.tokens[0], decoded, cells)
        end = step.prediction.terminated_logits.sigmoid()
        frame = float_to_frames(pixels)[0]
        return step.tokens[0], step.prediction.reward_logits[0], end[0], frame, cells


class KeepingDecoder(nn.Module):
    """The VQ-VAE's decoder of one frame, which keeps the cells that did not change.

    Its first layer reads codes by number: the codebook is multiplied into its weights.
    """

    enter_weight: torch.Tensor  # (dim, K, 3, 3)

    def __init__(self, vqvae: VQVAE):
        super().__init__()
        self.decoder, self.grid = vqvae.decoder, vqvae.config.grid
        enter, codebook = vqvae.decoder.enter, vqvae.quantizer.codebook
        of_codes = torch.einsum("dcij,kc->dkij", enter.weight, codebook)
        self.register_buffer("enter_weight", of_codes)

    def forward(self, tokens: torch.Tensor, decoded: torch.Tensor, cells: torch.Tensor):
        """Return pixels (1, 3, H, W) and the cells of all; see `StepGraph.forward`."""
        decoder, codes = self.decoder, torch.arange(self.enter_weight.shape[1])
        is_code = (tokens == codes.unsqueeze(1)).float().view(1, -1, *self.grid)
        x = F.conv2d(is_code, self.enter_weight, decoder.enter.bias, padding=1) + decoder.position
        padded = decoder.padded(x)
        height, width = padded.shape[-2] // 2, padded.shape[-1] // 2
        is_changed = (tokens != decoded).float().view(1, 1, *self.grid)
        near = F.max_pool2d(is_changed, 4, stride=2, padding=1, ceil_mode=True)  # cells see 4x4
        changed = near.flatten().nonzero().flatten()
        gathered = F.pixel_unshuffle(padded, 2).flatten(2)[0].T[changed]  # (n, 4 dim)
        cells = cells.index_copy(0, changed, self._mixed(gathered))
        return decoder.paint(x, cells.T.view(1, -1, height, width)), cells

    def _mixed(self, gathered: torch.Tensor) -> torch.Tensor:
        """Return cells (n, 4 dim) of what each gathered, as the decoder's convolutions do."""
        x = _at_each(self.decoder.gather, gathered)
        for block in self.decoder.cells:
            assert isinstance(block, ResidualBlock)
            x = x + _at_each(block.outer, F.relu(_at_each(block.inner, F.relu(x))))
        return _at_each(self.decoder.spread, F.relu(x))


def _at_each(convolution: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Apply a convolution that sees one place alone to rows (n, C)."""
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)


def no_cells(vqvae: VQVAE) -> tuple[np.ndarray, np.ndarray]:
    """Return what a graph's first step is given as `decoded` and `cells`."""
    height, width = vqvae.config.grid
    num_cells = (height + 1) // 2 * ((width + 1) // 2)
    cells = np.zeros((num_cells, 4 * vqvae.config.decoder_dim), np.float32)
    return np.full(height * width, NOT_DECODED), cells


def export_graph(
    vqvae: VQVAE, world_model: TemporalWorldModel, path: Path, has_half_weights: bool = False
) -> None:
    """Write the graph of two models in float32, whole or not at all.

    Args:
        has_half_weights: store weights in float16; what is computed stays float32.
    """
    config = world_model.config
    arguments = (
        torch.zeros(config.history, config.num_positions, dtype=torch.long),
        torch.zeros(config.history, dtype=torch.long),
        torch.zeros(config.num_positions, dtype=torch.long),
        *map(torch.from_numpy, no_cells(vqvae)),
    )
    _write(StepGraph(vqvae, world_model), arguments, INPUTS, OUTPUTS, path, has_half_weights)


class EncodeGraph(nn.Module):
    """The tokens int64 (n,) at some positions of a frame; see `VQVAE.encode_at`."""

    def __init__(self, vqvae: VQVAE):
        super().__init__()
        self.vqvae = vqvae

    def forward(self, windows: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor):
        """Args:
            windows: uint8 (n, 10, 10, 3); rows, columns: int64 (n,).
        """
        return self.vqvae.encode_at(frames_to_float(windows), rows, columns)


def export_encoder(vqvae: VQVAE, path: Path) -> None:
    """Write the graph that tokenizes parts of a frame, as many as there are, in float32."""
    count = torch.export.Dim("n", min=1)
    windows = torch.zeros(2, WINDOW, WINDOW, 3, dtype=torch.uint8)
    rows, columns = torch.zeros(2, 2, dtype=torch.long)  # one tensor for both would be one input
    shapes = dict.fromkeys(ENCODER_INPUTS, {0: count})
    _write(EncodeGraph(vqvae), (windows, rows, columns), ENCODER_INPUTS, ("tokens",), path,
           dynamic_shapes=shapes)  # fmt: skip


def _write(
    graph: nn.Module, arguments, inputs, outputs, path: Path, has_half_weights=False,
    dynamic_shapes=None,
):  # fmt: skip
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _quiet_exporter():
        program = torch.onnx.export(
            graph, arguments, dynamo=True, input_names=inputs, output_names=outputs,
            dynamic_shapes=dynamic_shapes,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    _forget_sources(model.graph)
    model.metadata_props.add(key="version", value=str(GRAPH_VERSION))
    if has_half_weights:
        _halve_weights(model.graph)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


@contextlib.contextmanager
def _quiet_exporter():
    """Keep to ourselves what torch's exporter says about itself."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _forget_sources(graph: onnx.GraphProto) -> None:
    """Drop the stack traces that name where each node comes from: megabytes of paths."""
    for node in graph.node:
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _forget_sources(attribute.g)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]


def _halve_weights(graph: onnx.GraphProto) -> None:
    """Store large weights in float16 and cast them back where the graph begins."""
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < MIN_HALF_SIZE:
            continue
        half = numpy_helper.from_array(values.astype(np.float16), f"{weight.name}_half")
        graph.initializer.remove(weight)
        graph.initializer.append(half)
        cast = onnx.helper.make_node("Cast", [half.name], [weight.name], to=onnx.TensorProto.FLOAT)
        graph.node.insert(0, cast)
