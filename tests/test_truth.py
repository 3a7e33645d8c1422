"""The detector sees what the emulator's memory knows."""

import functools

import numpy as np
import pytest

from v2.data.collector import GameJob, record_game
from v2.data.games import EmulatorConfig
from v2.data.policies import CLUMSY, REWIND, SCRIPTED, STICKY
from v2.eval.metrics import ball_scores
from v2.eval.objects import detector

PLAYED = {
    "breakout": [(CLUMSY, 700), (REWIND, 900)],
    "pong": [(SCRIPTED, 600), (CLUMSY, 400), (STICKY, 500)],
}


@functools.cache
def _recorded(game):
    """Return what memory knows of some games and what their frames show."""
    jobs = [
        GameJob(EmulatorConfig(game), policy, seed=1_990_000_000 + k, max_steps=steps)
        for k, (policy, steps) in enumerate(PLAYED[game])
    ]
    segments = [segment for job in jobs for segment in record_game(job)]
    frames = np.concatenate([s.frames[1:] for s in segments])  # Pong's reset has other colours
    true = detector.read_ram(game, np.concatenate([s.ram[1:] for s in segments]))
    return frames, true, detector.read_frames(game, frames)


@pytest.fixture
def real():
    return _recorded("breakout")


@pytest.fixture
def pong():
    return _recorded("pong")


@pytest.mark.parametrize("game", PLAYED)
def test_the_ball_is_seen_where_it_is_visible_and_nowhere_else(game):
    _, true, seen = _recorded(game)
    assert (true.num_balls > 0).sum() > 800
    scores = ball_scores(true, seen)
    assert scores["recall"] >= 0.99 and scores["precision"] >= 0.99, scores
    assert scores["duplicates"] == 0 and scores["error_p90_px"] < 0.5, scores


def test_paddle_bricks_score_and_lives_are_read(real):
    _, true, seen = real
    assert (np.abs(seen.paddle - true.paddle) < 0.5).mean() > 0.99
    assert (seen.bricks == true.bricks).mean() > 0.9995
    assert (seen.lives == true.lives).mean() > 0.99
    assert (seen.score == true.score).mean() > 0.96  # the screen may lag a step behind
    lags = seen.score[1:] == true.score[:-1]
    assert ((seen.score == true.score)[1:] | lags).mean() > 0.995


def test_both_paddles_and_the_score_of_pong_are_read(pong):
    _, true, seen = pong
    assert not np.isnan(true.paddle).any()
    assert (np.abs(seen.paddle - true.paddle) < 0.5).mean() > 0.99
    there = ~np.isnan(true.opponent)
    assert (np.abs(seen.opponent - true.opponent)[there] < 0.5).mean() > 0.99
    assert np.isnan(seen.opponent[~there]).mean() > 0.9
    lags = seen.score[1:] == true.score[:-1]
    assert ((seen.score == true.score)[1:] | lags).mean() > 0.995
    assert seen.score.max() >= 800 and seen.bricks.size == 0 and (seen.lives == -1).all()


def test_what_happens_to_pongs_ball_is_told_from_memory(pong):
    _, true, _ = pong
    rules, points = detector.of_game("pong"), true.score % 100 + true.score // 100
    found = rules.events(true)
    x = true.ball[:, 0]
    assert ((x[found["paddle"]] < 10) | (x[found["paddle"]] > 54)).all()
    assert found["paddle"].sum() > 20 and found["wall"].sum() > 20
    assert (np.isnan(x) & ~np.isnan(np.roll(x, -1)))[:-1].sum() == found["serve"].sum()
    assert rules.losses(true)[-1] == (np.diff(points) > 0).sum() > 10
    lost = np.flatnonzero(~np.isnan(x[:-1]) & np.isnan(x[1:]) & (np.diff(points) == 0))
    assert rules.may_leave(true.ball[lost]).mean() > 0.8  # the others: a new game began


def test_memory_written_for_pongs_script_holds_what_was_read(pong):
    _, true, _ = pong
    again = detector.read_ram("pong", detector.write_ram("pong", true))
    assert np.nanmax(np.abs(again.ball - true.ball)) < 0.01
    assert (np.isnan(again.ball) == np.isnan(true.ball)).all()
    assert np.abs(again.paddle - true.paddle).max() <= 2.4  # a paddle half behind a wall


def ball_frame(x: float, y: float, strength: float = 1.0) -> np.ndarray:
    """Paint a ball, centre in pixels, on an empty field."""
    screen = np.zeros((84 * 5, 64 * 5), np.float32)
    left, top = round((x - 0.4) * 5), round((y - 0.8) * 5)
    screen[top : top + 8, left : left + 4] = strength
    coverage = screen.reshape(84, 5, 64, 5).mean((1, 3))
    return (coverage[..., None] * (200, 72, 72)).round().astype(np.uint8)


def test_one_ball_is_one_ball_wherever_it_lies_on_the_pixels():
    places = [(20 + k / 5, 50 + m / 5) for k in range(5) for m in range(5)]
    seen = detector.read_frames("breakout", np.stack([ball_frame(*place) for place in places]))
    assert (seen.num_balls == 1).all()
    assert np.abs(seen.ball - places).max() < 0.25


def test_two_balls_are_two():
    frame = ball_frame(20, 50) + ball_frame(40, 60)
    assert detector.read_frames("breakout", frame[None]).num_balls[0] == 2


def test_a_pale_ball_counts_and_a_speck_does_not():
    frames = np.stack([ball_frame(30.3, 55.1, strength) for strength in (0.7, 0.3)])
    assert detector.read_frames("breakout", frames).num_balls.tolist() == [1, 0]


def test_a_smear_is_no_ball():
    frame = np.zeros((1, 84, 64, 3), np.uint8)
    frame[0, 50:58, 20:30] = (50, 18, 18)
    assert detector.read_frames("breakout", frame).num_balls[0] == 0


def test_an_empty_batch_has_no_objects():
    assert len(detector.read_frames("breakout", np.zeros((0, 84, 64, 3), np.uint8))) == 0


def test_a_game_without_an_object_detector_is_refused_by_name():
    assert not detector.has_truth("seaquest")
    with pytest.raises(ValueError, match="seaquest"):
        detector.read_frames("seaquest", np.zeros((1, 84, 64, 3), np.uint8))
