"""Any Gymnasium environment with discrete actions is collected, learnt, played and evaluated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.conftest import train_vqvae, train_world_model
from tests.fake_engine import FakeEngine
from v2 import doctor, play_atari_hires
from v2.data import collect_atari, games, resolution
from v2.data.atari_dataset import GameData, load_game_data, split_of_game
from v2.data.collector import join_segments, record
from v2.data.emulator import emulator_config, make_atari_env
from v2.data.environments import read_env_args
from v2.data.frames import downsample_screen, fit_screen
from v2.data.games import EmulatorConfig, emulator_dict, game_directory, game_id
from v2.data.policies import policy_mix
from v2.eval import gold_eval
from v2.eval.replays import recorded_branches
from v2.play.controllers import Controllers
from v2.play.game import PlayGame, PlaySettings
from v2.play.keys import ActionMap
from v2.play.session import PlaySession
from v2.runtime import checkpoint

LUCK = np.random.default_rng(0)  # which no seed decides


class Box(gymnasium.Env):
    """A block of `size` pixels on a screen of 200x300, which four actions move; seeds place it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space = gymnasium.spaces.Box(0, 300, (2,), np.float64)

    def __init__(self, render_mode=None, size=40, is_discrete=True, num_actions=4,
                 has_start=False, is_seeded=True):  # fmt: skip
        self.render_mode, self.size = render_mode, size
        self.has_start, self.is_seeded = has_start, is_seeded
        self.action_space = gymnasium.spaces.Discrete(num_actions, start=1)
        if not is_discrete:
            self.action_space = gymnasium.spaces.Box(0, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        luck = self.np_random if self.is_seeded else LUCK
        self.place = np.zeros(2) if self.has_start else luck.integers(0, (160, 260)).astype(float)
        return self.place.copy(), {}

    def step(self, action):
        y, x = ((0, 0), (0, 10), (-10, 0), (10, 0))[action - 1]
        drift = 0 if self.has_start else self.np_random.integers(2)  # luck within a game
        self.place = np.clip(self.place + (y, x + drift), 0, (160, 260))
        return self.place.copy(), float(x > 0), False, False, {}

    def render(self):
        screen = np.zeros((200, 300, 3), np.uint8)
        y, x = self.place.astype(int)
        screen[y : y + self.size, x : x + self.size] = 200
        return screen


NAME = "TestBox-v0"


@pytest.fixture(autouse=True)
def box(monkeypatch, tmp_path):
    gymnasium.register(NAME, Box, max_episode_steps=60)
    monkeypatch.setattr(games, "CHECKPOINTS", tmp_path / "checkpoints")
    yield
    del gymnasium.registry[NAME]


# Names and settings


@pytest.mark.parametrize("name, folder", [
    ("CartPole-v1", "CartPole-v1"), ("MinAtar/Breakout-v1", "MinAtar_Breakout-v1"),
    ("package:Own-v0", "package_Own-v0"), ("../../x-v0", ".._.._x-v0"),
    ("Blackjack-v1", "Blackjack-v1"),  # Atari's has no such version
])  # fmt: skip
def test_an_id_of_gymnasium_is_a_game_with_a_folder_of_its_own(name, folder):
    assert game_id(name) == name and game_directory(name).name == folder
    assert game_directory(name).parent == games.CHECKPOINTS
    assert not EmulatorConfig(name).is_atari


@pytest.mark.parametrize("name", ["Pong-v4", "ALE/Breakout-v5", "breakout"])
def test_a_name_of_atari_stays_one(name):
    assert EmulatorConfig(name).is_atari
    with pytest.raises(ValueError, match="as CartPole-v1"):
        game_id("CartPole")


def test_what_is_stored_of_an_atari_game_is_what_always_was():
    assert emulator_dict(EmulatorConfig()) == {
        "game": "breakout", "frameskip": 4, "repeat_action_probability": 0.0,
        "full_action_space": False, "max_pool": False,
    }  # fmt: skip


def test_an_environment_says_its_speed_its_actions_and_its_package():
    config = emulator_config("CartPole-v1")
    assert config.steps_per_second == 50 and config.action_names == "LEFT,RIGHT"
    assert config.package == f"gymnasium {gymnasium.__version__}" and config.fit == "pad"
    assert EmulatorConfig(**json.loads(json.dumps(emulator_dict(config)))) == config
    assert emulator_config(NAME, frameskip=2).steps_per_second == 10
    assert emulator_config(NAME).action_names == "NOOP,FIRE,UP,RIGHT"  # not known: all have keys
    own = emulator_config(NAME, action_names="noop,right,up,down")
    assert make_atari_env(config=own).action_meanings == ["NOOP", "RIGHT", "UP", "DOWN"]


@pytest.mark.parametrize("flags, text", [
    (["--env", "NoSuchThing-v0"], "cannot make NoSuchThing-v0"),
    (["--env", NAME, "--env-arg", "is_discrete=False"], "discrete ones alone.*continuous=False"),
    (["--env", NAME, "--env-arg", "nothing=1"], "nothing"),
    (["--env", NAME, "--env-arg", "num_actions=257"], "has 257 actions: at most 256 are known"),
    (["--env", "FrozenLake-v1", "--env-arg", "map_name=5x5"], "cannot make FrozenLake-v1.*5x5"),
    (["--env", NAME, "--env-arg", "1"], "NAME=VALUE, got 1"),
    (["--env", NAME, "--actions", "UP,DOWN"], "4 actions and UP,DOWN names 2"),
    (["--env", NAME, "--sticky", "0.25"], "repeats no action by chance"),
    (["--game", "freeway", "--fit", "crop"], "not for Atari's freeway"),
])  # fmt: skip
def test_what_cannot_be_played_is_one_line(flags, text, tmp_path):
    with pytest.raises(ValueError, match=text) as refused:
        collect_atari.main([*flags, "--frames", "60", "--out", str(tmp_path / "out")])
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_arguments_are_the_same_in_any_order_and_words_need_no_quotes():
    assert read_env_args(["b=word", "a=False"]) == read_env_args(["a=False", "b='word'"])
    assert json.loads(read_env_args(["a=False", "b=word", "c=[1, 2]"])) == {
        "a": False, "b": "word", "c": [1, 2],
    }  # fmt: skip
    asked = ["a=false", "b=TRUE", "c=none", "d=null", "e='true'"]
    assert json.loads(read_env_args(asked)) == {
        "a": False, "b": True, "c": None, "d": None, "e": "true",
    }  # fmt: skip


class Wrong(Box):
    """One that draws from 0 to 255 in floating point, or whose reward is no number."""

    def __init__(self, wrong, **args):
        super().__init__(**args)
        self.wrong = wrong

    def step(self, action):
        observation, reward, *others = super().step(action)
        return observation, np.nan if self.wrong == "reward" else reward, *others

    def render(self):
        screen = super().render()
        return screen.astype(np.float32) if self.wrong == "screen" else screen


@pytest.mark.parametrize("wrong, text", [
    ("screen", "draws float32 from 0 to 200: a picture is uint8, or from 0 to 1"),
    ("reward", "gives the reward nan"),
])  # fmt: skip
def test_what_an_environment_gives_is_checked_while_it_is_recorded(wrong, text, tmp_path):
    gymnasium.register("Wrong-v0", Wrong)
    flags = ["--env", "Wrong-v0", "--env-arg", f"wrong={wrong}", "--frames", "60"]
    try:
        with pytest.raises(ValueError, match=text):
            collect_atari.main([*flags, "--workers", "1", "--out", str(tmp_path / "out")])
    finally:
        del gymnasium.registry["Wrong-v0"]


# Frames


def test_a_fitted_frame_is_the_exact_area_average_and_atari_is_a_case_of_it():
    rng = np.random.default_rng(0)
    screen = rng.integers(0, 256, (210, 160, 3), np.uint8)
    assert np.array_equal(fit_screen(screen, "stretch"), downsample_screen(screen))
    screen = rng.integers(0, 256, (126, 64, 3), np.uint8)  # rows 3 to 2, columns as they are
    high = screen.astype(float)
    pairs = [(high[0::3] * 2 + high[1::3]) / 3, (high[1::3] + high[2::3] * 2) / 3]
    expected = np.stack(pairs, 1).reshape(84, 64, 3)
    assert np.abs(fit_screen(screen, "stretch") - expected).max() <= 0.5
    white = np.full((400, 600, 3), 255, np.uint8)
    padded = fit_screen(white, "pad")
    assert (padded[20:63] == 255).all() and not padded[:20].any() and not padded[63:].any()
    white[:, :147] = white[:, 452:] = 0  # what a crop to 84:64 leaves out
    assert (fit_screen(white, "crop") == 255).all()
    assert (fit_screen(np.full((10, 10, 3), 7, np.uint8), "stretch") == 7).all()


@pytest.mark.parametrize("size, warns", [(60, False), (6, True)])
def test_what_becomes_smaller_than_a_token_is_warned_of(size, warns, tmp_path, capsys):
    """Of 200x300 padded to 43x64 pixels a token is 19 wide."""
    flags = ["--env", NAME, "--env-arg", f"size={size}", "--frames", "60", "--workers", "1"]
    assert collect_atari.main([*flags, "--out", str(tmp_path)]) == 0
    assert ("thinner than a token, about 1 of 4 pixels" in capsys.readouterr().out) == warns
    config = emulator_config(NAME, env_args=f'{{"size": {size}}}', fit="stretch")
    assert resolution.measure_small_things(config).is_worth_a_warning == warns


def test_a_pole_of_one_pixel_or_none_is_thinner_than_a_pixel():
    found = resolution.measure_small_things(emulator_config("CartPole-v1"))
    assert found.pixels == 0 and "less than 1 of 4 pixels" in str(found)


# The environment in the emulator's place


def test_gymnasiums_own_check_passes_and_actions_are_checked():
    env = make_atari_env(NAME, render_mode="rgb_array")
    check_env(env, skip_render_check=True)
    env.reset(seed=0)
    assert env.render().shape == (200, 300, 3) and env.lives == 0
    with pytest.raises(ValueError, match="integer from 0 to 3"):
        env.step(4)


@pytest.mark.parametrize("pools", [False, True])
def test_a_step_repeats_the_action_and_shows_the_last_screen_or_the_brighter_of_two(pools):
    env = make_atari_env(config=emulator_config(NAME, frameskip=3, max_pool=pools))
    single = make_atari_env(NAME)
    env.reset(seed=5), single.reset(seed=5)
    frame, reward, *_ = env.step(1)
    single.step(1)
    before, last = single.step(1)[0], single.step(1)[0]
    assert reward == 3 and np.array_equal(env.ram, single.ram)
    assert np.array_equal(frame, np.maximum(before, last) if pools else last)


def test_states_are_gone_back_to_and_branches_leave_the_game_alone():
    env = make_atari_env(NAME)
    env.reset(seed=1)
    for action in (1, 2, 3, 1):
        env.step(action)
    state = env.clone_state()
    after = [env.step(action)[0] for action in (1, 1, 3)]
    env.restore_state(state)
    assert np.array_equal(env.step(1)[0], after[0])
    env.restore_state(state)
    branches = list(env.branch(range(4), 3))
    assert len({step.frames[k].tobytes() for step in branches[-1:] for k in range(4)}) >= 3
    assert [np.array_equal(env.step(action)[0], frame)
            for action, frame in zip((1, 1, 3), after, strict=True)] == [True] * 3  # fmt: skip


def test_games_begin_apart_and_are_collected_the_same_again(tmp_path):
    for out in ("a", "b"):
        flags = ["--frames", "300", "--workers", "1", "--out", str(tmp_path / out)]
        assert collect_atari.main(["--env", NAME, *flags]) == 0
    first, second = (load_game_data(tmp_path / out / "atari_game_data.npz") for out in "ab")
    assert np.array_equal(first.frames, second.frames)
    starts = first.frames[np.flatnonzero(np.diff(first.episode_ids, prepend=-1))]
    assert len({frame.tobytes() for frame in starts}) == len(starts) > 3
    assert first.truncated.any() and "ale_py" not in first.meta


def test_what_does_not_repeat_itself_goes_on_in_a_new_game():
    env = make_atari_env(config=emulator_config(NAME, env_args='{"is_seeded": false}'))
    session = PlaySession(env, FakeEngine())
    controllers = Controllers(NAME, ActionMap(env.action_meanings), "human", 0)
    game = PlayGame(session, controllers, PlaySettings(15, Path("clips"), 1))
    for command in ("rewind", "branches"):
        session.step(1)
        session.step(2)
        game.command(command)
        while job := game.urgent_job():
            job[0](*job[1:])
            game.job_done(0.0, 0.1)
        assert "does not repeat itself from its seed: a new game" in session.moment.notice
        assert np.array_equal(session.moment.real_frame, session.moment.dream_frame)  # in step
        assert game.branches is None
    segments = list(record(env.config, policy_mix("random", NAME), 120, 0, workers=1))
    arrays, episodes = join_segments(segments, 0)
    meta = {"emulator": emulator_dict(env.config), "episodes": episodes}
    assert recorded_branches(GameData(**arrays, meta=meta), 4) is None


def test_a_game_without_luck_leaves_out_what_the_other_split_has():
    emulator = emulator_config(NAME, env_args='{"has_start": true, "max_episode_steps": 20}')
    segments = list(record(emulator, policy_mix("held", NAME), 6000, 0, workers=1))
    splits: dict[bytes, set] = {}
    for segment in segments:
        splits.setdefault(segment.content, set()).add(split_of_game(segment.seed))
    assert len(splits) < len(segments) and all(len(found) == 1 for found in splits.values())


@pytest.mark.slow
def test_an_environment_is_trained_played_and_evaluated_as_a_game(
    small_models, tmp_path, capsys, monkeypatch
):
    folder = game_directory(NAME)
    flags = ["--env", NAME, "--actions", "NOOP,RIGHT,UP,DOWN", "--frames", "1200"]
    assert collect_atari.main([*flags, "--workers", "1"]) == 0
    data = folder / "atari_game_data.npz"
    vqvae = train_vqvae(folder, data, "--game", NAME, "--set", "steps=4")
    run = train_world_model(folder, data, vqvae, "--game", NAME, "--set", "steps=2")
    said = capsys.readouterr().out
    package = load_game_data(data).emulator.package
    assert said.count(f"environment: {NAME} of {package}") == 2
    state = checkpoint.load_checkpoint(run / "best.pt", "world_model")
    assert state["emulator"]["package"] == package and "env_args" not in state["emulator"]
    movie, tape, result = tmp_path / "play.gif", tmp_path / "tape.npz", tmp_path / "result.json"
    asked = ["--game", NAME, "--run", run.name, "--device", "cpu"]
    flags = ["--headless", "--keys", "RIGHT*70,UP*5", "--record", movie, "--save-data", tape]
    assert play_atari_hires.main([*asked, *map(str, flags)]) == 0  # on into a second game
    played = load_game_data(tape)
    assert played.emulator == load_game_data(data).emulator and movie.stat().st_size > 1000
    assert len(played.meta["episodes"]) == 2 and not np.array_equal(
        played.frames[0], played.frames[np.flatnonzero(np.diff(played.episode_ids))[0] + 1]
    )
    flags = ["--data", data, "--tier", "canary", "--json", result]
    assert gold_eval.main([*asked, *map(str, flags)]) == 0
    document = json.loads(result.read_text())
    assert {"branches/right_branch_pixels@8", "rollout/psnr@20"} <= document["metrics"].keys()
    assert document["emulator"]["package"] == package
    assert (tmp_path / "result.strip.png").stat().st_size > 100
    monkeypatch.setattr(doctor, "_version", lambda name: "0.0")
    (finding,) = doctor.check_environments()
    assert f"{NAME} of {package}" in finding.text


def test_where_there_is_no_screen_nothing_is_called_an_error():
    code = ("from v2.data.environments import make_environment\n"
            "env = make_environment('Acrobot-v1', '')\n"
            "env.reset()\n"
            "assert env.render().std() > 0")  # fmt: skip
    told = ("DISPLAY", "XDG", "SDL")
    environment = {k: v for k, v in os.environ.items() if not any(name in k for name in told)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True, timeout=100)  # fmt: skip
    assert done.returncode == 0 and "error" not in done.stderr, done.stderr
