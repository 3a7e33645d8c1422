"""Scenes for the page: real starts that no model learnt from, written and read back exactly."""

import json
import zlib

import numpy as np
import pytest
import torch

from tests.web_games import small_models
from v2.data.atari_dataset import GOLD_SEED_START
from v2.data.dream_starts import STARTS_SEED
from v2.data.games import EmulatorConfig
from v2.decoding import known_age
from v2.dream import DreamEngine
from v2.export import scenes
from v2.export.scenes import PARITY_STEPS, make_scenes, write_game


@pytest.fixture(scope="module")
def serve():
    """Pong's first scene, with small models."""
    vqvae, model = small_models(num_actions=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "MAX_GAME_STEPS", 200)
        patch.setattr(scenes, "KINDS", {"pong": scenes.KINDS["pong"][:1]})
        (scene,) = make_scenes(EmulatorConfig("pong"), vqvae, model, num_steps=80)
    return scene, vqvae, model


def test_a_scene_is_what_it_says_from_a_seed_of_no_training_and_no_gold_set(serve, monkeypatch):
    scene, vqvae, _ = serve
    monkeypatch.setattr("v2.dream.autocast", lambda device: torch.autocast("cpu", enabled=False))
    assert scene.seed >= STARTS_SEED > GOLD_SEED_START + 10 * 1_000_000
    assert len(scene.frames) == len(scene.ball) == len(scene.actions) + 1 == 81
    in_play = ~np.isnan(scene.ball[:, 0])
    assert not in_play[0] and 2 <= in_play.argmax() <= 20
    assert np.nanmax(np.abs(scene.ball - scene.seen_ball)) < 1
    encoded = DreamEngine(vqvae, serve[2]).encode(scene.frames).reshape(81, -1)
    np.testing.assert_array_equal(scene.real_tokens, encoded)
    np.testing.assert_array_equal(scene.tokens[-1], encoded[0])


def test_stored_tokens_are_those_that_the_engine_dreams(serve, monkeypatch):
    scene, vqvae, model = serve
    monkeypatch.setattr("v2.dream.autocast", lambda device: torch.autocast("cpu", enabled=False))
    engine = DreamEngine(vqvae, model)
    engine.reset_tokens(torch.from_numpy(scene.tokens[None].astype(np.int64)), scene.past[None],
                        scene.age[None].astype(int))  # fmt: skip
    dreamed = [engine.step_tokens(np.array([action])) for action in scene.actions[:PARITY_STEPS]]
    np.testing.assert_array_equal(scene.dreamed, np.reshape(dreamed, (PARITY_STEPS, -1)))
    start = torch.from_numpy(scene.tokens[None].astype(np.int64))
    four = known_age(start)[0].numpy()  # and more is known than four frames tell
    assert (abs(scene.age) >= abs(four)).all()


def test_a_written_scene_is_read_back_exactly(serve, tmp_path):
    scene, _, _ = serve
    (tmp_path / "step.onnx").write_bytes(b"graph")
    graphs = {"wasm": tmp_path / "step.onnx"}
    path = write_game(tmp_path, EmulatorConfig("pong", 2), [scene], graphs, {"UP": "RIGHT"})
    facts = json.loads(path.read_text())
    assert facts["graphs"]["wasm"]["bytes"] == 5 and facts["actions"][0] == "NOOP"
    assert facts["stepsPerSecond"] == 30
    (written,) = facts["scenes"]
    content, found = zlib.decompress((tmp_path / written["file"]).read_bytes()), {}
    for array in written["arrays"]:
        size = int(np.prod(array["shape"]))
        found[array["name"]] = np.frombuffer(content, array["type"], size).reshape(array["shape"])
        content = content[found[array["name"]].nbytes :]
    assert not content
    for name in ("tokens", "past", "age", "actions", "ball", "real_tokens", "dreamed"):
        np.testing.assert_array_equal(found[name], getattr(scene, name))
    frames = np.cumsum(found["frames"], axis=0, dtype=np.uint8)
    np.testing.assert_array_equal(frames, scene.frames)


def test_a_game_without_scenes_is_refused():
    with pytest.raises(ValueError, match="no scenes for tetris.*breakout, pong"):
        make_scenes(EmulatorConfig("tetris"), *small_models(6))
