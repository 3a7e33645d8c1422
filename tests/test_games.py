"""Every ALE game is collected and played, whatever its name, screen height and actions."""

import json
import re

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import AddRenderObservation, RecordVideo

from tests.fake_engine import FakeEngine
from v2 import play_atari_hires
from v2.data import collect_atari, tokenize_atari
from v2.data.atari_dataset import load_game_data
from v2.data.collector import record
from v2.data.emulator import known_games, make_atari_env
from v2.data.flicker import measure_flicker
from v2.data.frames import downsample_screen
from v2.data.games import EmulatorConfig, game_id
from v2.data.policies import PolicyConfig, make_policy, policy_mix
from v2.play.controllers import Controllers
from v2.play.keys import ActionMap
from v2.play.session import PlaySession
from v2.runtime.run_dir import all_runs
from v2.train import pipeline, train_vqvae_hires


@pytest.mark.parametrize("name, game", [
    ("up_ndown", "up_n_down"), ("UpNDown", "up_n_down"), ("ALE/TicTacToe3D-v5", "tic_tac_toe_3d"),
])  # fmt: skip
def test_a_name_with_a_lone_letter_or_digit_is_understood(name, game):
    assert game_id(name) == game


@pytest.mark.parametrize("name, game", [
    ("BreakoutNoFrameskip-v4", "breakout"), ("ALE/Breakout-ram-v5", "breakout"),
    ("MsPacman-ramDeterministic-v0", "ms_pacman"), ("Up_N_DownNoFrameskip", "up_n_down"),
])  # fmt: skip
def test_an_id_of_the_field_is_refused_with_the_games_name_and_its_settings(name, game):
    told = f"{name}.*did you mean {game}.*frameskip 4, repeat_action_probability 0"
    with pytest.raises(ValueError, match=told):
        game_id(name)


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
    controllers = Controllers(data.emulator.game, ActionMap(env.action_meanings), "human", seed=0)
    moment = session.step(controllers.act(session, inputs=[]))
    assert env.action_meanings[moment.action] == idle and moment.real_frame.shape == (84, 64, 3)


def test_a_game_without_noop_takes_its_first_action_where_nothing_is_pressed():
    checkers = ActionMap(["FIRE", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT"])
    assert checkers.action([]) == checkers.action(["UP"]) == 0
    assert checkers.action(["UP", "LEFT"]) == 2
    assert list(checkers.script("UPLEFT*2,NOOP,FIRE")) == [2, 2, 0, 0]


@pytest.mark.parametrize("names, keys, action", [
    ("NOOP,LEFT,RIGHT,JUMP", [], 0), ("ACTION0,ACTION1,ACTION2", [], 0),
    ("LEFT,OTHER1,OTHER2", [], 0), ("UP,DOWN,PICKUP", ["UP"], 0), ("FIRE,CEASEFIRE", ["FIRE"], 0),
    ("RIGHT,RIGHTLEFT", ["RIGHT"], 0),
])  # fmt: skip
def test_no_key_plays_an_action_with_another_name(names, keys, action):
    actions = ActionMap(names.split(","))
    assert actions.action(keys) == action
    assert actions.inputs(len(actions.meanings) - 1) == frozenset()
    if not keys:
        assert list(actions.script("NOOP*2")) == [0, 0]


def test_the_advice_for_a_game_without_data_records_that_game(ends, tmp_path, monkeypatch):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path)
    for script in (train_vqvae_hires, tokenize_atari):
        said = ends(script.main, ["--game", "freeway"], 2, "collect_atari.py --game freeway")
        assert "--out" not in said
        other = tmp_path / "else" / "a.npz"
        ends(script.main, ["--game", "freeway", "--data", other], 2,
             f"--game freeway --out {other.parent}")  # fmt: skip
        ends(script.main, ["--game", "own-ball"], 2, "import_recordings.py SOURCE --name own-ball")


# The emulator as an environment


@pytest.fixture
def breakout():
    env = make_atari_env("breakout")
    env.reset()
    yield env
    env.close()


@pytest.mark.parametrize(
    "action", [-1, 4, 1.0, True, np.float32(1), np.array([1]), np.True_, "1", None], ids=repr
)
def test_an_action_that_is_no_integer_in_range_is_refused_with_its_value(breakout, action):
    ram = breakout.ram
    with pytest.raises(ValueError, match="integer from 0 to 3 .*RIGHT.*got ") as refused:
        breakout.step(action)
    assert str(refused.value).endswith(repr(action))
    assert np.array_equal(breakout.ram, ram)


@pytest.mark.parametrize("action", [2, np.int64(2), np.uint8(2), np.array(2)], ids=repr)
def test_an_integer_of_any_kind_is_taken(breakout, action):
    other = make_atari_env("breakout")
    other.reset()
    assert np.array_equal(breakout.step(action)[0], other.step(2)[0])
    assert not np.array_equal(breakout.step(action)[0], other.step(3)[0])


def test_settings_and_seeds_are_whole_numbers_of_any_kind(breakout):
    config = EmulatorConfig(frameskip=np.int64(4))
    assert config == EmulatorConfig() and type(config.frameskip) is int
    assert np.array_equal(breakout.reset(seed=np.int64(3))[0], breakout.reset(seed=3)[0])
    for wrong in (4.5, 4.0, 0, True, "4"):
        with pytest.raises(ValueError, match="frameskip must be an integer from 1 to 60, got"):
            EmulatorConfig(frameskip=wrong)
    for wrong in (3.0, -1, True, "3"):
        with pytest.raises(ValueError, match="seed must be an integer"):
            breakout.reset(seed=wrong)


@pytest.mark.parametrize("config", [
    EmulatorConfig(), EmulatorConfig("pong", repeat_action_probability=0.25, max_pool=True),
])  # fmt: skip
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasiums_own_check_finds_nothing_to_warn_of(config, render_mode, recwarn):
    check_env(make_atari_env(config=config, render_mode=render_mode))
    assert [str(warning.message) for warning in recwarn] == []


def test_gymnasium_makes_the_same_environment_again_from_its_spec():
    config = EmulatorConfig("pong", frameskip=2)
    made = make_atari_env(config=config).spec.make(render_mode="rgb_array").unwrapped
    assert made.config == config and made.render_mode == "rgb_array"


def test_rendering_shows_the_screen_that_the_frame_is_made_of():
    env = AddRenderObservation(make_atari_env("breakout", render_mode="rgb_array"), False, "frame")
    seen, _ = env.reset()
    assert seen["frame"].shape == (210, 160, 3)
    seen, *_ = env.step(1)
    assert np.array_equal(downsample_screen(seen["frame"]), seen["state"])
    assert make_atari_env("breakout").render() is None
    with pytest.raises(ValueError, match="rgb_array or human, got 'ansi'"):
        make_atari_env("breakout", render_mode="ansi")


def test_the_emulators_own_window_shows_the_game():
    env = make_atari_env("breakout", render_mode="human")
    assert env.reset()[0].shape == (84, 64, 3) and env.render() is None
    assert env.step(1)[0].shape == (84, 64, 3)
    env.close()


def test_wrappers_of_the_field_take_the_emulator():
    wrappers = pytest.importorskip("stable_baselines3.common.atari_wrappers")
    env = wrappers.EpisodicLifeEnv(wrappers.FireResetEnv(wrappers.NoopResetEnv(
        make_atari_env("breakout")
    )))  # fmt: skip
    env.reset(seed=0)
    while not (over := env.step(0))[2]:
        pass
    assert over[4]["lives"] == 4


def test_gymnasium_records_a_video_in_real_time(tmp_path):
    pytest.importorskip("moviepy")
    env = RecordVideo(make_atari_env("breakout", render_mode="rgb_array"), str(tmp_path / "new"))
    assert env.frames_per_sec == 15
    env.reset()
    env.step(1)
    env.close()
    assert len(list(tmp_path.glob("new/*.mp4"))) == 1


def branches_by_hand(env, num_steps):
    """Return frames (A, K, 84, 64, 3) and memory (A, K, 128) of each action held from here on."""
    state, frames, ram = env.clone_state(), [], []
    for action in range(env.action_space.n):
        env.restore_state(state)
        steps = [(env.step(action)[0], env.ram) for _ in range(num_steps)]
        frames.append([frame for frame, _ in steps])
        ram.append([memory for _, memory in steps])
    env.restore_state(state)
    return np.array(frames), np.array(ram)


def test_branches_are_what_each_held_action_leads_to(breakout):
    for action in [1, 2, 2, 2, 0, 0]:
        breakout.step(action)
    frames, ram = branches_by_hand(breakout, 6)
    steps = list(breakout.branch(range(4), 6))
    assert np.array_equal(np.stack([step.frames for step in steps], 1), frames)
    assert np.array_equal(np.stack([step.ram for step in steps], 1), ram)
    assert len({memory.tobytes() for memory in ram[:, -1]}) >= 3  # in flight FIRE is as NOOP


def test_branches_begin_where_they_were_asked_for_and_leave_the_game_alone(breakout):
    breakout.step(1)
    asked = breakout.branch([3], 2)
    expected, _ = branches_by_hand(breakout, 2)
    breakout.step(2)
    ram = breakout.ram
    assert np.array_equal([step.frames[0] for step in asked], expected[3])
    assert np.array_equal(breakout.ram, ram)


def test_a_branch_whose_game_is_over_repeats_its_last_frame(breakout, monkeypatch):
    is_over = False
    while not is_over:
        state = breakout.clone_state()
        frame, _, is_over, *_ = breakout.step(1)
    breakout.restore_state(state)
    taken, step = [], breakout.step
    monkeypatch.setattr(breakout, "step", lambda action: taken.append(action) or step(action))
    steps = list(breakout.branch([1], 4))
    assert all(np.array_equal(step.frames[0], frame) for step in steps)
    assert taken == [1]


def test_a_state_without_its_generator_goes_on_with_other_luck():
    env = make_atari_env(config=EmulatorConfig(repeat_action_probability=0.5))
    env.reset(seed=0)

    def futures(include_rng):
        state, found = env.clone_state(include_rng), []
        for _ in range(5):
            env.restore_state(state)
            for step in range(12):
                env.step(2 + step % 2)
            found.append(env.ram.tobytes())
        return len(set(found[1:]))  # before the first another action came, which may repeat

    assert futures(include_rng=True) == 1 < futures(include_rng=False)


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


# What needs no knowledge of the game


@pytest.mark.parametrize("game, blinks", [
    ("asteroids", True), ("frogger", True), ("yars_revenge", True), ("solaris", True),
    ("breakout", False), ("pong", False), ("freeway", False), ("turmoil", False),
])  # fmt: skip
def test_objects_that_blink_are_found_and_those_that_only_move_are_not(game, blinks):
    found = measure_flicker(EmulatorConfig(game))
    assert found.is_worth_pooling == blinks
    assert (found.screens > 0.3) if blinks else (found.screens < 0.02)


@pytest.mark.parametrize("flags, pools", [
    ([], True), (["--max-pool"], True), (["--no-max-pool"], False),
])  # fmt: skip
def test_collecting_takes_the_setting_that_shows_what_blinks_and_a_flag_wins(
    flags, pools, tmp_path, capsys
):
    flags = [*flags, "--frames", "60", "--workers", "1", "--out", str(tmp_path)]
    assert collect_atari.main(["--game", "asteroids", *flags]) == 0
    assert load_game_data(tmp_path / "atari_game_data.npz").emulator.max_pool == pools
    said = capsys.readouterr().out
    assert ("asteroids: objects blink in 100% of the screens" in said) == (len(flags) == 6)


def test_curiosity_tries_every_key_and_then_takes_the_one_to_what_was_seen_least():
    names = ["NOOP", "UP", "DOWN", "LEFT", "RIGHT", "FIRE"]
    policy = make_policy(PolicyConfig("curious", 1.0, "curious"), "freeway", names,
                         np.random.default_rng(0))  # fmt: skip
    dark, bright = np.zeros((84, 64, 3), np.uint8), np.full((84, 64, 3), 255, np.uint8)
    frame, tried = dark, []
    while len(tried) < 20:
        is_new = policy.steps_left == 0
        action = policy.act(np.zeros(128), frame)
        if is_new and frame is dark:
            tried.append(action)
        if policy.steps_left == 0:  # one key leads to another place, and from there all lead back
            frame = bright if action == 3 and frame is dark else dark
    assert sorted(tried[:6]) == [0, 1, 2, 3, 4, 5] and tried[6:] == [3] * 14


def test_an_unknown_games_mix_holds_keys_for_long_and_is_curious(tmp_path):
    mix = policy_mix("mix", "freeway")
    assert {config.name for config in mix} == {"sticky", "held", "curious", "random"}
    longest = {}
    for segment in record(EmulatorConfig("freeway"), mix, 1600, 0, workers=1):
        changes = np.flatnonzero(np.diff(segment.actions, prepend=255, append=255))
        longest[segment.policy] = max(longest.get(segment.policy, 0), np.diff(changes).max())
    assert longest["held"] > 30 > longest["random"]


@pytest.mark.slow
def test_make_train_brings_a_game_that_no_file_names_to_a_playable_dream(tmp_path, capfd):
    """The smoke preset as people run it, with models of the real size."""
    assert pipeline.main(["--game", "freeway", "--preset", "smoke", "--out", str(tmp_path)]) == 0
    said = capfd.readouterr().out
    assert "freeway: objects blink in 0% of the screens" in said
    assert re.search(r"\d+ active cells hold \d+\.\d\d% of the changed tokens", said)
    run = all_runs(tmp_path)[-1]
    document = json.loads((run / "held_out.json").read_text())
    assert {"branches/right_branch_pixels@8", "rollout/changed_accuracy@10",
            "tokenizer/worst_patch_psnr"} <= document["metrics"].keys()  # fmt: skip
    assert (run / "held_out.md").exists() and (run / "held_out.strip.png").exists()
    movie = tmp_path / "play.gif"
    flags = ["--headless", "--steps", "8", "--record", str(movie)]
    assert play_atari_hires.main(["--game", "freeway", "--checkpoint", str(run), *flags]) == 0
    assert movie.stat().st_size > 1000
