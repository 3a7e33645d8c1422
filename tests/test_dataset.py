"""Recorded games: collecting, the file and its shards, splits, windows and events."""

import resource
import shutil
import tracemalloc

import numpy as np
import pytest
import torch

from tests.conftest import synthetic_frame, synthetic_step
from v2.data import collect_atari, collector
from v2.data.atari_dataset import (
    ARRAY_FIELDS,
    GOLD_SEED_START,
    load_game_data,
    save_game_data,
    split_of_game,
    window_starts,
)
from v2.data.collector import (
    SEEDS_PER_POLICY,
    SEEDS_PER_RUN,
    GameJob,
    join_segments,
    record,
    record_game,
)
from v2.data.emulator import make_atari_env
from v2.data.frames import downsample_screen
from v2.data.games import EmulatorConfig, game_id
from v2.data.npz import read_rows
from v2.data.policies import REWIND, SCRIPTED, STICKY, policy_mix
from v2.data.recordings import data_paths
from v2.data.tokens import tokenize
from v2.data.validation import array_sha256
from v2.eval.objects import detector
from v2.play.tape import HUMAN_SEED_START
from v2.train.sampling import event_chances, event_steps


def _hashes(segments):
    return [array_sha256(segment.frames) for segment in segments]


@pytest.mark.parametrize("name", ["Breakout", "breakout", "ALE/Breakout-v5"])
def test_a_game_has_one_name_in_any_spelling(name):
    assert game_id(name) == "breakout"


def test_a_misspelt_game_is_refused_with_a_hint():
    with pytest.raises(ValueError, match="'Breakot'.*breakout"):
        game_id("Breakot")


@pytest.mark.parametrize("game, least_actions", [("breakout", 4), ("pong", 6), ("seaquest", 18)])
def test_games_give_frames_and_their_own_actions(game, least_actions):
    env = make_atari_env(game)
    frame, _ = env.reset()
    assert frame.shape == (84, 64, 3) and frame.dtype == np.uint8
    assert len(env.action_meanings) == least_actions
    frame, reward, *_ = env.step(least_actions - 1)
    assert env.observation_space.contains(frame)


def test_max_pooling_takes_the_brighter_of_the_last_two_screens():
    pooled = make_atari_env(config=EmulatorConfig("space_invaders", max_pool=True))
    single = make_atari_env(config=EmulatorConfig("space_invaders", frameskip=1))
    pooled.reset(), single.reset()
    num_brighter = 0
    for step in range(60):
        frame = pooled.step(step % 6)[0]
        for _ in range(4):
            before = single.unwrapped.ale.getScreenRGB()
            single.step(step % 6)
        last = single.unwrapped.ale.getScreenRGB()
        assert np.array_equal(frame, downsample_screen(np.maximum(before, last)))
        num_brighter += (before > last).any()
    assert num_brighter


def test_actions_lie_beside_the_frame_they_were_taken_at(monkeypatch, tmp_path):
    class Synthetic:
        """Shows its position and its last action; the policy sees the position in ram[0]."""

        action_meanings = ["NOOP", "FIRE", "RIGHT", "LEFT"]
        lives = 1

        def reset(self, seed=None):
            self.position, self.last, self.steps = 0, 0, 0
            return self._frame(), {}

        @property
        def ram(self):
            return np.full(128, self.position, np.uint8)

        def step(self, action):
            self.position, self.last = synthetic_step(self.position, action), action
            self.steps += 1
            return self._frame(), float(action == 2), self.steps == 40, False, {}

        def _frame(self):
            return synthetic_frame(self.position, self.last)

    monkeypatch.setattr(collector, "_env", lambda emulator: Synthetic())
    flags = ["--frames", "123", "--policy", "random", "--workers", "1", "--out", str(tmp_path)]
    assert collect_atari.main(flags) == 0
    data = load_game_data(tmp_path / "atari_game_data.npz")
    assert np.bincount(data.episode_ids).tolist() == [41, 41, 41]
    assert data.terminated.tolist() == 3 * (39 * [False] + [True, False])
    assert data.has_action.tolist() == 3 * (40 * [True] + [False])
    assert len(set(data.actions[:40])) == 4 and not data.rewards[~data.has_action].any()
    for t in np.flatnonzero(data.has_action):
        action, position = data.actions[t], data.ram[t, 0]
        following = synthetic_frame(synthetic_step(position, action), action)
        assert (data.frames[t + 1] == following).all()
        assert data.rewards[t] == (action == 2)


def test_windows_never_cross_an_episode(game_data):
    ids = game_data.episode_ids
    starts = window_starts(ids, 9)
    assert len(starts) == 20 * (30 - 8)
    assert all(len(set(ids[t : t + 9])) == 1 for t in starts)


def test_windows_longer_than_every_episode_are_refused(game_data):
    with pytest.raises(ValueError, match="shorter than the 31 frames"):
        window_starts(game_data.episode_ids, 31)


def test_equal_arguments_give_equal_arrays_whatever_the_workers():
    mix = policy_mix("mix", "breakout")
    one = list(record(EmulatorConfig(), mix, 1500, 0, workers=1))
    two = list(record(EmulatorConfig(), mix, 1500, 0, workers=2))
    assert _hashes(one) == _hashes(two)
    assert sum(len(segment) for segment in one) == 1500


def test_no_episode_stands_twice_and_splits_share_no_seed():
    mix = policy_mix("mix", "breakout")
    segments = list(record(EmulatorConfig(), mix, 1500, 0, workers=1))
    segments += list(record(EmulatorConfig(), mix, 800, GOLD_SEED_START, workers=1))
    hashes = _hashes(segments)
    assert len(set(hashes)) == len(hashes)
    assert {split_of_game(segment.seed) for segment in segments} == {"train", "val", "gold"}
    owners = {segment.seed: segment.policy for segment in segments}  # a game is of one policy
    assert all(owners[segment.seed] == segment.policy for segment in segments)
    assert len(mix) * SEEDS_PER_POLICY <= SEEDS_PER_RUN  # and of one run
    assert (collect_atari.MAX_SEED + 1) * SEEDS_PER_RUN <= HUMAN_SEED_START <= GOLD_SEED_START


def test_a_rewind_begins_an_episode_of_the_same_game_without_a_lost_life_inside():
    rewind = policy_mix("rewind", "breakout")
    segments = list(record(EmulatorConfig(), rewind, 2500, 0, workers=1))
    games = {}
    for segment in segments:
        games.setdefault(segment.seed, []).append(segment)
    assert max(len(parts) for parts in games.values()) > 1
    for parts in games.values():
        lives = np.concatenate([part.ram[:-1, 57] for part in parts])
        assert len(set(lives.tolist())) == 1  # the life lost stands only in a last frame


def test_rewinding_leads_to_few_bricks_and_a_second_wall_and_repeats_nothing():
    """A ball beyond reach is rewound ever further; a board where nothing happens costs a life."""
    segments = record_game(GameJob(EmulatorConfig(), REWIND, 2_000_003, 6000))
    hashes = _hashes(segments)
    assert len(set(hashes)) == len(hashes)
    walls = [detector.read_ram("breakout", s.ram).bricks.sum((1, 2)).astype(int) for s in segments]
    assert min(wall.min() for wall in walls) == 0
    assert any((np.diff(wall) > 100).any() for wall in walls)
    assert np.median([len(segment) for segment in segments]) > 30


def test_scripted_beats_random():
    def mean_score(policy):
        jobs = [GameJob(EmulatorConfig(), policy, seed, 600) for seed in range(3)]
        return np.mean([sum(s.rewards.sum() for s in record_game(job)) for job in jobs])

    assert mean_score(SCRIPTED) > mean_score(STICKY) + 5


def test_a_data_file_comes_back_unchanged(game_data, tmp_path):
    path = tmp_path / "ä b" / "atari_game_data.npz"
    save_game_data(path, game_data)
    loaded = load_game_data(path)
    for name, array in game_data.arrays().items():
        assert np.array_equal(array, loaded.arrays()[name]), name


@pytest.mark.parametrize("name", ["atari_game_data", "breakout[v2]", "a?[!*]"])
def test_shards_load_as_one(name, game_data, tmp_path):
    """Whatever signs of a pattern are in their name, and nobody else's are taken for them."""
    half = 300
    (tmp_path / "breakoutv-00002.npz").touch()
    for index, rows in enumerate((slice(0, half), slice(half, None))):
        arrays = {name: array[rows] for name, array in game_data.arrays().items()}
        ids = set(arrays["episode_ids"].tolist())
        episodes = [e for e in game_data.meta["episodes"] if e["id"] in ids]
        part = type(game_data)(**arrays, meta=game_data.meta | {"episodes": episodes})
        save_game_data(tmp_path / f"{name}-{index:05d}.npz", part)
    loaded = load_game_data(tmp_path / f"{name}.npz")
    assert np.array_equal(loaded.frames, game_data.frames)
    assert len(loaded.meta["episodes"]) == 20 and len(loaded.rows_of("val")) == 60
    rows = np.array([0, 7, 299, 300, 599])
    parts, first = [], 0
    for path in data_paths(tmp_path / f"{name}.npz"):
        part, length = read_rows(path, "frames", *ARRAY_FIELDS["frames"], rows, first)
        parts, first = [*parts, part], first + length
    assert np.array_equal(np.concatenate(parts), game_data.frames[rows])


def test_a_recording_is_read_without_holding_its_pixels(game_data, vqvae, tmp_path):
    path = tmp_path / "atari_game_data.npz"
    save_game_data(path, game_data)
    for read in (load_game_data, lambda path: tokenize(path, vqvae, torch.device("cpu"), 64)):
        tracemalloc.start()
        read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.6 * game_data.frames.nbytes, read
    assert isinstance(load_game_data(path).frames, np.memmap)


def test_a_full_disk_is_named_when_a_recording_is_unpacked(game_data, tmp_path, monkeypatch):
    save_game_data(tmp_path / "atari_game_data.npz", game_data)
    usage = shutil.disk_usage(tmp_path)._replace(free=9_000_000)  # 600 frames take 9.8 MB
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="600 frames of .* takes 0.0 GB, and .* has 0.0 GB left"):
        load_game_data(tmp_path / "atari_game_data.npz")


def test_a_disk_that_fills_while_a_recording_is_unpacked_is_named(game_data, tmp_path):
    save_game_data(tmp_path / "atari_game_data.npz", game_data)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
    try:
        with pytest.raises(OSError, match="600 frames of .*data.npz takes .* GB left: make room"):
            load_game_data(tmp_path / "atari_game_data.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_collected_frames_move_into_the_data_file():
    segments = list(record(EmulatorConfig(), policy_mix("sticky", "breakout"), 300, 0, workers=1))
    kept = join_segments(segments, 0)[0]
    moved = join_segments(segments, 0, is_last_use=True)[0]
    assert all(np.array_equal(kept[name], moved[name]) for name in kept)
    assert not any(len(segment.frames) for segment in segments)


def test_an_action_of_another_game_is_refused(game_data, tmp_path):
    game_data.actions[5] = 9
    save_game_data(tmp_path / "atari_game_data.npz", game_data)
    with pytest.raises(ValueError, match="action 9 of a game with 4 actions"):
        load_game_data(tmp_path / "atari_game_data.npz")


def test_events_are_what_motion_does_not_announce():
    """A block moves along a row and turns once; a far cell changes once; one step has a reward."""
    tokens = np.zeros((400, 21, 16), np.uint8)
    places = [t % 16 for t in range(400)]
    places[100:] = [(places[100] - t) % 16 for t in range(300)]  # it turns at 100
    for t, place in enumerate(places):
        tokens[t, 1, place] = 3
        tokens[t, 10, 8] = 5 * (t == 244)  # another flickers
    tokens[205:, 15, 8] = 4
    rewards, terminated = np.zeros(400, np.float32), np.zeros(400, bool)
    rewards[9] = 1
    terminated[389] = True
    events = event_steps(tokens.reshape(400, -1), rewards, terminated, (21, 16), max_rate=0.2)
    wraps = {t + k for t in range(399) if abs(places[t + 1] - places[t]) > 1 for k in range(-1, 3)}
    found = [t for t in range(3, 399) if events[t] and t not in wraps]
    assert found == [9, 100, 101, 204, 243, 389]


def test_windows_with_an_event_get_their_share_of_the_draws():
    events = np.zeros(1000, bool)
    ends = events.copy()
    events[500] = events[700] = ends[700] = True
    starts = np.arange(900)
    chances = event_chances(events, ends, starts, history=4, steps=5, share=0.4)
    favoured = np.flatnonzero(chances > chances.min())
    with_event, with_end = list(range(493, 498)), list(range(693, 698))
    assert favoured.tolist() == with_event + with_end  # 500 is one of the five predicted steps
    assert chances.sum() == pytest.approx(1)
    assert chances[with_event].sum() == pytest.approx(0.4 * 0.9 / 2 + 0.6 * 5 / 900)
    assert chances[with_end].sum() == pytest.approx(0.4 * (0.9 / 2 + 0.1) + 0.6 * 5 / 900)
    assert event_chances(events, ends, starts, 4, 5, share=0.0) is None
    never = np.zeros(1000, bool)
    assert event_chances(never, never, starts, 4, 5, share=0.4) is None
