"""Picture, window and loop: sharp frames, every key by posted events, input that never queues."""

import threading
import time
from dataclasses import replace

import numpy as np
import pygame
import pytest

from tests.fake_engine import FakeEngine
from v2.data.emulator import make_atari_env
from v2.data.games import EmulatorConfig
from v2.play.controllers import Controllers
from v2.play.draw import COLORS, Draw
from v2.play.game import PlayGame, PlaySettings
from v2.play.keys import (
    PLAY_KEYS,
    REPLAY_KEYS,
    ActionMap,
    commands_of,
    help_rows,
    hint_line,
    inputs_of,
)
from v2.play.loop import FOCUS_HINT, Clock, ModelThread, run_window
from v2.play.picture import (
    Curve,
    Pane,
    View,
    _draw_curve,
    draw_view,
    largest_scale,
    picture_size,
    render,
)
from v2.play.play_view import HINT, slow_advice
from v2.play.replay import HINT as REPLAY_HINT
from v2.play.replay import Replay
from v2.play.session import PlaySession
from v2.play.tape import EpisodeTape
from v2.play.window import Window, codes

PLAY_COMMANDS, INPUT_KEYS = codes(commands_of(PLAY_KEYS)), codes(inputs_of(PLAY_KEYS))
REPLAY_COMMANDS = codes(commands_of(REPLAY_KEYS))
NOOP, FIRE, RIGHT, LEFT = range(4)


@pytest.fixture
def frame():
    return np.random.default_rng(0).integers(0, 255, (84, 64, 3), np.uint8)


def view_of(*frames, **fields) -> View:
    panes = tuple(Pane(f"pane {index}", frame) for index, frame in enumerate(frames))
    return View("Breakout", panes, columns=len(frames), **fields)


def find_block(picture: np.ndarray, block: np.ndarray) -> bool:
    """Tell whether a block stands somewhere in a picture, pixel by pixel."""
    height, width = block.shape[:2]
    hits = np.argwhere((picture == block[0, 0]).all(-1))
    return any(np.array_equal(picture[y : y + height, x : x + width], block) for y, x in hits)


@pytest.fixture
def replay(tmp_path):
    env = make_atari_env("breakout")
    tape = EpisodeTape(env.config, env.action_meanings, seed=0)
    session = PlaySession(env, FakeEngine(), tape.first_game_seed(0), tape)
    for action in [FIRE, RIGHT, LEFT, NOOP] * 20:
        session.step(action)
    tape.save(tmp_path / "data.npz")
    data, clips = tmp_path / "data.npz", tmp_path / "clips"
    return Replay(data, FakeEngine(), EmulatorConfig(), None, 100, clips)


# The picture


@pytest.mark.parametrize("scale", [2, 3, 5])
def test_frames_are_scaled_by_whole_numbers_and_nothing_else(frame, scale):
    picture = render(view_of(frame, 255 - frame), scale)
    for shown in (frame, 255 - frame):
        assert find_block(picture, shown.repeat(scale, 0).repeat(scale, 1))


def test_a_picture_that_fits_is_the_largest_that_does():
    for size in [(640, 540), (837, 795), (1366, 768), (1920, 1080)]:
        scale = largest_scale(2, 1, size)
        width, height = picture_size(2, 1, scale)
        assert width <= size[0] and height <= size[1]
        wider, higher = picture_size(2, 1, scale + 1)
        assert wider > size[0] or higher > size[1]


def test_a_resized_window_keeps_the_aspect(frame):
    surface = pygame.Surface((1500, 700))
    draw_view(surface, view_of(frame, frame))
    picture = pygame.surfarray.array3d(surface).swapaxes(0, 1)
    scale = largest_scale(2, 1, (1500, 700))
    assert find_block(picture, frame.repeat(scale, 0).repeat(scale, 1))


def test_the_branches_of_six_actions_are_doubled_on_a_small_laptop(frame):
    """1366x768 less the desktop's bars."""
    panes = tuple(Pane("RIGHTFIRE", frame) for _ in range(12))
    surface = pygame.Surface((838, 667))
    draw_view(surface, View("Pong: branches", panes, columns=6, has_footer=False))
    picture = pygame.surfarray.array3d(surface).swapaxes(0, 1)
    assert find_block(picture, frame.repeat(2, 0).repeat(2, 1))


def test_a_window_that_is_too_small_shows_the_middle_of_the_picture():
    surface, grey = pygame.Surface((120, 90)), (1, 2, 3)
    draw_view(surface, view_of(*[np.full((84, 64, 3), grey, np.uint8)] * 2))
    picture = pygame.surfarray.array3d(surface)
    assert (picture == grey).all(-1).mean() > 0.3


def pixels_of(surface: pygame.Surface, color: str) -> np.ndarray:
    """Return which pixels of a surface have a colour of the palette, bool (W, H)."""
    return (pygame.surfarray.array3d(surface) == COLORS[color]).all(-1)


def test_a_path_with_bytes_that_are_no_text_is_written():
    draw = Draw(pygame.Surface((80, 20)), 1)
    assert draw.width("b\udcff") == draw.width(r"b\udcff") > draw.width("b")


def test_a_curve_is_interrupted_where_a_value_is_unknown():
    surface = pygame.Surface((600, 100))
    plot, values = surface.get_rect(), [1.0, 2.0, np.nan, 3.0, np.nan, np.nan, 4.0, 4.0, np.nan]
    _draw_curve(Draw(surface, 1), plot, values, 5.0, COLORS["ball"])
    columns = pixels_of(surface, "ball").any(1).astype(int)
    assert (np.diff(columns, prepend=0) == 1).sum() == 3  # a line, a dot, a line
    assert np.flatnonzero(columns)[-1] < 600 * 9 / 60  # at least 60 steps wide


def test_a_curve_goes_up_as_its_values_do():
    surface = pygame.Surface((600, 100))
    _draw_curve(Draw(surface, 1), surface.get_rect(), [0.0, 10.0] * 30, 10.0, COLORS["ball"])
    rows = np.flatnonzero(pixels_of(surface, "ball").any(0))
    assert rows[0] <= 2 and rows[-1] >= 97


def test_a_curve_without_values_is_named_and_draws_nothing():
    surface = pygame.Surface((600, 100))
    _draw_curve(Draw(surface, 1), surface.get_rect(), [], 10.0, COLORS["ball"])
    assert not pixels_of(surface, "ball").any()


CURVES = (Curve("ball", [1.0, 2.0, 3.0], "ball", "px"),)


@pytest.mark.parametrize("fields", [
    {"subtitle": "6 M parameters"}, {"badges": (("paused", "ball"),)}, {"inputs": {"UP"}},
    {"inputs": {"FIRE"}}, {"action": "RIGHT"}, {"stats": (("step", "12"),)}, {"notice": "synced"},
    {"chart_title": "divergence"}, {"chart_title": "divergence", "curves": CURVES},
    {"hint": "H keys"}, {"help": (("P", "pause"),)}, {"has_footer": False},
], ids=str)  # fmt: skip
def test_every_part_of_a_view_is_seen(frame, fields):
    without = {"chart_title": "divergence"} if "curves" in fields else {}
    one, other = render(view_of(frame, **fields), 3), render(view_of(frame, **without), 3)
    assert not np.array_equal(one, other)
    assert find_block(one, frame.repeat(3, 0).repeat(3, 1)) or "help" in fields


def written(view, scale, monkeypatch) -> set[str]:
    """Return the lines of text that a picture holds."""
    found, text = set(), Draw.text
    with monkeypatch.context() as patch:
        patch.setattr(Draw, "text", lambda self, line, *a, **k: (found.add(line),
                                                                 text(self, line, *a, **k))[1])
        render(view, scale)
    return found


@pytest.mark.parametrize("scale", [2, 5])
@pytest.mark.parametrize("rows, hint", [(PLAY_KEYS, HINT), (REPLAY_KEYS, REPLAY_HINT)])
def test_help_and_hint_are_written_in_full(frame, rows, hint, scale, monkeypatch):
    view = view_of(frame, frame, hint=hint, help=help_rows(rows))
    lines = written(view, scale, monkeypatch)
    assert {word for row in help_rows(rows) for word in row} | {hint} <= lines


def test_a_long_notice_shortens_the_hint(frame, monkeypatch):
    view = view_of(frame, frame, hint=HINT, notice="both, synced" * 6)
    lines = written(view, 3, monkeypatch)
    assert view.notice in lines and HINT not in lines
    assert any(line.startswith("H keys") and line.endswith("…") for line in lines)


def test_every_command_has_a_key_and_every_key_a_command(tmp_path, replay):
    assert set(commands_of(PLAY_KEYS).values()) == set(make_game(tmp_path).commands)
    assert set(commands_of(REPLAY_KEYS).values()) == set(replay.commands)


def test_the_hint_of_play_leaves_pause_and_rewind_to_the_help():
    assert HINT == hint_line(PLAY_KEYS) == (
        "H keys  ·  R sync  ·  TAB view  ·  M who plays  ·  F branches  ·  V clip  ·  Q quit"
    )


def test_keys_mean_what_they_always_did():
    assert INPUT_KEYS == {
        pygame.K_UP: "UP", pygame.K_w: "UP", pygame.K_DOWN: "DOWN", pygame.K_s: "DOWN",
        pygame.K_LEFT: "LEFT", pygame.K_a: "LEFT", pygame.K_RIGHT: "RIGHT", pygame.K_d: "RIGHT",
        pygame.K_SPACE: "FIRE",
    }  # fmt: skip
    assert PLAY_COMMANDS == {
        pygame.K_p: "pause", pygame.K_PERIOD: "one step", pygame.K_r: "sync", pygame.K_TAB: "mode",
        pygame.K_m: "controller", pygame.K_f: "branches", pygame.K_BACKSPACE: "rewind",
        pygame.K_v: "clip", pygame.K_h: "help", pygame.K_q: "quit", pygame.K_ESCAPE: "quit",
    }  # fmt: skip
    assert REPLAY_COMMANDS == {
        pygame.K_SPACE: "pause", pygame.K_p: "pause", pygame.K_LEFT: "back", pygame.K_RIGHT: "on",
        pygame.K_DOWN: "far back", pygame.K_UP: "far on", pygame.K_HOME: "first",
        pygame.K_END: "last", pygame.K_r: "sync", pygame.K_n: "next", pygame.K_b: "previous",
        pygame.K_v: "clip", pygame.K_h: "help", pygame.K_q: "quit", pygame.K_ESCAPE: "quit",
    }  # fmt: skip


# The window


@pytest.fixture
def window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with Window("test", PLAY_KEYS, scale=2, must_be_seen=False) as window:
        pygame.event.clear()
        yield window


def press(key, *kinds, mod=pygame.KMOD_NONE):
    for kind in kinds or (pygame.KEYDOWN, pygame.KEYUP):
        pygame.event.post(pygame.event.Event(kind, key=key, mod=mod))


def test_a_window_that_nobody_sees_is_refused(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.raises(ValueError, match="--headless --record"):
        Window("test", PLAY_KEYS)


@pytest.mark.parametrize(("key", "name"), INPUT_KEYS.items())
def test_every_game_key_is_held_from_down_to_up(window, key, name):
    press(key, pygame.KEYDOWN)
    window.poll()
    assert window.held.take() == [name]
    assert window.held.take() == [name]
    press(key, pygame.KEYUP)
    window.poll()
    assert window.held.take() == []


@pytest.mark.parametrize(("key", "command"), PLAY_COMMANDS.items())
def test_every_command_key_gives_its_command_once(window, key, command):
    press(key)
    assert window.poll() == [command]
    assert window.poll() == []


@pytest.mark.parametrize("mod", [pygame.KMOD_LALT, pygame.KMOD_RCTRL, pygame.KMOD_LMETA])
def test_a_key_with_alt_ctrl_or_meta_is_the_desktops(window, mod):
    press(pygame.K_TAB, mod=mod)
    press(pygame.K_RIGHT, pygame.KEYDOWN, mod=mod)
    assert window.poll() == [] and window.held.take() == [] and not window.has_seen_key
    press(pygame.K_TAB, mod=pygame.KMOD_NUM | pygame.KMOD_LSHIFT)
    assert window.poll() == ["mode"]


def test_held_keys_are_released_when_the_focus_is_lost(window):
    press(pygame.K_RIGHT, pygame.KEYDOWN)
    window.poll()
    pygame.event.post(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    window.poll()
    assert window.held.take() == []


def test_closing_the_window_quits(window):
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert window.poll() == ["quit"]


@pytest.mark.parametrize(("key", "command"), REPLAY_COMMANDS.items())
def test_every_replay_key_gives_its_command_once(window, key, command):
    window.commands, window.inputs = REPLAY_COMMANDS, {}
    press(key)
    assert window.poll() == [command]
    assert window.held.take() == []


# The loop


class Typist:
    """Post events when the game has reached a step, or after a while."""

    def __init__(self, game, plan):
        self.game, self.plan, self.missed = game, list(plan), []
        self.thread = threading.Thread(target=self._type, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.thread.join(10)

    def _type(self):
        for step, (wait, action) in enumerate(self.plan):
            deadline = time.time() + 8
            while not wait(self.game):
                if time.time() > deadline:
                    self.missed.append(step)
                    break
                time.sleep(0.002)
            action()


def make_game(tmp_path, engine=None, steps_per_second=200.0) -> PlayGame:
    env = make_atari_env("breakout")
    session = PlaySession(env, engine or FakeEngine())
    controllers = Controllers("breakout", ActionMap(env.action_meanings), "human", 0)
    return PlayGame(session, controllers, PlaySettings(steps_per_second, tmp_path / "clips", 2))


def after(steps):
    return lambda game: game.num_steps >= steps


def keys(*pressed):
    return lambda: [press(key) for key in pressed]


def run(game, window, *plan, max_steps=0):
    end = (lambda game: True, keys(pygame.K_q))
    with Typist(game, [*plan, end]) as typist, ModelThread() as thread:
        run_window(game, window, thread, stop=False, max_steps=max_steps)
    game.close()
    assert typist.missed == []  # all that was waited for came


@pytest.mark.parametrize("release", [
    pygame.event.Event(pygame.KEYUP, key=pygame.K_RIGHT),
    pygame.event.Event(pygame.WINDOWFOCUSLOST),
])  # fmt: skip
def test_held_keys_move_both_sides_until_released_or_the_focus_is_lost(release, window, tmp_path):
    game = make_game(tmp_path)
    run(
        game, window,
        (after(0), lambda: press(pygame.K_RIGHT, pygame.KEYDOWN)),
        (after(10), lambda: pygame.event.post(release)),
        (after(20), keys()),
    )  # fmt: skip
    actions = game.session.engine.actions
    assert actions[5:9] == [RIGHT] * 4 and actions[-3:] == [NOOP] * 3


def test_the_hint_says_to_click_the_window_until_the_first_key(window, tmp_path):
    game, hints = make_game(tmp_path), []
    window.show = lambda view: hints.append((game.num_steps, view.hint))
    run(game, window, (after(5), keys(pygame.K_RIGHT)), (after(10), keys()))
    assert {hint for step, hint in hints if step < 5} == {FOCUS_HINT}
    assert "click this window" in FOCUS_HINT and "serves" not in FOCUS_HINT and hints[-1][1] == HINT


def test_pause_stops_and_the_period_key_takes_one_step(window, tmp_path):
    game = make_game(tmp_path)
    seen = []
    still = time.time() + 1e9

    def note():
        nonlocal still
        seen.append(game.num_steps)
        still = time.time() + 0.2

    run(
        game, window,
        (after(3), keys(pygame.K_p)),
        (lambda game: game.is_paused and game.session.moment is game.moment, note),
        (lambda game: time.time() > still, lambda: (note(), press(pygame.K_PERIOD))),
        (lambda game: time.time() > still, lambda: (note(), press(pygame.K_p))),
        (lambda game: game.num_steps > seen[-1] + 3, keys()),
    )  # fmt: skip
    assert seen[1] - seen[0] <= 1  # the step that was running when P was pressed
    assert seen[2] == seen[1] + 1


def test_sync_mode_player_rewind_and_help_keys_reach_the_session(window, tmp_path):
    game = make_game(tmp_path)
    seen = {}

    def note(name, value):
        return lambda: seen.update({name: value()})

    run(
        game, window,
        (after(5), note("resets", lambda: len(game.session.engine.resets))),
        (after(5), keys(pygame.K_r)),
        (lambda game: len(game.session.engine.resets) > seen["resets"], keys(pygame.K_TAB)),
        (lambda game: game.moment.mode == "dream", keys(pygame.K_TAB)),
        (lambda game: game.moment.mode == "real", keys(pygame.K_TAB)),
        (lambda game: game.moment.mode == "both", keys(pygame.K_m)),
        (lambda game: game.controllers.name == "random", keys(pygame.K_m)),
        (lambda game: game.controllers.name == "scripted", keys(pygame.K_h)),
        (lambda game: game.shows_help, keys()),
        (lambda game: game.moment.step >= 40, keys(pygame.K_p)),
        (lambda game: game.is_paused, note("step", lambda: game.moment.step)),
        (lambda game: True, keys(pygame.K_BACKSPACE)),
        (lambda game: game.moment.step < seen["step"], note("back", lambda: game.moment.step)),
    )  # fmt: skip
    assert 29 <= seen["step"] - seen["back"] <= 30
    assert game.controllers.name == "scripted" and game.shows_help


def test_branches_show_all_actions_on_both_sides_and_goes_back(window, tmp_path):
    game = make_game(tmp_path)
    seen = {}

    def note():
        seen["titles"] = [pane.title for pane in game.view().panes]
        seen["step"] = game.num_steps
        press(pygame.K_f)

    run(
        game, window,
        (after(4), keys(pygame.K_f)),
        (lambda game: game.branches is not None and game.branches.is_done, note),
        (lambda game: game.branches is None and game.num_steps > seen["step"] + 2, keys()),
    )  # fmt: skip
    names = ["NOOP", "FIRE", "RIGHT", "LEFT"]
    assert seen["titles"] == ["real: NOOP", *names[1:], "dream: NOOP", *names[1:]]


def test_keys_of_the_game_that_are_pressed_during_branches_do_nothing(window, tmp_path):
    game = make_game(tmp_path, FakeEngine(seconds=0.02))
    seen = []
    run(
        game, window,
        (after(4), keys(pygame.K_f)),
        (lambda game: game.branches is not None, keys(pygame.K_SPACE, pygame.K_p, pygame.K_PERIOD)),
        (lambda game: len(game.branches.dream) > 3, lambda: seen.append(game.branches.is_done)),
        (lambda game: True, keys(pygame.K_f)),
        (lambda game: game.branches is None, lambda: seen.append(game.num_steps)),
        (lambda game: game.num_steps > seen[-1] + 2, keys()),
    )  # fmt: skip
    assert seen[0] is False and not game.is_paused
    assert {line["action"] for _, line in game._clip} == {NOOP}


def test_a_clip_is_saved_with_its_actions(window, tmp_path):
    import json

    import av

    game = make_game(tmp_path)
    run(game, window, (after(12), keys(pygame.K_v)), (after(14), keys()))
    (video,) = (tmp_path / "clips").glob("*.mp4")
    details = video.with_suffix(".json")
    actions = json.loads(details.read_text())["actions"]
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(actions) >= 10
    assert actions[0]["name"] == "NOOP" and actions[0]["step"] == 1


def test_a_slow_model_slows_the_game_and_input_does_not_queue(window, tmp_path):
    engine = FakeEngine(seconds=0.1)
    game = make_game(tmp_path, engine, steps_per_second=100)
    run(
        game, window,
        (after(2), lambda: [press(pygame.K_SPACE) for _ in range(20)]),  # twenty taps in one step
        (after(8), keys()),
    )  # fmt: skip
    assert engine.actions.count(FIRE) == 1
    assert game.real_time_factor < 0.9
    assert ("slower than real time", "ball") in game.view().badges


def test_a_machine_that_is_too_slow_is_told_once_what_helps(tmp_path):
    game = make_game(tmp_path, steps_per_second=100)
    said = []
    for step in range(80):
        game.step_job([])
        game.session.moment = replace(game.session.moment, mode="both" if step < 60 else "dream")
        game.job_done(0.1 * step, 0.1 * step + 0.05)  # ten steps a second, of 0.05 s each
        said += [game.said] if game.said and game.said not in said else []
    assert said == ["10 of 100 steps a second: TAB lets the real game wait, which helps"]
    game.moment = replace(game.moment, mode="dream")
    assert slow_advice(game) == "10 of 100 steps a second: --fps 10 keeps an even pace"
    game.settings = replace(game.settings, steps_per_second=15)
    assert slow_advice(game) == "10 of 15 steps a second: a smaller window (--scale) helps"


def test_the_window_answers_while_the_model_thinks(window, tmp_path):
    game = make_game(tmp_path, FakeEngine(seconds=1.0))
    pressed = []
    began = time.time()

    def press_help():
        pressed.append(time.time())
        press(pygame.K_h)

    run(game, window, (lambda game: time.time() > began + 0.1, press_help),
        (lambda game: game.shows_help, lambda: pressed.append(time.time())))  # fmt: skip
    assert pressed[1] - pressed[0] < 0.5


def test_an_error_of_the_model_reaches_the_person(window, tmp_path):
    game = make_game(tmp_path)
    game.session.engine.step = lambda action: (_ for _ in ()).throw(ValueError("broken weights"))
    with pytest.raises(ValueError, match="broken weights"), ModelThread() as thread:
        run_window(game, window, thread, stop=False)


def test_missed_steps_are_not_made_up_for():
    clock = Clock(steps_per_second=1)
    time.sleep(2.5)
    assert clock.is_due()
    clock.began()
    assert not clock.is_due() and clock.due > time.perf_counter()


def test_a_fast_machine_keeps_the_games_time(window, tmp_path):
    game = make_game(tmp_path, steps_per_second=15.0)
    with ModelThread() as thread:
        run_window(game, window, thread, stop=False, max_steps=20)
    assert 5 < game.speed.mean_steps_per_second < 16.5  # a busy machine is slower


def test_replay_plays_and_seeks_in_the_window(window, tmp_path, replay):
    window.commands, window.inputs = REPLAY_COMMANDS, {}
    seen = []
    run(
        replay, window,
        (lambda game: True, keys(pygame.K_RIGHT)),
        (lambda game: game.time == 4, keys(pygame.K_UP)),
        (lambda game: game.time == 34, keys(pygame.K_SPACE)),
        (lambda game: game.time >= 40, keys(pygame.K_LEFT)),
        (lambda game: game.is_paused, lambda: seen.append(replay.time)),
        (lambda game: True, keys(pygame.K_v, pygame.K_END)),
        (lambda game: game.time == game.last, keys()),
    )  # fmt: skip
    assert 39 <= seen[0] < 83
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 1
