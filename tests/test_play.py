"""What play promises about its two sides, its time and its files, on the real emulator."""

import functools
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pygame
import pytest
from PIL import Image

from tests.fake_engine import FakeEngine
from v2 import play_atari_hires
from v2.data.atari_dataset import load_game_data, split_of_game, window_starts
from v2.data.collector import GameJob, record_game
from v2.data.emulator import make_atari_env
from v2.data.games import EmulatorConfig
from v2.data.npz import write_npz
from v2.data.policies import MIXES, STICKY
from v2.decoding import Sampling
from v2.dream import DreamEngine
from v2.eval.objects import detector
from v2.play import video
from v2.play.branches import Branches
from v2.play.clip_saver import BackgroundClips
from v2.play.controllers import Controllers, controller_names
from v2.play.game import PlayGame, PlaySettings
from v2.play.keys import (
    ALIASES,
    PLAY_KEYS,
    REPLAY_KEYS,
    ActionMap,
    HeldInputs,
    help_rows,
    hint_line,
)
from v2.play.loop import ModelThread, Speed, run_window
from v2.play.picture import CURVE_STEPS
from v2.play.play_view import HINT, divergence_curves, thinned
from v2.play.replay import Replay
from v2.play.session import (
    HISTORY_FRAMES,
    LOST_BALL_STEPS,
    MAX_FRAMES,
    Divergence,
    PlaySession,
)
from v2.play.tape import HUMAN_SEED_START, EpisodeTape
from v2.play.video import MAX_WAITING, BackgroundVideo, GifVideo, open_video
from v2.play.window import Window
from v2.train import train_vqvae_hires

ROOT = Path(__file__).resolve().parents[1]
BREAKOUT = ["NOOP", "FIRE", "RIGHT", "LEFT"]
PONG = [*BREAKOUT, "RIGHTFIRE", "LEFTFIRE"]
NOOP, FIRE, RIGHT, LEFT = range(4)
SETTINGS = PlaySettings(steps_per_second=60.0, clips=Path("recordings"), scale=1)


@pytest.fixture
def session():
    return PlaySession(make_atari_env("breakout"), FakeEngine())


def play(session, actions):
    return [session.step(action).real_frame for action in actions]


def human_game(session) -> PlayGame:
    controllers = Controllers("breakout", ActionMap(BREAKOUT), "human", 0)
    return PlayGame(session, controllers, SETTINGS)


# Keys to actions


def test_every_key_of_play_stands_in_readme():
    lines = (ROOT / "README.md").read_text().splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("| key |"))
    told = [line.split("|")[1] for line in lines[first + 2 : lines.index("", first)]]
    assert words_of(told) == words_of(keys for keys, _ in help_rows(PLAY_KEYS))


def words_of(cells) -> set[str]:
    return {word for cell in cells for word in re.findall(r"[^\s,`]+", cell)}


def test_the_hint_of_replay_names_keys_that_do_what_it_says():
    assert hint_line(REPLAY_KEYS) == (
        "H keys  ·  SPACE play  ·  LEFT RIGHT step  ·  DOWN UP 30 steps  ·  R open loop from here"
    )


def test_actions_are_found_by_meaning_not_by_index():
    full = ActionMap(["NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "RIGHTFIRE"])
    assert full.meanings[full.action(["RIGHT", "FIRE"])] == "RIGHTFIRE"
    assert full.meanings[full.action(["RIGHT", "UP"])] == "UPRIGHT"
    assert full.meanings[full.action([])] == "NOOP"


def test_a_combination_that_the_game_lacks_keeps_its_newest_keys():
    actions = ActionMap(BREAKOUT)
    assert actions.action(["RIGHT", "FIRE"]) == FIRE
    assert actions.action(["FIRE", "RIGHT"]) == RIGHT
    assert actions.action(["UP"]) == NOOP


def test_a_key_that_the_game_lacks_does_not_cancel_the_others():
    actions = ActionMap(BREAKOUT)
    assert actions.action(["RIGHT", "UP"]) == actions.action(["UP", "RIGHT"]) == RIGHT
    pong = ActionMap(PONG)
    assert pong.meanings[pong.action(["LEFT", "UP", "FIRE"])] == "LEFTFIRE"


@pytest.mark.parametrize("key, sign", [("UP", -1), ("DOWN", 1)])
def test_up_and_down_move_the_paddle_of_pong_as_they_say(key, sign):
    env = make_atari_env("pong")
    actions = ActionMap(env.action_meanings, ALIASES["pong"])
    env.reset(seed=0)
    rows = []
    for _ in range(12):
        env.step(actions.action([key]))
        rows.append(int(env.ram[51]))
    assert (rows[-1] - rows[2]) * sign > 10


def test_of_two_opposite_keys_the_newer_one_counts():
    assert ActionMap(BREAKOUT).action(["RIGHT", "LEFT"]) == LEFT
    assert ActionMap(BREAKOUT).action(["LEFT", "RIGHT"]) == RIGHT


def test_a_tap_between_two_steps_counts_for_one_step():
    held = HeldInputs()
    held.press(32, "FIRE")
    held.release(32)
    assert held.take() == ["FIRE"]
    assert held.take() == []


def test_two_keys_for_one_direction_are_released_one_by_one():
    held = HeldInputs()
    held.press(1, "LEFT")
    held.press(2, "LEFT")
    held.release(1)
    held.take()
    assert "LEFT" in held.take()


def test_a_script_of_keys_is_read():
    script = ActionMap(BREAKOUT).script("RIGHT*3, noop*2,SPACE")
    assert list(script) == [RIGHT] * 3 + [NOOP] * 2 + [FIRE]


@pytest.mark.parametrize(
    "text", ["", "RIGHT*0", "JUMP", "RIGHT,,LEFT", "RIGHT*-1", "RIGHTFIRE", "+"]
)
def test_a_wrong_script_of_keys_is_refused_with_the_known_names(text):
    with pytest.raises(ValueError, match="NOOP, FIRE, RIGHT, LEFT"):
        ActionMap(BREAKOUT).script(text)


@pytest.mark.parametrize(
    "text", ["RIGHT*9999999999", "LEFT*" + "9" * 5000, "RIGHT*600000,LEFT*600000"]
)
def test_a_script_of_more_than_a_million_steps_is_refused(text):
    with pytest.raises(ValueError, match=r"more than 1,000,000 steps in all"):
        ActionMap(BREAKOUT).script(text)


# The two sides


def test_play_and_the_collector_see_the_same_frames(session):
    job = GameJob(EmulatorConfig(), STICKY, seed=3, max_steps=60)
    recorded = record_game(job)[0]
    env = make_atari_env("breakout")
    env.reset()
    first = [env.step(int(action))[0] for action in recorded.actions]
    assert np.array_equal(np.stack(first), recorded.frames[1:])
    actions = [FIRE, RIGHT, RIGHT, LEFT, NOOP] * 8
    env.reset()
    for _ in range(HISTORY_FRAMES - 1):
        env.step(NOOP)
    expected = [env.step(action)[0] for action in actions]
    assert np.array_equal(np.stack(expected), np.stack(play(session, actions)))


def test_both_sides_take_the_same_action_in_the_same_step(session):
    actions = [FIRE, RIGHT, LEFT, NOOP, RIGHT]
    play(session, actions)
    assert session.engine.actions == actions
    assert len(session.divergence) == 5


def test_a_sync_starts_the_dream_from_the_real_frames_that_are_remembered(session):
    taken = [FIRE, RIGHT, RIGHT, LEFT, NOOP, RIGHT]
    frames = play(session, taken)
    session.sync()
    given, actions = session.engine.resets[-1]
    assert np.array_equal(given[-6:], np.stack(frames))
    assert actions.tolist() == [NOOP] * 3 + taken and len(given) == len(actions) + 1
    assert len(session.divergence) == 0
    play(session, [FIRE] * 50 + [NOOP] * 200)
    session.sync()
    given, actions = session.engine.resets[-1]
    assert len(given) <= MAX_FRAMES and len(actions) == len(given) - 1


def test_the_four_frames_of_a_sync_carry_the_balls_velocity(session):
    play(session, [FIRE, *[NOOP] * 11])
    session.sync()
    given = session.engine.resets[-1][0][-4:]
    moved = [np.abs(b.astype(int) - a).sum() for a, b in zip(given, given[1:], strict=False)]
    assert min(moved) > 0


def test_a_model_of_another_game_is_refused():
    with pytest.raises(ValueError, match="6 actions and breakout has 4"):
        PlaySession(make_atari_env("breakout"), FakeEngine(num_actions=6))


def test_a_lost_game_starts_a_new_one_in_sync(session):
    num_resets = len(session.engine.resets)
    notices = [session.step(FIRE).notice for _ in range(400)]
    assert any("game over" in notice for notice in notices)
    assert len(session.engine.resets) == num_resets + sum("game over" in n for n in notices)
    assert session.moment.lives > 0


def test_the_scores_of_all_games_are_told_and_a_rewind_forgets_what_it_takes_back():
    session = PlaySession(make_atari_env("breakout"), FakeEngine(), seed=1)
    game = human_game(session)
    keys = np.random.default_rng(0).integers(4, size=900)
    rewards = [session.step(int(key)).reward for key in keys]
    scores = game.figures()["scores"]
    assert len(scores) > 2 and sum(scores) == sum(rewards) > 0
    session.rewind(500)
    assert sum(game.figures()["scores"]) == sum(rewards[:400])


def test_the_last_step_of_a_game_is_shown_and_measured(session):
    session.engine.last_terminated = 0.7
    while not session.is_over:
        last = session.step(FIRE)
    assert last.lives == 0 and "game over" not in last.notice
    assert np.array_equal(last.real_frame, session.frames[-1])
    assert last.dream_end_prob == 0.7
    assert len(session.divergence) == len(session.agreements)
    branches = Branches(session, num_steps=2)
    branches.advance()
    assert np.array_equal(branches.real[1], [last.real_frame] * 4)
    following = session.step(NOOP)
    assert "game over" in following.notice and following.lives == 5 and not session.is_over


def test_dream_only_leaves_the_real_game_where_it_is(session):
    play(session, [FIRE, RIGHT])
    ram = session.env.ram.copy()
    session.set_mode("dream")
    play(session, [LEFT] * 5)
    assert np.array_equal(session.env.ram, ram)
    assert session.engine.actions[-5:] == [LEFT] * 5
    session.set_mode("both")
    assert np.array_equal(session.engine.resets[-1][0][-1], session.moment.real_frame)


def test_real_only_does_not_ask_the_model(session):
    session.set_mode("real")
    play(session, [FIRE, RIGHT])
    assert session.engine.actions == []
    session.set_mode("both")
    assert session.engine.resets[-1][1].tolist() == [NOOP] * 3 + [FIRE, RIGHT]


def test_the_end_of_a_dream_brings_it_back_to_the_real_game(session):
    session.set_mode("dream")
    session.engine.last_terminated = 0.9
    assert "synced" in session.step(NOOP).notice
    assert session.moment.dream_end_prob == 0


def test_a_rewind_takes_both_sides_back_exactly(session):
    play(session, [FIRE, RIGHT, RIGHT])
    before, ram, state = session.moment, session.ram.copy(), session.engine.history
    future = play(session, [LEFT] * 7)
    session.rewind(7)
    assert session.moment.step == before.step
    assert np.array_equal(session.ram, ram)
    assert session.engine.history is state
    assert len(session.divergence) == 3
    assert np.array_equal(np.stack(play(session, [LEFT] * 7)), np.stack(future))


def test_a_rewind_takes_the_noise_of_a_sampled_dream_back(vqvae, world_model):
    engine = DreamEngine(vqvae, world_model, sampling=Sampling(temperature=1.0))
    session = PlaySession(make_atari_env("breakout"), engine)
    play(session, [FIRE, RIGHT])
    dreamed = lambda: np.stack([session.step(LEFT).dream_frame for _ in range(6)])  # noqa: E731
    future = dreamed()
    session.rewind(6)
    assert np.array_equal(dreamed(), future)


def test_a_rewind_goes_back_across_a_lost_game(session):
    while "game over" not in session.step(FIRE).notice:
        pass
    session.rewind(10)
    assert session.moment.score > 0 or session.moment.lives < 5
    assert "game over" in [session.step(FIRE).notice for _ in range(10)][-1]


def test_a_rewind_to_a_lost_game_knows_that_it_is_over(session):
    """Both went on to the game's end, then the dream alone; both together begin a new game."""
    session.is_over = True
    session.set_mode("dream")
    session.step(0)
    session.is_over = False
    session.rewind(1)
    assert session.is_over
    session.set_mode("both")
    assert "game over" in session.step(0).notice


def test_a_rewind_into_another_mode_syncs(session):
    """Else the two sides would go on from different moments."""
    play(session, [FIRE, RIGHT])
    session.set_mode("dream")
    play(session, [LEFT] * 3)
    session.set_mode("both")
    play(session, [LEFT] * 2)
    num_resets = len(session.engine.resets)
    session.rewind(2)
    assert len(session.engine.resets) == num_resets  # both ran there
    session.rewind(2)
    assert len(session.engine.resets) == num_resets + 1 and "synced" in session.moment.notice
    assert np.array_equal(session.engine.resets[-1][0], np.stack(session.frames))


def test_branches_from_a_game_without_its_dream_begin_at_this_moment(session):
    session.set_mode("real")
    play(session, [FIRE] + [RIGHT] * 8)
    game = human_game(session)
    game.command("branches")
    job, *args = game.urgent_job()
    job(*args)
    assert np.array_equal(session.engine.resets[-1][0], np.stack(session.frames))


def test_commands_that_wait_for_a_step_are_all_done_in_their_order(session):
    play(session, [FIRE, *[RIGHT] * 8])
    game = human_game(session)
    num_resets = len(session.engine.resets)
    for name in ("sync", "mode", "mode"):
        game.command(name)
    modes = []
    while job := game.urgent_job():
        job[0](*job[1:])
        game.job_done(0, 0)
        modes.append(session.mode)
    assert modes == ["both", "dream", "real"]
    assert len(session.engine.resets) == num_resets + 1


def test_a_long_curve_is_thinned_and_keeps_its_last_value():
    for length in (0, 1, 299, 300, 301, 4000):
        shown = thinned(list(range(length)))
        assert len(shown) <= CURVE_STEPS and shown[-1:] == list(range(length))[-1:]
        assert len(shown) >= min(length, CURVE_STEPS // 2)


def test_curves_of_ball_and_paddle_are_shown_where_they_can_be_seen():
    now = Divergence()
    for values in vars(now).values():
        values += [0.5] * 4000
    assert [curve.label for curve in divergence_curves(now, False)] == ["tokens"]
    curves = divergence_curves(now, True)
    assert [curve.label for curve in curves] == ["tokens", "ball", "paddle"]
    assert all(len(curve.values) <= CURVE_STEPS for curve in curves)


def test_a_dream_without_the_ball_for_a_second_says_so_until_the_next_sync(session):
    scripted = Controllers("breakout", ActionMap(BREAKOUT), "scripted", seed=1)
    while np.isnan(detector.read_ram("breakout", session.ram[None]).ball[0, 0]):
        play(session, [FIRE])
    session.sync("")
    session.engine.step = lambda action: np.zeros((84, 64, 3), np.uint8)
    for _ in range(LOST_BALL_STEPS):
        assert human_game(session).view().notice == ""
        play(session, [scripted.act(session, [])])
    assert human_game(session).view().notice == "the dream has lost the ball: R syncs"
    session.sync("")
    assert human_game(session).view().notice == ""
    play(session, [NOOP])
    assert human_game(session).view().notice == ""  # lost again, but not yet for a second


def test_a_pause_is_shown_and_what_stands_still_has_no_figures(session):
    game = human_game(session)
    assert game.view().badges == (("human", "real"),)
    game.command("pause")
    assert game.view().badges == (("paused", "ball"), ("human", "real"))
    figures = {}
    for mode in ("both", "dream", "real"):
        session.set_mode(mode)
        play(session, [NOOP])
        game._look()
        figures[mode] = {name for name, value in game.view().stats if value == "–"}
    dreamed = {"dreamed reward", "dreamed end"}
    assert figures == {"both": set(), "dream": {"reward"}, "real": dreamed}


def test_a_pause_does_not_count_as_slowness():
    speed = Speed()
    for began in (0.0, 0.5, 1.0):
        speed.stepped(began, began + 0.4)
    speed.interrupted()
    for began in (100.0, 100.5):
        speed.stepped(began, began + 0.4)
    assert speed.steps_per_second == speed.mean_steps_per_second == pytest.approx(2.0)
    assert speed.step_ms(0.5) == pytest.approx(400)


def branched(session, mode):
    """Return a game that shows branches of one step."""
    play(session, [FIRE, RIGHT])
    session.set_mode(mode)
    play(session, [LEFT] * 3)
    game = human_game(session)
    game.command("branches")
    for _ in range(2):
        job, *args = game.urgent_job()
        job(*args)
        game.job_done(0, 0)
    return game


@pytest.mark.parametrize("mode, sides", [("dream", ["dream"]), ("both", ["real", "dream"])])
def test_branches_show_the_real_game_only_where_it_stands_at_the_same_moment(session, mode, sides):
    panes = branched(session, mode).view().panes
    assert [pane.color for pane in panes] == [side for side in sides for _ in BREAKOUT]


def test_branches_that_end_while_a_picture_is_made_break_nothing(session):
    game = branched(session, "both")
    seen = [game.branches]  # then None, as when the thread has ended them

    class Ending(PlayGame):
        branches = property(lambda self: seen.pop() if seen else None)

    game.__class__ = Ending
    assert game.view().title.endswith("branches")
    assert game.view().title == "Breakout"


class FakeWindow:
    """A window that nobody looks at."""

    held, has_seen_key = HeldInputs(), True

    def poll(self):
        return []

    def show(self, view):
        pass


def test_the_last_step_in_a_window_is_recorded_too(tmp_path):
    session = PlaySession(make_atari_env("breakout"), FakeEngine(seconds=0.02))
    controllers = Controllers("breakout", ActionMap(BREAKOUT), "random", 0)
    with open_video(tmp_path / "a.mp4", 60) as video, ModelThread() as thread:
        game = PlayGame(session, controllers, SETTINGS, video=video)
        run_window(game, FakeWindow(), thread, False, max_steps=5)
    assert count_frames(tmp_path / "a.mp4") == session.num_steps == 5


def test_what_is_recorded_has_no_badge_of_recording_and_no_help_line(session, monkeypatch):
    drawn = []
    monkeypatch.setattr("v2.play.game.render", lambda view, scale: drawn.append(view))
    controllers = Controllers("breakout", ActionMap(BREAKOUT), "human", 0)
    video = SimpleNamespace(write=lambda picture: None)
    game = PlayGame(session, controllers, SETTINGS, video=video)
    job, *args = game.step_job([])
    job(*args)
    game.job_done(0, 0)
    (recorded,) = drawn
    assert ("REC", "alarm") not in recorded.badges and recorded.hint == ""
    assert ("REC", "alarm") in game.view().badges and game.view().hint == HINT


def test_a_clip_that_cannot_be_saved_is_said_and_play_goes_on(tmp_path):
    session = PlaySession(make_atari_env("breakout"), FakeEngine())
    game = PlayGame(session, Controllers("breakout", ActionMap(BREAKOUT), "random", 0), SETTINGS)
    game.command("clip")
    view, clips = game.view(), BackgroundClips()
    (tmp_path / "file").write_text("x")
    clips.save(tmp_path / "file" / "a.mp4", [view], 1, 15, {})
    wait_for_clip(clips)
    told = clips.save(tmp_path / "b.mp4", [view], 1, 15, {})
    assert "saving b.mp4" in told and "the last clip was not saved" in told
    clips.close()
    assert count_frames(tmp_path / "b.mp4") == 1


def wait_for_clip(clips):
    deadline = time.monotonic() + 20
    while clips.notice and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_clip_that_failed_unseen_is_told_at_the_end(tmp_path):
    session = PlaySession(make_atari_env("breakout"), FakeEngine())
    (tmp_path / "file").write_text("x")
    settings = PlaySettings(60.0, clips=tmp_path / "file", scale=1)
    game = PlayGame(session, Controllers("breakout", ActionMap(BREAKOUT), "random", 0), settings)
    job, *args = game.step_job([])
    job(*args)
    game.job_done(0, 0)
    game.command("clip")
    with pytest.raises(OSError, match=r"breakout_.*\.mp4 was not saved"):
        game.close()


def test_a_rewind_with_nothing_to_rewind_says_so(session):
    assert "nothing" in session.rewind().notice


def test_branches_show_what_each_action_leads_to_and_leave_no_trace(session):
    play(session, [FIRE, RIGHT])
    ram, state, moment = session.env.ram.copy(), session.engine.history, session.moment
    branches = Branches(session, num_steps=3)
    while not branches.is_done:
        branches.advance()
    assert np.array_equal(session.env.ram, ram)
    assert session.engine.history is state and session.moment is moment
    assert len(branches.real) == len(branches.dream) == 4
    assert not np.array_equal(branches.real[3][RIGHT], branches.real[3][LEFT])
    assert not np.array_equal(branches.dream[3][RIGHT], branches.dream[3][LEFT])
    assert np.array_equal(play(session, [LEFT] * 3)[-1], branches.real[3][LEFT])


def test_branches_leave_the_noise_of_a_sampled_dream_where_it_was(vqvae, world_model):
    engine = DreamEngine(vqvae, world_model, sampling=Sampling(temperature=1.0))
    session = PlaySession(make_atari_env("breakout"), engine)
    play(session, [FIRE, RIGHT])
    future = [session.step(LEFT).dream_frame for _ in range(3)]
    session.rewind(3)
    branches = Branches(session, num_steps=3)
    while not branches.is_done:
        branches.advance()
    assert np.array_equal([frames[LEFT] for frames in branches.dream[1:]], future)  # the same noise
    assert np.array_equal([session.step(LEFT).dream_frame for _ in range(3)], future)


def test_the_distances_are_zero_while_the_dream_is_the_game(session):
    session.step(FIRE)
    session.engine.step = lambda action: session.moment.real_frame
    real = session.env.step

    def step(action):
        result = real(action)
        session.engine.step = lambda action: result[0]
        return result

    session.env.step = step
    play(session, [NOOP] * 12)
    assert np.nanmax(session.divergence.ball_px) < 0.5
    assert max(session.divergence.paddle_px) < 0.5


# Controllers


def test_the_script_sees_in_a_frame_what_it_reads_in_ram(session):
    play(session, [FIRE, *[NOOP] * 12])
    _, memory = detector.seen_memory("breakout", session.moment.real_frame[None])
    seen, ram = memory[0].astype(int), session.ram.astype(int)
    assert abs(seen[[99, 101, 72]] - ram[[99, 101, 72]]).max() <= 2


def test_the_script_plays_from_frames_alone_better_than_chance(session):
    controllers = Controllers("breakout", ActionMap(BREAKOUT), "scripted", seed=0)
    session.mode = "dream"  # the player sees frames only; here they are the real ones
    env, score = session.env, 0.0
    for _ in range(300):
        frame, reward, *_ = env.step(controllers.act(session, []))
        session.moment = type(session.moment)(0, 0, frame, frame)
        score += reward
    assert score >= 6  # random keys: about 2


def test_every_game_has_a_person_and_random_keys():
    assert controller_names("breakout") == ("human", "random", "scripted")
    assert controller_names("seaquest") == ("human", "random")
    assert controller_names("pong") == ("human", "random", "scripted")
    with pytest.raises(ValueError, match="seaquest has no scripted controller"):
        Controllers("seaquest", ActionMap(["NOOP", "FIRE"]), "scripted", 0)


def test_the_script_of_pong_plays_a_dream_and_distances_are_measured():
    session = PlaySession(make_atari_env("pong"), FakeEngine(num_actions=6))
    controllers = Controllers("pong", ActionMap(session.env.action_meanings), "scripted", 0)
    for _ in range(40):
        session.step(controllers.act(session, []))
    assert np.isfinite(session.divergence.paddle_px[-1]) and session.has_truth


@pytest.mark.parametrize("game, num_actions", [("breakout", 4), ("pong", 6)])
def test_the_script_sees_the_dreamed_frame_alone_in_a_dream(game, num_actions):
    session = PlaySession(make_atari_env(game), FakeEngine(num_actions=num_actions))
    controllers = Controllers(game, ActionMap(session.env.action_meanings), "scripted", 0)
    seen = []
    controllers._policies["scripted"] = SimpleNamespace(act=lambda ram: seen.append(ram) or 0)
    for _ in range(30):
        session.step(controllers.act(session, []))
    assert len(seen) == 30
    session.set_mode("dream")
    session.env.step(1), session.step(0)  # the dream's moment is no longer the game's
    controllers.act(session, [])
    _, memory = detector.seen_memory(game, session.moment.dream_frame[None])
    assert np.array_equal(seen[-1], memory[0]) and not np.array_equal(seen[-1], session.ram)
    session.set_mode("both")
    controllers.act(session, [])
    assert seen[-1] is session.ram


def test_every_script_can_read_the_frames_of_its_game():
    assert all(detector.has_truth(game) for game in MIXES)


def test_a_game_of_18_actions_has_its_combinations_and_no_distances():
    session = PlaySession(make_atari_env("seaquest"), FakeEngine(num_actions=18))
    actions = ActionMap(session.env.action_meanings)
    session.step(actions.action(["UP", "RIGHT", "FIRE"]))
    assert session.env.action_meanings[session.engine.actions[-1]] == "UPRIGHTFIRE"
    assert np.isnan(session.divergence.ball_px).all()


# Files


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_recording_holds_every_frame_that_was_written(tmp_path, suffix):
    path = tmp_path / f"a b{suffix}"
    rng = np.random.default_rng(0)
    with open_video(path, 15) as video:
        for _ in range(20):
            video.write(rng.integers(0, 255, (71, 65, 3), np.uint8))
            assert not path.exists()
    assert count_frames(path) == 20
    assert not list(tmp_path.glob(".*"))


def test_a_gif_keeps_its_first_pictures_and_says_once_that_it_is_full(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(video, "MAX_GIF_PICTURES", 3)
    with open_video(tmp_path / "a.gif", 15) as gif:
        for level in range(5):
            gif.write(np.full((8, 8, 3), 40 * level, np.uint8))
    assert count_frames(tmp_path / "a.gif") == gif.num_frames == 3
    assert capsys.readouterr().out.count("a GIF holds two minutes") == 1


@pytest.mark.parametrize("fps", [15, 30, 50, 60])
def test_a_gif_lasts_as_long_as_play_did_with_delays_that_browsers_keep(tmp_path, fps):
    """They show a picture of 10 ms for 100."""
    path, num_pictures = tmp_path / "a.gif", 2 * fps
    with open_video(path, fps) as gif:
        for index in range(num_pictures):
            gif.write(np.full((8, 8, 3), 2 * index, np.uint8))
    with Image.open(path) as image:
        delays, levels = [], []
        for index in range(image.n_frames):
            image.seek(index)
            delays.append(image.info["duration"])
            levels.append(int(np.array(image.convert("RGB"))[0, 0, 0]))
    assert min(delays) >= 20 and sum(delays) == 2000
    assert len(delays) == gif.num_frames == min(num_pictures, 100)
    starts = np.cumsum([0, *delays[:-1]]) / 1000 * fps
    assert np.abs(np.array(levels) / 2 - starts).max() <= 1  # each at its time


def test_a_gif_of_one_picture_too_short_for_it_can_be_seen(tmp_path):
    with open_video(tmp_path / "a.gif", 1000) as gif:
        gif.write(np.zeros((8, 8, 3), np.uint8))
    assert gif.num_frames == count_frames(tmp_path / "a.gif") == 1


def test_an_unknown_kind_of_recording_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif"):
        open_video(tmp_path / "a.avi", 15)


def test_a_png_holds_the_last_picture(tmp_path):
    path = tmp_path / "new" / "last.png"
    with open_video(path, 15) as video:
        for level in (10, 20):
            video.write(np.full((6, 5, 3), level, np.uint8))
    assert (np.array(Image.open(path)) == 20).all()


class SlowVideo(list):
    """Note what is written, once `may_go` is set."""

    def __init__(self):
        self.may_go, self.is_closed = threading.Event(), False

    def write(self, picture):
        assert self.may_go.wait(30)
        if picture is None:
            raise OSError("the disk is full")
        self.append(picture)

    @property
    def num_frames(self):
        return len(self)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.is_closed = True


def test_a_slow_encoder_holds_up_the_game_only_when_many_pictures_wait():
    slow = SlowVideo()
    video = BackgroundVideo(slow)
    for picture in range(MAX_WAITING):
        video.write(picture)
    assert slow == []
    threading.Timer(0.1, slow.may_go.set).start()
    video.write(MAX_WAITING)
    assert slow[:1] == [0]
    video.close()
    assert slow == list(range(MAX_WAITING + 1)) and slow.is_closed and video.is_saved


def test_what_the_encoder_raises_comes_out_at_the_end_and_nothing_follows_it():
    slow = SlowVideo()
    video = BackgroundVideo(slow)
    for picture in (0, None, 2, 3):
        video.write(picture)
    slow.may_go.set()
    with pytest.raises(OSError, match="disk is full"):
        video.close()
    assert slow.is_closed and slow == [0]  # no video with a hole
    assert not video.is_saved


def count_frames(path: Path) -> int:
    if path.suffix == ".gif":
        with Image.open(path) as image:
            return image.n_frames
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return sum(1 for _ in container.decode(video=0))


def test_what_is_played_can_be_trained_on(tmp_path):
    env = make_atari_env("breakout")
    tape = EpisodeTape(env.config, env.action_meanings, seed=2)
    session = PlaySession(env, FakeEngine(), tape.first_game_seed(2), tape)
    frames = play(session, [FIRE, RIGHT, RIGHT, LEFT, NOOP, LEFT])
    session.rewind(2)
    play(session, [RIGHT] * 5)
    path = tmp_path / "human.npz"
    assert tape.save(path) == (10 + 6, 2, 0)
    data = load_game_data(path)
    assert np.array_equal(data.frames[4:10], np.stack(frames))
    assert data.actions[:9].tolist() == [NOOP] * 3 + [FIRE, RIGHT, RIGHT, LEFT, NOOP, LEFT]
    assert data.has_action.tolist() == [True] * 9 + [False] + [True] * 5 + [False]
    assert np.array_equal(data.frames[10], frames[3])  # the rewound moment begins an episode
    assert data.emulator == EmulatorConfig()
    assert window_starts(data.episode_ids, 5).max() == 11
    episode = data.meta["episodes"][0]
    assert episode["policy"] == "human" and episode["seed"] >= HUMAN_SEED_START
    assert split_of_game(episode["seed"]) in ("train", "val")


def test_a_game_played_again_is_left_out_and_the_rest_can_be_trained_on(tmp_path):
    env = make_atari_env("breakout")
    tape = EpisodeTape(env.config, env.action_meanings, seed=0)
    first = tape.first_game_seed(0)
    for seed, action in [(first, FIRE), (first + 1, FIRE), (first + 2, FIRE), (first + 11, RIGHT)]:
        frame, _ = env.reset()
        tape.begin(seed, frame, env.ram)
        for _ in range(20):
            frame, reward, terminated, _, _ = env.step(action)
            tape.step(action, reward, frame, env.ram, terminated)
    assert tape.save(tmp_path / "data.npz") == (3 * 21, 3, 1)
    data = load_game_data(tmp_path / "data.npz")
    assert [episode["seed"] for episode in data.meta["episodes"]] == [first, first + 2, first + 11]
    assert data.frames.any((1, 2, 3)).all() and tape.has_held_out_game


# The script


@pytest.fixture
def fake_weights(monkeypatch):
    engine = FakeEngine()
    monkeypatch.setattr(play_atari_hires, "load_quickest", lambda *a, **k: engine)
    return engine


def run_main(capsys, *argv) -> tuple[int, list[str]]:
    code = play_atari_hires.main([str(part) for part in argv])
    return code, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_headless_play_records_and_ends_with_figures(fake_weights, tmp_path, capsys, suffix):
    path = tmp_path / f"play.{suffix}"
    code, lines = run_main(capsys, "--headless", "--steps", 12, "--record", path)
    figures = json.loads(lines[-1])
    assert code == 0 and figures["steps"] == 12 and figures["fps"] > 0
    assert 0 < figures["mean_token_agreement"] <= 1
    assert str(path) in lines[-2]
    assert count_frames(path) == 12


def test_play_encodes_on_a_thread_of_its_own(fake_weights, tmp_path, capsys, monkeypatch):
    threads, write = [], GifVideo.write

    def noted(*args):
        threads.append(threading.current_thread())
        write(*args)

    monkeypatch.setattr(GifVideo, "write", noted)
    run_main(capsys, "--headless", "--steps", 3, "--record", tmp_path / "play.gif")
    assert len(threads) == 3 and threading.main_thread() not in threads


def test_a_script_of_keys_drives_headless_play_to_its_end(fake_weights, capsys):
    code, lines = run_main(capsys, "--headless", "--keys", "FIRE,RIGHT*3,NOOP*2")
    assert code == 0 and json.loads(lines[-1])["steps"] == 6
    assert fake_weights.actions == [FIRE, RIGHT, RIGHT, RIGHT, NOOP, NOOP]


def test_after_the_script_of_keys_nothing_is_pressed(fake_weights, capsys):
    run_main(capsys, "--headless", "--keys", "FIRE", "--steps", 4)
    assert fake_weights.actions == [FIRE, NOOP, NOOP, NOOP]


def test_play_knows_what_up_and_down_mean_in_pong(monkeypatch, capsys):
    engine, made = FakeEngine(num_actions=6), []
    monkeypatch.setattr(play_atari_hires, "load_quickest", lambda *a, **k: engine)
    monkeypatch.setattr(
        play_atari_hires, "Controllers", lambda *args: made.append(args[1]) or Controllers(*args)
    )
    run_main(capsys, "--game", "pong", "--headless", "--steps", 1)
    assert made[0].meanings[made[0].action(["UP"])] == "RIGHT"


def test_dream_only_measures_no_agreement(fake_weights, capsys):
    _, lines = run_main(capsys, "--headless", "--dream-only", "--steps", 5, "--policy", "random")
    assert json.loads(lines[-1])["mean_token_agreement"] is None


def test_headless_play_saves_data_and_does_not_replace_any(fake_weights, tmp_path, capsys):
    path = tmp_path / "data.npz"
    run_main(capsys, "--headless", "--steps", 5, "--save-data", path)
    assert len(load_game_data(path)) == 9
    with pytest.raises(FileExistsError, match="data.npz"):
        play_atari_hires.main(["--headless", "--save-data", str(path)])


def test_training_holds_out_the_second_game_and_of_a_single_one_the_end_which_is_said(
    fake_weights, tmp_path, capsys
):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    _, lines = run_main(capsys, "--headless", "--keys", "FIRE*9", "--save-data", one)
    assert "of a single game training holds out the last tenth" in lines[-2]
    with pytest.raises(ValueError, match="holds 13 frames and no game to hold out"):
        train_vqvae_hires.main(["--data", str(one), "--out", str(tmp_path)])
    _, lines = run_main(capsys, "--headless", "--keys", "RIGHT*9,FIRE*400", "--save-data", two)
    assert "two.npz" in lines[-2]
    data = load_game_data(two)
    assert len(data.rows_of("train")) and len(data.rows_of("val"))


@pytest.fixture
def dummy_window(monkeypatch):
    """Let main open a window on SDL's dummy driver."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(play_atari_hires, "Window", functools.partial(Window, must_be_seen=False))


def press_q(engine):
    """Post the key once the game plays."""
    deadline = time.monotonic() + 20
    while len(engine.actions) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_q, mod=pygame.KMOD_NONE))


def test_the_window_is_closed_before_anything_is_saved(
    fake_weights, dummy_window, tmp_path, capsys, monkeypatch
):
    was_open = []

    def noted(end):
        return lambda *args: (was_open.append(pygame.display.get_init()), end(*args))[1]

    monkeypatch.setattr(EpisodeTape, "save", noted(EpisodeTape.save))
    monkeypatch.setattr(BackgroundVideo, "close", noted(BackgroundVideo.close))
    threading.Thread(target=press_q, args=[fake_weights]).start()
    _, lines = run_main(capsys, "--record", tmp_path / "a.mp4", "--save-data", tmp_path / "a.npz")
    assert was_open == [False, False] and "saving ..." in lines
    assert json.loads(lines[-1])["steps"] > 0


def test_models_are_loaded_and_run_on_one_thread_that_is_not_the_windows(
    dummy_window, capsys, monkeypatch
):
    """Computing in parallel on a second thread makes a step take half as long again."""
    engine, threads = FakeEngine(), []

    def noted(job):
        def on_this_thread(*args, **flags):
            threads.append(threading.get_ident())
            return job(*args, **flags)

        return on_this_thread

    monkeypatch.setattr(play_atari_hires, "load_quickest", noted(lambda *a, **k: engine))
    for name in ("reset", "step", "encode"):
        monkeypatch.setattr(engine, name, noted(getattr(engine, name)))
    threading.Thread(target=press_q, args=[engine]).start()
    run_main(capsys)
    assert len(threads) > 6 and len(set(threads)) == 1 and threading.get_ident() not in threads


def test_two_equal_games_give_a_file_that_can_be_read(fake_weights, tmp_path, capsys):
    path = tmp_path / "data.npz"
    _, lines = run_main(capsys, "--headless", "--keys", "FIRE*400", "--save-data", path)
    assert any(line.startswith("left out: 1,") for line in lines)
    assert "holds out the last tenth" in lines[-2]
    assert not any(split_of_game(e["seed"]) == "val" for e in load_game_data(path).meta["episodes"])


def test_a_display_that_nobody_sees_is_refused_in_one_line(monkeypatch):
    result = subprocess.run(
        [sys.executable, str(ROOT / "v2/play_atari_hires.py")], capture_output=True, text=True,
        env={"SDL_VIDEODRIVER": "dummy", "PATH": "/usr/bin"}, timeout=120, check=False, cwd="/",
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "--headless --record" in result.stderr


STOPPED = """
import sys
sys.path[:0] = [{root!r}]
from tests.fake_engine import FakeEngine
from v2 import play_atari_hires
from v2.runtime import cli
play_atari_hires.load_quickest = lambda *a, **k: FakeEngine(seconds=0.02)
sys.argv = ["play", "--headless", "--steps", "100000", "--record", {path!r}]
cli.run(play_atari_hires.main)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_recording_can_be_read(tmp_path, number, code):
    path = tmp_path / "play.mp4"
    program = STOPPED.format(root=str(ROOT), path=str(path))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        deadline = time.time() + 60
        while not list(tmp_path.glob(".*.tmp")) and time.time() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert count_frames(path) == json.loads(out.splitlines()[-1])["steps"] > 0


def test_after_a_sync_the_dreamed_ball_goes_on_in_its_direction():
    """Needs the weights that the repository carries."""
    try:
        engine = DreamEngine.load("shipped", device="cpu")
    except FileNotFoundError as error:
        pytest.skip(f"no shipped weights: {error}")
    session = PlaySession(make_atari_env("breakout"), engine)
    session.set_mode("real")
    controllers = Controllers("breakout", ActionMap(BREAKOUT), "scripted", seed=1)
    agreeing = []
    for _ in range(100):
        for _ in range(9):
            session.step(controllers.act(session, []))
        balls = detector.read_frames("breakout", np.stack(session.frames)[-4:]).ball
        velocity = balls[-1] - balls[-2]
        if len(agreeing) == 10 or np.isnan(balls).any() or not 40 < balls[-1, 1] < 60:
            continue
        session.sync()
        dreamed = np.stack([engine.step(NOOP) for _ in range(2)])
        moved = detector.read_frames("breakout", dreamed).ball[-1] - balls[-1]
        agreeing.append(moved @ velocity > 0.5 * 2 * velocity @ velocity)
    assert np.mean(agreeing) >= 0.8


# Replay


@pytest.fixture
def episodes(tmp_path):
    env = make_atari_env("breakout")
    tape = EpisodeTape(env.config, env.action_meanings, seed=0)
    session = PlaySession(env, FakeEngine(), tape.first_game_seed(0), tape)
    play(session, [FIRE, RIGHT, RIGHT, LEFT, NOOP] * 4)
    session.rewind(10)
    play(session, [LEFT] * 8)
    tape.save(tmp_path / "data.npz")
    return tmp_path / "data.npz"


def settle(replay):
    while job := replay.urgent_job():
        job[0](*job[1:])
        replay.job_done(0, 0)


def test_replay_predicts_a_frame_from_the_four_before_it(episodes):
    engine = FakeEngine()
    replay = Replay(episodes, engine, EmulatorConfig())
    replay.command("on")
    replay.command("on")
    settle(replay)
    data = load_game_data(episodes)
    frames, actions = engine.resets[0]
    assert np.array_equal(frames, data.frames[1:5])
    assert actions.tolist() == data.actions[1:4].tolist()
    assert engine.actions[0] == data.actions[4]
    panes = replay.view().panes
    assert np.array_equal(panes[0].frame, data.frames[5])
    assert all(pane.frame is not None for pane in panes)


def test_replay_runs_the_open_loop_along_the_recorded_actions(episodes):
    engine = FakeEngine()
    replay = Replay(episodes, engine, EmulatorConfig())
    replay.command("far on")
    settle(replay)
    data = load_game_data(episodes)
    assert replay.time == 23 and replay.last == 23
    assert engine.actions[1:] == data.actions[3:23].tolist()  # [0] is the teacher-forced one


def test_replay_opens_the_episode_that_is_named(episodes, fake_weights, dummy_window, monkeypatch):
    opened = []
    monkeypatch.setattr(play_atari_hires, "run_window", lambda browser, *_: opened.append(browser))
    play_atari_hires.main(["--replay", str(episodes), "1"])
    play_atari_hires.main(["--replay", str(episodes)])
    assert [replay.view().title[-1] for replay in opened] == ["1", "0"]


@pytest.mark.parametrize("words", [["a.npz", "x"], ["a.npz", "-1"], ["a.npz", "1", "2"], [" "]])
def test_replay_takes_a_file_and_at_most_one_episode(words):
    with pytest.raises(ValueError, match="a file and at most one episode, got"):
        play_atari_hires.main(["--replay", *words])


def test_play_has_at_most_18_flags():
    flags = [action.dest for action in play_atari_hires.build_parser()._actions]
    assert len(flags) - 1 <= 18, flags  # less --help


def test_replay_seeks_restarts_and_changes_the_episode(episodes):
    replay = Replay(episodes, FakeEngine(), EmulatorConfig(), episode_id=1)
    assert replay.view().title.endswith("episode 1")
    replay.command("last")
    replay.command("back")
    replay.command("sync")
    settle(replay)
    assert replay.view().panes[3].detail == "starts here"
    replay.command("previous")
    settle(replay)
    assert replay.view().title.endswith("episode 0") and replay.time == 3
    replay.command("pause")
    replay.step_job([])
    assert replay.time == 4 and replay.is_animated
    with pytest.raises(ValueError, match="no episode 7"):
        Replay(episodes, FakeEngine(), EmulatorConfig(), episode_id=7)


def test_a_replayed_picture_stays_until_the_next_is_whole(episodes):
    replay = Replay(episodes, FakeEngine(), EmulatorConfig())
    replay.command("on")
    settle(replay)
    replay.view()
    replay.command("pause")
    for _ in range(3):
        replay.step_job([])
        before = replay.view()
        assert all(pane.frame is not None for pane in before.panes)
        settle(replay)
        assert replay.view().panes[0].detail == f"frame {replay.time}" != before.panes[0].detail


def test_replay_shows_what_saving_a_clip_tells(episodes, tmp_path):
    (tmp_path / "file").write_text("x")
    replay = Replay(episodes, FakeEngine(), EmulatorConfig(), clips=tmp_path / "file")
    replay.command("clip")
    wait_for_clip(replay._writer)
    replay.clips = tmp_path
    replay.command("clip")
    assert "the last clip was not saved" in replay.view().notice
    replay.close()
    (video,) = tmp_path.glob("breakout_episode0_000003_*.mp4")
    assert count_frames(video) == 1
    assert json.loads(video.with_suffix(".json").read_text())["open_loop_from"] == 3


def test_replay_refuses_data_of_another_game(episodes):
    with pytest.raises(ValueError, match="--game breakout"):
        Replay(episodes, FakeEngine(), EmulatorConfig("pong"))


def test_replay_refuses_data_of_another_emulator(episodes, monkeypatch, dummy_window):
    engine = FakeEngine()
    engine.info = {"emulator": {"game": "breakout", "frameskip": 2}}
    monkeypatch.setattr(play_atari_hires, "load_quickest", lambda *a, **k: engine)
    with pytest.raises(ValueError, match="recorded with frameskip 4, not 2 as the model knows"):
        play_atari_hires.main(["--replay", str(episodes)])


@pytest.mark.parametrize("change, text", [
    ({"episodes": [4]}, "list of episodes is damaged"),
    ({"episodes": [{"id": 7, "seed": 0, "frames": 9}]}, "list of episodes is damaged"),
    ({"episodes": [{"id": 0, "seed": 0, "frames": 999}]}, "list of episodes is damaged"),
    ({"emulator": {"game": "breakout", "colour": 1}}, "emulator settings of another version"),
    ({"emulator": {"game": 4}}, "emulator settings of another version"),
    ({"action_meanings": [0, 1, 2, 3]}, "other actions than the model knows"),
])  # fmt: skip
def test_replay_refuses_a_foreign_file(episodes, change, text):
    data = load_game_data(episodes)
    write_npz(episodes, data.arrays(), data.meta | change)
    with pytest.raises(ValueError, match=f"data.npz.*{text}"):
        Replay(episodes, FakeEngine(), EmulatorConfig())
