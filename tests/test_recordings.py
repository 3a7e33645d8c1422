"""Which files are read as one: shards, several recordings, folders; what of them is held out."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import train_vqvae
from v2.data import npz
from v2.data.atari_dataset import (
    GameData,
    check_training_games,
    data_sha256,
    hold_out_end,
    load_game_data,
    save_game_data,
    window_starts,
)
from v2.data.recordings import list_episodes, say_all_are_there, shard_path
from v2.data.start_scene import cut_start
from v2.data.tokens import (
    TOKENS_NAME,
    recording_sha256,
    recordings_sha256,
    tokenize,
    tokens_path,
)
from v2.eval.gold import load_recorded
from v2.play.episodes import EpisodeFile
from v2.runtime import checkpoint
from v2.runtime.run_dir import all_runs
from v2.train import train_vqvae_hires, train_wm_hires

SYNTHETIC_SHA256 = "968c2046baa14e64119f139517c58f46dd234c54280dd98b710de62dfefee086"


def _part(data: GameData, first: int, last: int, **meta) -> GameData:
    """Cut episodes out of a recording."""
    rows = (data.episode_ids >= first) & (data.episode_ids < last)
    arrays = {name: array[rows] for name, array in data.arrays().items()}
    meta |= {"episodes": data.meta["episodes"][first:last]}
    return GameData(**arrays, meta=data.meta | meta)


@pytest.fixture
def shards(game_data, tmp_path):
    paths = [shard_path(tmp_path / "own.npz", number) for number in range(4)]
    for number, path in enumerate(paths):
        save_game_data(path, _part(game_data, 5 * number, 5 * number + 5))
    say_all_are_there(paths)
    return paths


def _refused(data, vqvae, text: str) -> None:
    for read in (load_game_data, EpisodeFile, recording_sha256,
                 lambda data: tokenize(data, vqvae, torch.device("cpu"))):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            read(data)


@pytest.mark.parametrize("lost", [[0], [2], [3], [0, 1, 2], [1, 2, 3]])
def test_a_set_of_shards_knows_how_many_it_is(lost, shards, vqvae):
    data = shards[0].with_name("own.npz")
    assert len(load_game_data(data)) == 600
    for number in lost:
        shards[number].unlink()
    _refused(data, vqvae, f"own.npz is a set of 4 shards, and {shards[lost[0]].name}.* is missing")


def test_shards_of_two_sets_are_refused_and_those_set_aside_are_no_loss(
    shards, vqvae, game_data, tmp_path
):
    data = tmp_path / "own.npz"
    extra = shard_path(data, 4)
    save_game_data(extra, _part(game_data, 19, 20))
    _refused(data, vqvae, f"{extra.name} is none of them")
    say_all_are_there([extra])
    _refused(data, vqvae, f"{shards[3].name} is one of 4 shards and .*{extra.name} one of 1")
    extra.unlink()
    shards[1].rename(f"{shards[1]}.bad")
    assert len(load_game_data(data)) == 450


def test_older_shards_know_no_number_and_load(game_data, tmp_path, vqvae):
    data = tmp_path / "own.npz"
    for number in range(3):
        save_game_data(shard_path(data, number), _part(game_data, 5 * number, 5 * number + 5))
    assert len(load_game_data(data)) == 450
    shard_path(data, 1).unlink()
    _refused(data, vqvae, "own-00001.npz is missing")


def test_knowing_the_number_changes_no_array_and_no_hash(game_data, tmp_path):
    path = tmp_path / "own.npz"
    save_game_data(path, game_data)
    before = recording_sha256(path)
    npz.add_to_meta(path, {"num_shards": 1})
    assert npz.read_meta(path)["num_shards"] == 1
    assert recording_sha256(path) == before == SYNTHETIC_SHA256
    assert data_sha256(load_game_data(path).meta) == SYNTHETIC_SHA256


def test_several_recordings_and_a_folder_of_them_are_read_as_one(game_data, vqvae, tmp_path):
    folder, game_data = tmp_path / "sessions", _part(game_data, 0, 12)
    tokens = tokenize(_saved(tmp_path / "all.npz", game_data), vqvae, torch.device("cpu"))
    first, second = folder / "a.npz", folder / "b.npz"
    _saved(first, _part(game_data, 0, 4, seed=3))
    for number, (low, high) in enumerate(((4, 6), (6, 8))):
        _saved(shard_path(second, number), _renumbered(_part(game_data, low, high), low - 4))
    _saved(folder / "c.npz", _renumbered(_part(game_data, 8, 12, policy="human")))
    tokens.save(folder / f"{TOKENS_NAME}.npz")  # is no recording
    for data in (folder, [first, second, folder / "c.npz"]):
        joined = load_game_data(data)
        made = tokenize(data, vqvae, torch.device("cpu"))
        for name, array in game_data.arrays().items():
            assert np.array_equal(getattr(joined, name), array), name
        assert np.array_equal(made.tokens, tokens.tokens)
        assert np.array_equal(made.episode_ids, tokens.episode_ids)
        assert np.array_equal(joined.rows_of("val"), game_data.rows_of("val"))
        assert made.meta["data_sha256"] == data_sha256(joined.meta) == recording_sha256(data)
    assert recording_sha256([first]) == recording_sha256(first)
    assert recording_sha256([second, first]) != recording_sha256([first, second])


def test_a_start_scene_is_cut_from_any_of_several_recordings(game_data, tmp_path):
    """Only the second file holds a held-out game, by an id that the first has, too."""
    for name, first in (("a", 2), ("b", 10)):
        part = _renumbered(_part(game_data, first, first + 4))
        _saved(tmp_path / f"{name}.npz", part)
    scene = cut_start(tmp_path)
    assert scene.meta["episodes"][0]["seed"] == 11
    assert np.array_equal(scene.frames, game_data.frames[game_data.episode_ids == 11])
    assert set(scene.episode_ids) == {scene.meta["episodes"][0]["id"]}


def test_recordings_that_cannot_be_joined_are_refused(game_data, vqvae, tmp_path):
    first = _saved(tmp_path / "a" / "own.npz", game_data)
    _refused([first, first], vqvae, "own.npz is named twice")
    _refused([first, first.parent], vqvae, "own.npz is named twice")
    copy = _saved(tmp_path / "a" / "own (copy).npz", game_data)
    for copies in ([first, copy], first.parent):
        with pytest.raises(ValueError, match="hold the same: name one of them"):
            load_game_data(copies)
        with pytest.raises(ValueError, match="hold the same: name one of them"):
            tokenize(copies, vqvae, torch.device("cpu"))
    copy.unlink()
    game_data.meta["emulator"]["frameskip"] = 3
    second = _saved(tmp_path / "b" / "own.npz", game_data)
    with pytest.raises(ValueError, match=f"{second} and {first} differ in frameskip 3, not 4"):
        list_episodes([first, second])
    game_data.meta["emulator"] |= {"frameskip": 4, "package": "another version"}
    game_data.actions[0] += 1
    assert len(list_episodes([first, _saved(tmp_path / "c" / "own.npz", game_data)]).paths) == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=f"no recording in {empty}: run .*collect_atari"):
        list_episodes(empty)


def _saved(path, data):
    save_game_data(path, data)
    return path


def _renumbered(data: GameData, first: int = 0) -> GameData:
    """Count the episodes anew, as the collector of each recording does."""
    shift = first - data.meta["episodes"][0]["id"]
    episodes = [episode | {"id": episode["id"] + shift} for episode in data.meta["episodes"]]
    return dataclasses.replace(data, episode_ids=data.episode_ids + np.int32(shift),
                               meta=data.meta | {"episodes": episodes})  # fmt: skip


def _one_game(data: GameData, lengths=(600,)) -> GameData:
    """Take the recording for one game, of so many episodes."""
    ids = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    episodes = [{"id": k, "seed": 990_000_000, "policy": "human", "frames": n, "score": 0.0}
                for k, n in enumerate(lengths)]  # fmt: skip
    has_action = np.append(ids[1:] == ids[:-1], False)
    return dataclasses.replace(data, episode_ids=ids, has_action=has_action,
                               meta=data.meta | {"episodes": episodes})  # fmt: skip


@pytest.mark.parametrize("lengths", [(600,), (500, 100), (540, 60), (200, 370, 30), (541, 59)])
def test_of_a_single_game_the_last_tenth_is_held_out_and_no_window_crosses(
    lengths, game_data, tmp_path, capsys
):
    path = _saved(tmp_path / "mine.npz", _one_game(game_data, lengths))
    check_training_games(path, list_episodes(path).episodes)
    text = "no whole game is held out by its seed: the last tenth of 600 frames is\n"
    assert capsys.readouterr().out == text
    data = load_game_data(path)
    hold_out_end(data)
    assert data.rows_of("val").tolist() == list(range(540, 600))
    assert data.rows_of("train").tolist() == list(range(540))
    starts = window_starts(data.episode_ids, 14)
    assert not ((starts < 540) & (starts + 13 >= 540)).any()
    assert (np.diff(data.episode_ids) >= 0).all() and not data.has_action[539]
    counts = np.bincount(data.episode_ids)
    assert [(e["id"], e["frames"]) for e in data.meta["episodes"]] == list(enumerate(counts))
    again = load_game_data(path)
    hold_out_end(again)
    hold_out_end(again)  # of what has both nothing more
    assert np.array_equal(again.episode_ids, data.episode_ids)


def test_a_short_game_is_refused_before_any_work(game_data, tmp_path):
    path = _saved(tmp_path / "mine.npz", _part(_one_game(game_data, (199, 401)), 0, 1))
    with pytest.raises(ValueError, match="mine.npz holds 199 frames and no game to hold out"):
        check_training_games(path, list_episodes(path).episodes)


def test_one_own_game_is_trained_on_and_evaluated_where_it_was_held_out(
    small_models, game_data, tmp_path, capsys
):
    first = _saved(tmp_path / "mine.npz", _part(_one_game(game_data, (334, 266)), 0, 1))
    run = train_vqvae(tmp_path / "home", first, "--set", "steps=2")
    flags = ["--data", first, "--out", tmp_path / "home", "--set", "steps=1"]
    assert train_wm_hires.main(list(map(str, flags))) == 0
    out = capsys.readouterr().out
    assert out.count("the last tenth of 334 frames is") == 2 and f"VQ-VAE: {run}" in out
    assert tokens_path(first, tmp_path / "home") == tmp_path / "home" / "mine_tokens.npz"
    assert (tmp_path / "home" / "mine_tokens.npz").exists()
    chosen = load_recorded(first, "breakout", 2, 10, "any", [(recording_sha256(first),)])
    assert len(chosen.data) == 33 and "what is held out" in chosen.source
    assert len(load_recorded(first, "breakout", 2, 10, "any").data) == 334
    (trained,) = (r for r in all_runs(tmp_path / "home") if r != run)
    for kind, learnt in (("vqvae", run), ("world_model", trained)):
        (said,) = checkpoint.lineage(checkpoint.load_last(learnt, kind))
        assert said["recordings_sha256"] == [recording_sha256(first)] == [said["data_sha256"]]


def test_a_part_of_what_was_learnt_from_is_not_evaluated_alone(game_data, tmp_path):
    games = [_part(_one_game(game_data, (300, 300)), k, k + 1) for k in range(2)]
    both = [_saved(tmp_path / f"{k}.npz", _renumbered(game)) for k, game in enumerate(games)]
    learnt = [(recording_sha256(both), *recordings_sha256(both))]
    for part in (both[0], both[::-1]):
        with pytest.raises(ValueError, match="give all of its recordings to --data"):
            load_recorded(part, "breakout", 2, 10, "any", learnt)
    assert "held out" in load_recorded(both, "breakout", 2, 10, "any", learnt).source
    alone = (recording_sha256(both[0]),) * 2  # whose end the other run learnt from
    for runs in ([alone, *learnt], [*learnt, alone]):
        with pytest.raises(ValueError, match="give all of its recordings to --data"):
            load_recorded(both[0], "breakout", 2, 10, "any", runs)
    assert "held out" in load_recorded(both[0], "breakout", 2, 10, "any", [alone]).source


def test_two_sessions_are_trained_on_together_and_resumed(
    small_models, game_data, tmp_path, capsys
):
    paths = [_saved(tmp_path / f"{k}.npz", _renumbered(_part(game_data, 10 * k, 10 * k + 10)))
             for k in range(2)]  # fmt: skip
    flags = ["--data", *paths, "--out", tmp_path / "home", "--set", "steps=2"]
    assert train_vqvae_hires.main(list(map(str, flags))) == 0
    (run,) = (tmp_path / "home" / "runs").iterdir()
    more = ["--resume", run.name, "--out", tmp_path / "home", "--set", "steps=3"]
    assert train_vqvae_hires.main(list(map(str, more))) == 0
    assert "'data'" not in capsys.readouterr().out  # it is what it was
