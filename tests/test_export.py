"""The exported graph: the same dream in ONNX Runtime as in PyTorch."""

import numpy as np
import pytest
import torch

from v2.dream import DreamEngine
from v2.export.engine import OnnxDream
from v2.export.graph import export_graph
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig

KINDS = {
    "all of the second edition": {
        "num_cells": 60, "has_age": True, "stem_radius": 1, "num_decided": 2, "reveal_layer": 1,
    },
    "missing changes": {"change_weight": 2.0, "max_missing": 0.3, "num_cells": 100},
}  # fmt: skip


def _world_model(**changes) -> TemporalWorldModel:
    """Return a model that is not sure of anything, so that every difference shows."""
    torch.manual_seed(0)
    config = WorldModelConfig(4, dim=32, heads=2, layers=2, ffn_dim=64, copy_bias=0.5, **changes)
    model = TemporalWorldModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 84, 64, 3), dtype=np.uint8)


def _tokens(engine: DreamEngine, actions, start=None) -> np.ndarray:
    frames, past = start or (_frames(4), np.array([1, 2, 3]))
    engine.reset(frames, past)
    dreamed = []
    for action in actions:
        engine.step(int(action))
        dreamed.append(engine.tokens)
    return np.stack(dreamed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_dreams_the_same_tokens_rewards_ends_and_frames(kind, vqvae, tmp_path, monkeypatch):
    model = _world_model(**KINDS[kind])
    export_graph(vqvae, model, tmp_path / "step.onnx")
    plain, quick = DreamEngine(vqvae, model), OnnxDream(vqvae, model)
    quick.use_graph(tmp_path / "step.onnx")
    for engine in (plain, quick):
        engine.reset(_frames(4), np.array([1, 2, 3]))
    num_changed = 0
    for action in np.random.default_rng(1).integers(0, 4, 60):
        before = plain.tokens
        with monkeypatch.context() as patch:
            patch.setattr("v2.dream.autocast", lambda device: torch.autocast("cpu", enabled=False))
            frame = plain.step(action)
        dreamed = quick.step(action)
        np.testing.assert_array_equal(quick.tokens, plain.tokens)
        np.testing.assert_allclose(dreamed, frame, atol=1)
        assert quick.last_reward == plain.last_reward
        assert quick.last_terminated == pytest.approx(plain.last_terminated, abs=1e-4)
        num_changed += (plain.tokens != before).sum()
    assert num_changed > 60 and quick.logits is None  # it was the graph that dreamed
