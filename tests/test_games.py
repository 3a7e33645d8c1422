"""Every ALE game is collected and played, whatever its name, screen height and actions."""

import numpy as np
import pytest

from tests.fake_engine import FakeEngine
from v2.data import collect_atari
from v2.data.atari_dataset import load_game_data
from v2.data.emulator import known_games, make_atari_env
from v2.data.frames import downsample_screen
from v2.data.games import game_id
from v2.play.controllers import Players
from v2.play.keys import ActionMap
from v2.play.session import PlaySession


@pytest.mark.parametrize("name, game", [
    ("up_ndown", "up_n_down"), ("UpNDown", "up_n_down"), ("ALE/TicTacToe3D-v5", "tic_tac_toe_3d"),
])  # fmt: skip
def test_a_name_with_a_lone_letter_or_digit_is_understood(name, game):
    assert game_id(name) == game


def test_no_two_games_are_spelt_alike():
    assert all(game_id(game) == game and game_id(name) == game
               for game, name in known_games().items())  # fmt: skip


@pytest.mark.parametrize("name, height, idle", [
    ("carnival", 214, "NOOP"), ("adventure", 250, "NOOP"), ("up_ndown", 210, "NOOP"),
    ("tic_tac_toe3d", 210, "NOOP"), ("backgammon", 210, "FIRE"),
])  # fmt: skip
def test_a_game_of_another_kind_is_collected_and_played(name, height, idle, tmp_path):
    flags = ["--frames", "60", "--workers", "1", "--out", str(tmp_path)]
    assert collect_atari.main(["--game", name, *flags]) == 0
    data = load_game_data(tmp_path / "atari_game_data.npz")
    assert data.frames.shape == (60, 84, 64, 3) and data.emulator.game == game_id(name)
    env = make_atari_env(config=data.emulator)
    assert np.array_equal(env.reset()[0], data.frames[0])
    for row in range(5):
        assert np.array_equal(env.step(int(data.actions[row]))[0], data.frames[row + 1])
    screen = env.unwrapped.ale.getScreenRGB()
    assert len(screen) == height and np.array_equal(downsample_screen(screen), data.frames[5])
    session = PlaySession(env, FakeEngine(num_actions=data.num_actions))
    players = Players(data.emulator.game, ActionMap(env.action_meanings), "human", seed=0)
    moment = session.step(players.act(session, inputs=[]))
    assert env.action_meanings[moment.action] == idle and moment.real_frame.shape == (84, 64, 3)


def test_a_game_without_noop_takes_its_first_action_where_nothing_is_pressed():
    checkers = ActionMap(["FIRE", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT"])
    assert checkers.action([]) == checkers.action(["UP"]) == 0
    assert checkers.action(["UP", "LEFT"]) == 2
    assert list(checkers.script("UPLEFT*2,NOOP,FIRE")) == [2, 2, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("game", known_games())
def test_every_game_makes_frames_and_has_keys(game):
    env = make_atari_env(game)
    frame, _ = env.reset()
    for action in (0, len(env.action_meanings) - 1, 0):
        assert env.observation_space.contains(frame)
        frame, *_ = env.step(action)
    assert env.observation_space.contains(frame) and env.ram.shape == (128,)
    actions = ActionMap(env.action_meanings)
    for action in range(len(env.action_meanings)):
        assert actions.action(sorted(actions.inputs(action))) == action
    env.close()
