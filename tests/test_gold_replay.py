"""A gold set without pixels is made again exactly, kept, and refused where anything differs."""

import collections
import dataclasses

import numpy as np
import pytest

from tests.conftest import TINY_GOLD, TINY_SIZE
from v2.data.atari_dataset import split_of_game
from v2.data.games import EmulatorConfig
from v2.data.recordings import data_paths
from v2.eval import build_gold, gold_replay
from v2.eval.gold import GOLD_GAMES, GOLD_SHA256, gold_path, load_gold, read_set
from v2.eval.gold_replay import load_games, read_games, write_games
from v2.eval.objects import detector
from v2.eval.starts import cut_clips, strata_of
from v2.eval.turns import MORE_FLIGHT, turn_scores, turn_starts
from v2.runtime.files import file_sha256

NEW = pytest.mark.parametrize("game", GOLD_GAMES)


def _arrays(loaded) -> dict[str, np.ndarray]:
    data, branches = loaded
    return data.arrays() | dataclasses.asdict(branches)


def _equal(first, second) -> bool:
    first, second = _arrays(first), _arrays(second)
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def test_a_set_is_built_twice_to_the_same_bytes(gold_once, tmp_path):
    again = tmp_path / gold_once.name
    games, _ = build_gold.build(again, EmulatorConfig(), TINY_GOLD, TINY_SIZE)
    write_games(again, games)
    assert again.read_bytes() == gold_once.read_bytes()


def test_a_set_is_played_once_and_then_read_the_same(gold_once, tmp_path, capsys):
    games = read_games(gold_once)
    played = load_games(games, tmp_path)
    assert "playing" in capsys.readouterr().out
    kept = load_games(games, tmp_path)
    assert capsys.readouterr().out == "" and _equal(played, kept)
    data, branches = kept
    assert not branches.frames.std() == 0 and len(branches) == TINY_SIZE.branched
    assert (data.has_action.sum(), len(data)) == (len(games) - len(data.meta["episodes"]),
                                                  len(games))  # fmt: skip
    for k, row in enumerate(games.branch_rows):  # at the game's own action a branch is the game
        future = branches.frames[k, data.actions[row], 0]
        assert (future == data.frames[row + 1]).all()
        assert (branches.history[k] == data.frames[row - 3 : row + 1]).all()


def test_a_rewinding_game_is_one_course_from_a_reset(gold_once):
    games = read_games(gold_once)
    (course,) = [e for e in games.meta["episodes"] if e["policy"] == "rewind"]
    policy, _, steps = TINY_GOLD[-1]
    job = build_gold.GameJob(EmulatorConfig(), policy, course["seed"], steps)
    segments = build_gold.record_game(job)
    assert len(segments) > 1 and course["frames"] < sum(map(len, segments))
    assert (segments[-1].actions == games.actions[-len(segments[-1]) : -1]).all()


def test_a_changed_byte_is_refused_with_its_hash(tiny_gold, tmp_path):
    assert load_gold("breakout").is_gold
    path = gold_path("breakout")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match=f"sha256 {file_sha256(path)[:12]}.*git checkout"):
        load_gold("breakout")


def test_a_changed_action_is_refused_with_its_game(gold_once, tmp_path):
    games = read_games(gold_once)
    games.actions = games.actions.copy()
    row = games.meta["episodes"][0]["frames"] + 20  # of the second game
    games.actions[row] = 2 if games.actions[row] != 2 else 3
    seed = games.meta["episodes"][1]["seed"]
    with pytest.raises(ValueError, match=f"does not play game {seed} of .*git checkout"):
        load_games(games, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_emulator_is_refused_with_both_versions(gold_once, tmp_path, monkeypatch):
    made = gold_replay.make_atari_env

    def darker(config):
        env = made(config=config)
        step = env.step
        env.step = lambda action: (step(action)[0] // 2, *step(action)[1:])
        return env

    monkeypatch.setattr(gold_replay, "make_atari_env", darker)
    monkeypatch.setattr(gold_replay, "emulator_version", lambda: "9.9")
    games = read_games(gold_once)
    known = games.meta["ale_py"]
    with pytest.raises(ValueError, match=rf"ale-py 9\.9 does not play .* ale-py=={known}") as error:
        load_games(games, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_file_means_playing_again(gold_once, tmp_path, capsys):
    (tmp_path / "file").touch()
    games, nowhere = read_games(gold_once), tmp_path / "file" / "folder"
    first, second = (load_games(games, nowhere) for _ in range(2))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines[::2]] == ["playing", "playing"]
    assert all("plays these games again" in line for line in lines[1::2]) and len(lines) == 4
    assert _equal(first, second)


def test_a_damaged_replay_is_said_and_made_again(gold_once, tmp_path, capsys):
    games = read_games(gold_once)
    first = load_games(games, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-2000])
    capsys.readouterr()
    assert _equal(first, load_games(games, tmp_path))
    assert str(kept) in capsys.readouterr().out.splitlines()[0]
    assert list(tmp_path.iterdir()) == [kept] and _equal(first, load_games(games, tmp_path))


def test_a_folder_offers_no_replay_to_train_on(gold_once, data_path):
    load_games(read_games(gold_once), data_path.parent)
    assert len(list(data_path.parent.glob("gold-*.npz"))) == 1
    assert data_paths(data_path.parent) == [data_path]


def test_the_sets_are_small_and_share_no_game_with_anything_else():
    assert sum(gold_path(game).stat().st_size for game in GOLD_GAMES) < 1e6
    for game in GOLD_GAMES:
        assert file_sha256(gold_path(game)) == GOLD_SHA256[f"{game}-2"]
        seeds = [episode["seed"] for episode in read_games(gold_path(game)).meta["episodes"]]
        assert len(set(seeds)) == len(seeds) and min(seeds) >= build_gold.FIRST_SEED
        assert {split_of_game(seed) for seed in seeds} == {"gold"}


@NEW
def test_every_stratum_has_many_short_rollouts_and_eight_long_ones(game):
    games = read_games(gold_path(game))
    counts, long = collections.Counter(games.strata), collections.Counter(games.long_strata)
    assert counts == dict.fromkeys(strata_of(game), 40)
    assert long == dict.fromkeys(strata_of(game), 8)
    ends = np.cumsum([episode["frames"] for episode in games.meta["episodes"]])
    for starts, steps in ((games.starts, 50), (games.long_starts, 200)):
        first, last = (np.searchsorted(ends, starts + k, "right") for k in (-3, steps))
        assert (first == last).all() and len(set(first)) >= 16 and len(set(starts)) == len(starts)
    assert len(games.branch_rows) >= 200


@pytest.mark.slow
@NEW
def test_a_gold_set_is_rebuilt_bit_for_bit(tmp_path, game):
    path = tmp_path / gold_path(game).name
    assert build_gold.main(["--game", game, "--out", str(path)]) == 0
    assert path.read_bytes() == gold_path(game).read_bytes()


class _Still:
    """Dreams the last frame, of one token."""

    grid = (21, 16)

    def encode(self, frames):
        return np.zeros((len(frames), *self.grid), int)

    def reset(self, frames, actions=None):
        self.shown = frames[:, -1]

    def step(self, actions):
        self.tokens = self.encode(self.shown)
        return self.shown


@pytest.mark.slow
@NEW
def test_a_set_has_the_windows_that_the_metric_needs(tmp_path, game):
    data, rules = read_set(gold_path(game), tmp_path).data, detector.of_game(game)
    objects = detector.read_ram(game, data.ram)
    starts, kinds = turn_starts(game, data.ram, data.episode_ids)
    counts = collections.Counter(kind for kind in kinds if kind != MORE_FLIGHT)
    assert counts == dict.fromkeys(rules.turns(objects), 240)
    scores = turn_scores(_Still(), cut_clips(data, starts, 1, kinds))
    named = "turns/exact flight, "
    parts = {name.removeprefix(named): row.num_samples for name, row in scores.items()
             if name.startswith(named)}  # fmt: skip
    assert min(parts.values()) >= 40 and len(parts) >= 9
    assert set(rules.places(objects)) <= parts.keys()
