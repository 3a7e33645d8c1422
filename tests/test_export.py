"""The exported graph: the same dream in ONNX Runtime as in PyTorch."""

import json
import shutil

import numpy as np
import pytest
import torch

from v2.data.frames import frames_to_float
from v2.data.games import EmulatorConfig, emulator_dict
from v2.dream import DreamEngine
from v2.export import onnx_export, web_game
from v2.export.engine import GRAPHS, OnnxDream, load_quickest
from v2.export.graph import KeepingDecoder, export_encoder, export_graph, no_cells
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.weights import tokenizer_sha256
from v2.runtime.checkpoint import save_checkpoint
from v2.runtime.run_dir import SHIPPED

KINDS = {
    "all of the second edition": {
        "num_cells": 60, "has_age": True, "exact_age": 8, "memory_bits": 6, "table_bits": 6,
        "num_decided": 2, "reveal_layer": 1,
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


@pytest.fixture
def shipped_small(vqvae, tmp_path, monkeypatch):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path)
    folder, tokenizer = tmp_path / "atari", {"vqvae_sha256": tokenizer_sha256(vqvae)}
    save_checkpoint(folder / SHIPPED["vqvae"], "vqvae", vqvae)
    model = _world_model(num_cells=60)
    save_checkpoint(folder / SHIPPED["world_model"], "world_model", model, **tokenizer)
    return folder


def _frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 84, 64, 3), dtype=np.uint8)


def _remember_a_dream(vqvae, model: TemporalWorldModel) -> None:
    """Fill the table with what the dream of the test below meets, step by step, and any token."""
    table, rng, num_found = model.patch_table, np.random.default_rng(2), 0
    for length in range(12):
        engine = DreamEngine(vqvae, model)
        engine.reset(_frames(4), np.array([1, 2, 3]))
        actions = np.random.default_rng(1).integers(0, 4, length + 1)
        with torch.autocast("cpu", enabled=False):
            for action in actions[:-1]:
                engine.step(action)
        history, action = engine.history.tokens.view(1, 4, -1), torch.tensor(actions[-1:])
        num_found += int((table(history, action, None) > 0).sum())
        keys = table.keys(history, action)[table.is_near_motion(history)]
        for level, key in enumerate(keys[:: len(keys) // 5 + 1].T.flatten().tolist()):
            bucket, rest = table.place(key)
            sure, token = rng.integers(1, 8), rng.integers(32)
            table.entries[bucket, level % 8] = rest * table.num_found + sure * 32 + token
    assert num_found > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_dreams_the_same_tokens_rewards_ends_and_frames(kind, vqvae, tmp_path, monkeypatch):
    model = _world_model(**KINDS[kind])
    if model.config.table_bits:
        _remember_a_dream(vqvae, model)
    model.to_outcome.bias.data[1] = 5.0  # a loss, or a point, in every step
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
        assert quick.last_reward == plain.last_reward != 0
        assert quick.last_terminated == pytest.approx(plain.last_terminated, abs=1e-4)
        num_changed += (plain.tokens != before).sum()
    assert num_changed > 60 and quick.logits is None  # it was the graph that dreamed


@torch.no_grad()
def test_a_frame_is_decoded_from_kept_cells_as_if_whole(vqvae):
    torch.manual_seed(0)
    for parameter in vqvae.decoder.parameters():  # blocks begin as the identity
        parameter.add_(0.3 * torch.randn_like(parameter))
    decoder, generator = KeepingDecoder(vqvae), torch.Generator().manual_seed(0)
    decoded, cells = map(torch.from_numpy, no_cells(vqvae))
    tokens = torch.randint(0, 32, (336,), generator=generator)
    corners = torch.tensor([0, 15, 320, 335])
    for places in (*corners.split(1), *torch.randint(0, 336, (30, 2), generator=generator)):
        tokens[places] = (tokens[places] + 1) % 32
        before = cells
        pixels, cells = decoder(tokens, decoded, cells)
        whole = vqvae.decode(tokens[None])
        torch.testing.assert_close(pixels, whole, atol=1e-4, rtol=1e-4)
        decoded = tokens.clone()
    assert 0 < (cells != before).any(1).sum() <= 8  # the others were kept
    again, kept = decoder(tokens, decoded, cells)
    assert torch.equal(kept, cells) and torch.equal(again, pixels)


def test_frames_of_which_only_parts_change_are_tokenized_as_if_whole(vqvae, tmp_path):
    with torch.no_grad():  # codes that are all used
        latents = vqvae.encoder(frames_to_float(torch.from_numpy(_frames(2))))
        vqvae.quantizer.initialise(latents, torch.Generator().manual_seed(0))
    export_encoder(vqvae, tmp_path / "encode.onnx")
    quick = OnnxDream(vqvae, _world_model())
    quick.use_encoder(tmp_path / "encode.onnx")
    frame, rng, all_tokens = _frames(1)[0], np.random.default_rng(3), []
    corners = [(y, x) for y in (0, 83) for x in (0, 63)]
    for y, x in [*corners, *rng.integers(0, (84, 64), (40, 2)), (0, 0)]:
        frame = frame.copy()
        frame[y : y + 3, x : x + 3] = rng.integers(0, 256, 3)
        tokens = quick.encode(frame[None])
        with torch.inference_mode():
            whole = vqvae.encode(frames_to_float(torch.from_numpy(frame[None])))
        np.testing.assert_array_equal(tokens.reshape(1, -1), whole.numpy())
        np.testing.assert_array_equal(quick.encode(frame[None]), tokens)  # nothing changed
        all_tokens.append(tokens.copy())
        tokens[:] = -1  # the caller's own
    num_changed = (np.diff(np.concatenate(all_tokens), axis=0) != 0).sum((1, 2))
    assert num_changed.mean() > 1 and num_changed.max() <= 9


def test_the_quickest_engine_is_measured_once_and_its_graph_kept(shipped_small, capsys):
    """`shipped_small`: the folder of small shipped weights."""
    load_quickest("shipped")
    assert "exporting the step" in capsys.readouterr().out
    kept = shipped_small / GRAPHS
    (graph,), (times,) = (list(kept.glob(f"step*.{ending}")) for ending in ("onnx", "json"))
    made = graph.stat().st_mtime_ns
    for runtime in ("PyTorch", "ONNX Runtime"):
        other = {"PyTorch": "ONNX Runtime", "ONNX Runtime": "PyTorch"}[runtime]
        times.write_text(json.dumps({runtime: 0.01, other: 0.02}))
        engine = load_quickest("shipped")
        assert engine.runtime == runtime
    assert graph.stat().st_mtime_ns == made and "exporting" not in capsys.readouterr().out
    assert load_quickest("shipped", temperature=0.5).runtime == "PyTorch"  # no sampling in it
    for damaged in (*kept.glob("*.onnx"), times):
        damaged.write_bytes(damaged.read_bytes()[:-9])
        assert load_quickest("shipped").num_actions == 4
        is_graph = damaged.suffix == ".onnx"
        assert ("exporting the step" in capsys.readouterr().out) == is_graph
    shutil.rmtree(kept)
    kept.write_text("a file in its place")
    assert load_quickest("shipped").runtime == "PyTorch"
    assert "going on in PyTorch" in capsys.readouterr().out


@pytest.mark.parametrize("script", [onnx_export, web_game])
def test_weights_of_another_game_are_refused(script, shipped_small, vqvae, tmp_path):
    of_breakout = {"emulator": emulator_dict(EmulatorConfig()),
                   "vqvae_sha256": tokenizer_sha256(vqvae)}  # fmt: skip
    path = shipped_small / SHIPPED["world_model"]
    save_checkpoint(path, "world_model", _world_model(), **of_breakout)
    with pytest.raises(ValueError, match="dreams of breakout: add --game breakout"):
        script.main(["--game", "pong", "--weights", str(path), "--out", str(tmp_path / "out")])


@pytest.mark.slow
@pytest.mark.parametrize("game", ["breakout", "pong"])
def test_the_shipped_graph_dreams_the_same_tokens_over_200_steps(game, tmp_path, capsys):
    assert onnx_export.main(["--game", game, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "step-float32.onnx: 53" in said and "100.000% of the tokens of 3 x 200 steps" in said
    assert (tmp_path / "step.onnx").stat().st_size < 30e6
