"""The five commands of docs/own-data.md, on a world whose physics is known."""

import importlib
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests import ball_world
from v2.data import games
from v2.data.atari_dataset import load_game_data
from v2.dream import DreamEngine

PAGE = Path(__file__).resolve().parents[1] / "docs/own-data.md"
NUM_GAMES, NUM_FRAMES, NUM_STARTS, STEPS = 16, 500, 100, 20
NEAR_PX, WHOLE = 2.0, 0.5  # how near the ball must be, and how much of it must be there


def commands() -> list[list[str]]:
    """Return the page's five commands as words."""
    block = PAGE.read_text().split("```")[1].strip().splitlines()
    assert len(block) == 5 and all(line.startswith("python v2/") for line in block)
    return [shlex.split(line)[1:] for line in block]


def run(words: list[str]) -> None:
    module = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
    assert module.main(words[1:]) == 0


def hits(true: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Tell where one whole ball is near the true one."""
    seen, share = ball_world.ball_of(frames)
    return (np.linalg.norm(seen - true, axis=1) < NEAR_PX) & (np.abs(share - 1) < WHOLE)


@pytest.mark.slow
def test_five_commands_make_of_videos_a_dream_whose_ball_is_where_physics_puts_it(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(games, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    filmed = ball_world.film(tmp_path / "videos", NUM_GAMES, NUM_FRAMES)
    for words in commands():
        run(words)
    assert (tmp_path / "ball.mp4").stat().st_size > 10_000
    data = load_game_data(tmp_path / "checkpoints/own-ball/atari_game_data.npz")
    places = np.concatenate([game[2] for game in filmed]) + ball_world.BALL / 2
    held_out = data.rows_of("val")
    starts = held_out[held_out % NUM_FRAMES < NUM_FRAMES - STEPS - 4]
    starts = starts[np.linspace(0, len(starts) - 1, NUM_STARTS).astype(int)]
    engine = DreamEngine.load("latest", "own-ball", "cpu")
    actions = data.actions.astype(np.int64)
    history = starts[:, None] + np.arange(4)
    engine.reset(data.frames[history], actions[history[:, :3]])
    found = {}
    for step in range(STEPS):
        frames = engine.step(actions[starts + 3 + step])
        found[step + 1] = hits(places[starts + 4 + step], frames).mean()
    kept = engine.decode(engine.encode(data.frames[starts + 3 + STEPS]))
    ceiling = hits(places[starts + 3 + STEPS], kept).mean()
    with capfd.disabled():
        shown = ", ".join(f"{found[step]:.2f} at {step}" for step in (1, 5, 10, STEPS))
        print(f"\nball within {NEAR_PX:g} px: {shown}; after a round trip {ceiling:.2f}")
    assert found[STEPS] >= 0.9, found
