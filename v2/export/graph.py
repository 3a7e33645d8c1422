"""The step of a dream as one ONNX graph, for play on CPUs and for the page in the browser.

Contract: the one step of `v2.decoding`, of one dream, greedy, with static shapes: active cells,
decided cells and argmax are inside. Knows nothing of emulators or windows.
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

from v2.data.frames import float_to_frames, frames_to_float
from v2.decoding import predict_next
from v2.models.temporal_world_model import TemporalWorldModel
from v2.models.vqvae_hires import VQVAE
from v2.runtime.files import atomic_path

GRAPH_NAME = "step.onnx"  # in a folder: weights in float16, what the page loads
GRAPH_VERSION = 1  # of inputs, outputs and what they mean
DECODING_VERSION = 2  # raise it when `v2.decoding` chooses other tokens: graphs kept are made anew
INPUTS = ("tokens", "actions", "age")
OUTPUTS = ("next_tokens", "reward_logits", "end_prob", "frame")
MIN_HALF_SIZE = 256  # numbers; smaller weights stay in float32


class StepGraph(nn.Module):
    """One step: what the graph computes."""

    def __init__(self, vqvae: VQVAE, world_model: TemporalWorldModel):
        super().__init__()
        self.vqvae, self.world_model = vqvae, world_model

    def forward(self, tokens: torch.Tensor, actions: torch.Tensor, age: torch.Tensor):
        """Args:
            tokens: int64 (4, N), oldest first.
            actions: int64 (4,): the three between them and the one taken now.
            age: int64 (N,), see `v2.decoding.next_age`.
        Returns:
            The next tokens int64 (N,), reward logits (3,), the probability of an end (), and the
            decoded frame uint8 (84, 64, 3).
        """
        step = predict_next(self.world_model, tokens[None], actions[None], age=age[None])
        frame = float_to_frames(self.vqvae.decode(step.tokens))
        end = step.prediction.terminated_logits.sigmoid()
        return step.tokens[0], step.prediction.reward_logits[0], end[0], frame[0]


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
    )
    _write(StepGraph(vqvae, world_model), arguments, INPUTS, OUTPUTS, path, has_half_weights)


class EncodeGraph(nn.Module):
    """The tokens int64 (N,) of a frame uint8 (84, 64, 3)."""

    def __init__(self, vqvae: VQVAE):
        super().__init__()
        self.vqvae = vqvae

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        return self.vqvae.encode(frames_to_float(frame[None]))[0]


def export_encoder(vqvae: VQVAE, path: Path) -> None:
    """Write the graph that tokenizes one frame, in float32."""
    frame = torch.zeros(vqvae.config.height, vqvae.config.width, 3, dtype=torch.uint8)
    _write(EncodeGraph(vqvae), (frame,), ("frame",), ("tokens",), path)


def _write(graph: nn.Module, arguments, inputs, outputs, path: Path, has_half_weights=False):
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _quiet_exporter():
        program = torch.onnx.export(
            graph, arguments, dynamo=True, input_names=inputs, output_names=outputs
        )
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
