"""The dream as Gymnasium knows environments, one and many, with a small model of random weights."""

import copy
import multiprocessing
import pickle
import signal

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers import FrameStackObservation, RecordVideo, TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from tests.test_world_model import _model
from v2.agents.dreams import Dreams
from v2.data import build_starts
from v2.data.atari_dataset import GOLD_SEED_START, make_atari_env
from v2.data.collect_atari import MAX_SEED
from v2.data.collector import SEEDS_PER_RUN
from v2.data.dream_starts import FIELDS, STARTS_SEED, load_starts, starts_path
from v2.data.frames import frames_to_float, grey_frames
from v2.data.games import EmulatorConfig, emulator_dict
from v2.data.npz import read_meta, read_npz, write_npz
from v2.data.policies import CLUMSY
from v2.dream import DreamEngine
from v2.dream_env import DreamAtariEnv, DreamAtariVectorEnv
from v2.models.weights import tokenizer_sha256
from v2.runtime import checkpoint

ID = "v2.dream_env:DreamAtari-v0"


@pytest.fixture
def vqvae(vqvae):
    """A small tokenizer whose codes tell real frames apart."""
    frames = load_starts("breakout").histories(np.arange(0, 96, 8))[0].reshape(-1, 84, 64, 3)
    with torch.inference_mode():
        latents = vqvae.encoder(frames_to_float(torch.from_numpy(frames)))
        vqvae.quantizer.initialise(latents, torch.Generator().manual_seed(0))
    return vqvae


@pytest.fixture
def weights(vqvae, tmp_path) -> str:
    """The file of a small world model of Breakout."""
    checkpoint.save_checkpoint(tmp_path / "vqvae.pt", "vqvae", vqvae)
    checkpoint.save_checkpoint(
        tmp_path / "best.pt", "world_model", _model(num_cells=96, has_age=True),
        vqvae_sha256=tokenizer_sha256(vqvae), emulator=emulator_dict(EmulatorConfig()),
    )  # fmt: skip
    return str(tmp_path / "best.pt")


@pytest.fixture
def dreams(vqvae):
    """Make dreams in memory."""
    model = _model(num_cells=96, has_age=True)

    def make(num_dreams: int = 1, game: str = "breakout", **flags) -> Dreams:
        return Dreams(DreamEngine(vqvae, model), load_starts(game), num_dreams, **flags)

    return make


def _played(env, seed, num_steps=12):
    """Return all that an environment gives, from a reset on."""
    found = [env.reset(seed=seed)]
    for k in range(num_steps):
        found.append(env.step(k % 4))
        if found[-1][2] or found[-1][3]:
            found.append(env.reset())
    return found


def _equal(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(np.array_equal(one, other))


# The starts


@pytest.mark.parametrize("game", ["breakout", "pong"])
def test_starts_are_of_games_that_no_training_and_no_gold_set_has(game):
    starts = load_starts(game)
    assert (starts.seeds >= STARTS_SEED).all()
    assert STARTS_SEED > GOLD_SEED_START + 10_000_000 > (MAX_SEED + 1) * SEEDS_PER_RUN
    assert {phase: len(starts.of_phase(phase)) for phase in build_starts.NUM_STARTS} == (
        build_starts.NUM_STARTS
    )
    assert starts_path(game).stat().st_size < 150_000


@pytest.mark.parametrize("game, start", [("breakout", 1), ("breakout", 30), ("pong", 40)])
def test_a_start_is_reached_again_in_the_emulator_by_its_actions(game, start):
    starts, env = load_starts(game), make_atari_env(game)
    seen = [env.reset()[0]] + [env.step(int(action))[0] for action in starts.replays[start]]
    frames, actions = starts.histories(np.array([start]))
    assert np.array_equal(frames[0], seen[-4:])
    assert np.array_equal(actions[0], starts.replays[start][-3:])
    assert game == "pong" or starts.lives[start] == env.ale.lives()


def test_equal_flags_build_equal_starts_and_too_few_of_a_phase_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(build_starts, "GAMES", {"breakout": ((CLUMSY, 1),), "pong": ()})
    monkeypatch.setattr(build_starts, "MAX_GAME_STEPS", 120)
    monkeypatch.setattr(build_starts, "NUM_STARTS", {"middle": 4})
    for name in ("a.npz", "b.npz"):
        assert build_starts.main(["--out", str(tmp_path / name)]) == 0
    one, other = (load_starts("breakout", tmp_path / name) for name in ("a.npz", "b.npz"))
    assert np.array_equal(one.frames, other.frames) and len(one) == 4
    assert read_meta(tmp_path / "a.npz")["emulator"]["game"] == "breakout"
    monkeypatch.setattr(build_starts, "NUM_STARTS", {"late": 1})
    with pytest.raises(ValueError, match="0 starts of phase late, not 1"):
        build_starts.main(["--out", str(tmp_path / "c.npz")])


def test_starts_of_another_version_are_refused(tmp_path):
    arrays, meta = read_npz(starts_path("breakout"), FIELDS)
    arrays |= read_npz(starts_path("breakout"), {"replayed": (np.uint8, ())})[0]
    write_npz(tmp_path / "a.npz", arrays, meta | {"emulator": {"game": "breakout", "speed": 2}})
    with pytest.raises(ValueError, match="a.npz: emulator settings of another version"):
        load_starts("breakout", tmp_path / "a.npz")


# One dream


def test_checkers_find_nothing_to_warn_of(weights, recwarn):
    env = gymnasium.make(ID, weights=weights, max_episode_steps=20, render_mode="rgb_array")
    check_env(env.unwrapped)
    stable_baselines3 = pytest.importorskip("stable_baselines3.common.env_checker")
    stable_baselines3.check_env(env)
    assert [str(warning.message) for warning in recwarn] == []


def test_a_seed_repeats_a_dream_and_another_begins_elsewhere(weights):
    env = gymnasium.make(ID, weights=weights, temperature=1.0)
    first = _played(env, 3)
    assert _equal(_played(env, 3), first) and not _equal(_played(env, 4), first)
    assert len({env.reset(seed=k)[1]["start"] for k in range(20)}) > 10


def test_the_first_frame_is_the_start_and_the_info_says_which(dreams):
    env = DreamAtariEnv(dreams=dreams())
    seen, info = env.reset(seed=0, options={"phase": "late"})
    starts = env.dreams.starts
    frames, actions = starts.histories(np.array([info["start"]]))
    assert np.array_equal(env.dreams.engine.reset(frames[0], actions[0]), seen)
    assert info["start_phase"] == "late" and info["start_seed"] == starts.seeds[info["start"]]
    assert info["dream_steps"] == 0 and "lives" in info
    env.reset(options={"start": 7})
    assert env.step(1)[4]["start"] == 7 and env.step(1)[4]["dream_steps"] == 2


def test_a_recording_gives_starts(data_path, weights):
    env = gymnasium.make(ID, weights=weights, starts=str(data_path))
    seen, info = env.reset(seed=1)
    assert info["start_phase"] == "recorded" and 0 <= info["start_seed"] < 20
    assert env.unwrapped.dreams.starts.histories(np.array([5]))[0].shape == (1, 4, 84, 64, 3)
    assert _equal(pickle.loads(pickle.dumps(env)).reset(seed=1)[0], seen)


def test_copies_and_pickles_go_on_alike_and_apart(weights):
    env = gymnasium.make(ID, weights=weights, temperature=1.0)
    env.reset(seed=5)
    env.step(1)
    copied, pickled = copy.deepcopy(env), pickle.loads(pickle.dumps(env))
    assert copied.unwrapped.dreams.engine.world_model is env.unwrapped.dreams.engine.world_model
    runs = [[each.step(k % 4) for k in range(5)] for each in (env, copied, pickled)]
    assert _equal(runs[0], runs[1]) and _equal(runs[0], runs[2])


def test_a_copy_of_one_that_has_a_window_has_none(dreams):
    env = DreamAtariEnv(dreams=dreams(), render_mode="human")
    env.reset(seed=1)
    made = copy.deepcopy(env)
    assert made._window is None and env._window is not None
    env.close()


def test_usual_wrappers_work(weights, tmp_path):
    env = gymnasium.make(ID, weights=weights, render_mode="rgb_array")
    stacked = FrameStackObservation(TimeLimit(env, 3), 4)
    assert stacked.reset(seed=0)[0].shape == (4, 84, 64, 3)
    assert [stacked.step(1)[3] for _ in range(3)] == [False, False, True]
    pytest.importorskip("moviepy")
    video = RecordVideo(env, str(tmp_path / "video"))
    video.reset(seed=0)
    video.step(1)
    video.close()
    assert len(list(tmp_path.glob("video/*.mp4"))) == 1


def test_a_window_shows_the_dream(dreams):
    import pygame

    env = DreamAtariEnv(dreams=dreams(), render_mode="human")
    env.reset(seed=0)
    env.step(1)
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    assert np.array_equal(shown[::4, ::4], env.dreams.frames()[0]) and env.render() is None
    env.close()
    assert not pygame.display.get_init()


def test_tokens_are_observed_without_decoding_a_frame(dreams, monkeypatch):
    monkeypatch.setattr(DreamEngine, "decode", None)
    env = DreamAtariEnv(dreams=dreams(observation="tokens"))
    seen, info = env.reset(seed=0)
    assert env.observation_space.contains(seen) and seen.shape == (21, 16) and "lives" not in info
    assert np.array_equal(env.step(2)[0], env.dreams.engine.tokens[0])


def test_what_is_seen_or_rendered_is_decoded_once(dreams, monkeypatch):
    decoded, decode = [], DreamEngine.decode
    monkeypatch.setattr(
        DreamEngine, "decode", lambda self, t: decoded.append(len(t)) or decode(self, t)
    )
    envs = DreamAtariVectorEnv(dreams=dreams(3, observation="grey"), max_episode_steps=2,
                               render_mode="rgb_array")  # fmt: skip
    seen, _ = envs.reset(seed=0)
    assert np.array_equal(seen, grey_frames(np.stack([f[::4, ::4] for f in envs.render()])))
    envs.step(np.zeros(3, int))
    assert decoded == [3, 3]
    envs.step(np.zeros(3, int))
    assert decoded == [3, 3, 3, 3]  # the last frames, and the first of the next episodes


@pytest.mark.parametrize("flags, told", [
    ({"game": "BreakoutNoFrameskip-v4"}, "did you mean breakout.*frameskip 4"),
    ({"game": "seaquest"}, "no starts of seaquest.*starts=FILE"),
    ({"game": "pong"}, "dreams of breakout, not pong"),
    ({"weights": "no/such"}, "no run or checkpoint 'no/such'"),
    ({"observation": "ram"}, "rgb or grey or tokens, got 'ram'"),
    ({"device": "abacus"}, "no device 'abacus'"),
    ({"render_mode": "ansi"}, "got 'ansi'"),
    ({"starts": "nothing.npz"}, "nothing.npz"),
    ({"observation": "tokens", "episodic_life": True}, "lives that can be read"),
])  # fmt: skip
@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
def test_bad_input_is_refused_with_its_value(make, flags, told, weights):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        make(ID, **{"weights": weights} | flags)


def test_misuse_is_refused_as_gymnasium_does(dreams):
    env = DreamAtariEnv(dreams=dreams())
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)
    with pytest.raises(gymnasium.error.Error, match="eed must be .*integer"):
        env.reset(seed="one")
    for options in ({"start": 96}, {"phase": "early"}, {"level": 1}):
        with pytest.raises(ValueError, match="start|phase|level"):
            env.reset(options=options)
    env.reset(seed=0)
    for action in (4, -1, 1.5, "1", None):
        with pytest.raises(ValueError, match=r"Discrete\(4\), got "):
            env.step(action)
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.step(0)


def test_a_game_that_is_over_must_be_reset(dreams, monkeypatch):
    env = DreamAtariEnv(dreams=dreams())
    env.reset(seed=0)
    _ends(env.dreams, [True], monkeypatch)
    assert env.step(0)[2]
    with pytest.raises(ResetNeeded):
        env.step(0)


def _ends(dreams: Dreams, is_over: list[bool], monkeypatch) -> None:
    """Let the dreamed games pay, and be over, or not, after each step."""
    step = dreams.engine.step_tokens

    def over(actions):
        step(actions)
        dreams.engine.last_terminated = np.array(is_over, float)
        dreams.engine.last_reward = np.ones(len(is_over))

    monkeypatch.setattr(dreams.engine, "step_tokens", over)


def test_a_life_counts_as_lost_when_two_frames_show_it(dreams, monkeypatch):
    env = DreamAtariEnv(dreams=dreams(episodic_life=True))
    shown = iter([5, 4, 5, -1, 4, 4])
    monkeypatch.setattr("v2.agents.dreams.detector.read_lives", lambda *_: np.array([next(shown)]))
    _ends(env.dreams, [False], monkeypatch)
    assert env.reset(seed=0)[1]["lives"] == 5
    steps = [env.step(0) for _ in range(5)]
    assert [step[4]["lives"] for step in steps] == [5, 5, 5, 5, 4]
    assert [step[2] for step in steps] == [False] * 4 + [True]


# Many dreams


def test_a_batch_is_made_by_gymnasium_and_equals_single_dreams(weights):
    envs = gymnasium.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point",
                              weights=weights, max_episode_steps=9)  # fmt: skip
    assert isinstance(envs, DreamAtariVectorEnv)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    seen, _ = envs.reset(seed=10)
    one = gymnasium.make(ID, weights=weights)
    assert np.array_equal(one.reset(seed=12)[0], seen[2])
    for k in range(8):
        seen, rewards, terminated, truncated, info = envs.step(np.array([0, 1, k % 4]))
        single = one.step(k % 4)
        assert np.array_equal(single[0], seen[2]) and single[1] == rewards[2]
        assert not truncated.any() and info["dream_steps"].tolist() == [k + 1] * 3
    assert envs.observation_space.contains(seen) and rewards.dtype == np.float64
    assert envs.step(np.zeros(3, int))[3].all()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_each_mode_of_autoreset_does_what_gymnasium_says(mode, dreams, monkeypatch):
    for name in (mode.name, mode.value):
        assert DreamAtariVectorEnv(dreams=dreams(), autoreset_mode=name).autoreset_mode == mode
    envs = DreamAtariVectorEnv(dreams=dreams(2), autoreset_mode=mode)
    envs.reset(seed=0)
    _ends(envs.dreams, [False, True], monkeypatch)
    seen, _, terminated, _, info = envs.step([0, 0])
    assert terminated.tolist() == [False, True]
    if mode == AutoresetMode.SAME_STEP:
        assert info["dream_steps"].tolist() == [1, 0]
        assert info["final_info"]["dream_steps"][1] == 1
        assert info["final_obs"][0] is None and info["_final_obs"].tolist() == [False, True]
        assert not np.array_equal(info["final_obs"][1], seen[1])
        return
    assert info["dream_steps"].tolist() == [1, 1] and "final_obs" not in info
    if mode == AutoresetMode.NEXT_STEP:
        _, rewards, terminated, _, info = envs.step([0, 0])
        assert not terminated.any() and rewards.tolist() == [1, 0]
        assert info["dream_steps"].tolist() == [2, 0]
        return
    with pytest.raises(ResetNeeded, match=r"dreams \[1\] are over"):
        envs.step([0, 0])
    seen_again, info = envs.reset(options={"reset_mask": np.array([False, True])})
    assert info["dream_steps"].tolist() == [1, 0] and np.array_equal(seen_again[0], seen[0])
    envs.step([0, 0])


def test_only_what_is_reset_is_seeded_and_none_keeps_its_luck(dreams):
    envs, others = (DreamAtariVectorEnv(dreams=dreams(2)) for _ in range(2))
    for each in (envs, others):
        each.reset(seed=0)
    envs.reset(seed=7, options={"reset_mask": np.array([False, True])})
    others.reset(seed=[None, 8])
    picks = [each.reset()[1]["start"].tolist() for each in (envs, others)]
    untouched, single = (DreamAtariVectorEnv(dreams=dreams(n)) for n in (2, 1))
    untouched.reset(seed=0)
    first = untouched.reset()[1]["start"]
    single.reset(seed=8)
    assert picks[0] == [first[0], single.reset()[1]["start"][0]]
    assert picks[1][1] == picks[0][1] and first[0] != first[1]


def test_a_first_reset_that_is_refused_leaves_nothing(dreams):
    envs = DreamAtariVectorEnv(dreams=dreams(2))
    with pytest.raises(ValueError, match="no start of phase 'early'"):
        envs.reset(options={"phase": "early"})
    with pytest.raises(ResetNeeded):
        envs.step([0, 0])
    with pytest.raises(ResetNeeded):
        envs.reset(options={"reset_mask": np.array([False, True])})
    assert envs.reset(seed=1)[1]["dream_steps"].tolist() == [0, 0]


def test_weights_and_starts_of_other_settings_are_refused(dreams, vqvae):
    engine = dreams().engine
    engine.info = {"emulator": emulator_dict(EmulatorConfig(max_pool=True))}
    with pytest.raises(ValueError, match="trained with max_pool True, not False as in .*starts="):
        Dreams(engine, load_starts("breakout"), 1)


def test_a_batch_is_counted_by_gymnasiums_own_wrapper(dreams):
    envs = RecordEpisodeStatistics(DreamAtariVectorEnv(dreams=dreams(2), max_episode_steps=3))
    envs.reset(seed=0)
    *_, info = [envs.step([0, 1]) for _ in range(3)][-1]
    assert info["episode"]["l"].tolist() == [3, 3]


def test_misuse_of_a_batch_is_refused_as_gymnasium_does(dreams):
    envs = DreamAtariVectorEnv(dreams=dreams(2))
    with pytest.raises(ResetNeeded):
        envs.step([0, 0])
    for seed in ("one", 1.5, [1], [1, "two"]):
        with pytest.raises((gymnasium.error.Error, ValueError), match="eed"):
            envs.reset(seed=seed)
    envs.reset(seed=[1, 2])
    for actions in ([0], [0, 4], 0, [0.5, 1], None):
        with pytest.raises(ValueError, match="action must be in MultiDiscrete"):
            envs.step(actions)
    with pytest.raises(ValueError, match="reset_mask must be 2 booleans"):
        envs.reset(options={"reset_mask": [True, False]})
    envs.close()
    with pytest.raises(ClosedEnvironmentError):
        envs.step([0, 0])


def test_a_forked_process_goes_on_with_an_environment_that_it_inherits(weights):
    env = gymnasium.make(ID, weights=weights)
    env.reset(seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.ones(1000, 1000).exp().sum() > 0
        process = multiprocessing.get_context("fork").Process(target=env.step, args=(0,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
        torch.set_num_threads(before)


def test_two_processes_of_gymnasiums_dream_the_same_as_this_one(weights):
    """Also where this process has computed with several threads, of which forks have none."""
    make = lambda: gymnasium.make(ID, weights=weights)  # noqa: E731
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    signal.alarm(100)  # ends a test that waits for ever
    try:
        assert torch.ones(1000, 1000).exp().sum() > 0
        batch = DreamAtariVectorEnv(2, weights=weights)
        envs = AsyncVectorEnv([make, make], autoreset_mode=AutoresetMode.SAME_STEP)
        assert np.array_equal(envs.reset(seed=4)[0], batch.reset(seed=4)[0])
        actions = np.array([2, 3])
        assert np.array_equal(envs.step(actions)[0], batch.step(actions)[0])
        envs.close()
    finally:
        signal.alarm(0)
        torch.set_num_threads(before)
