"""Own recordings: what is imported is what was recorded, and everything after needs no emulator."""

import dataclasses
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from tests import ball_world
from tests.conftest import train_vqvae, train_world_model
from v2 import play_atari_hires
from v2.data import games, import_recordings, tokenize_atari
from v2.data.action_shift import check_shift
from v2.data.atari_dataset import hold_out_end, load_game_data, save_game_data, split_of_game
from v2.data.frames import fit_screen
from v2.data.games import EmulatorConfig, RecordedConfig, game_id, stored_config
from v2.data.minari_recordings import write_minari
from v2.data.video_recordings import pictures, read_table
from v2.dream import DreamEngine
from v2.eval import gold_eval
from v2.play.recorded import RecordedEnv
from v2.play.session import PlaySession
from v2.runtime.cli import StopRequest
from v2.train import pipeline, ship

NAMES = ",".join(ball_world.ACTIONS)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory) -> tuple[Path, list]:
    """Three short games on video, and what was filmed."""
    folder = tmp_path_factory.mktemp("filmed") / "videos"
    return folder, ball_world.film(folder, 3, 60)


def imported(source: Path, out: Path, *flags: str):
    flags = ("--name", "ball", "--actions", NAMES, *flags)
    assert import_recordings.main([str(source), "--out", str(out), *flags]) == 0
    return load_game_data(out)


def save_arrays(path: Path, games: list, **more) -> Path:
    """Write an npz of several games as a stranger would."""
    frames, actions = (np.concatenate([game[k] for game in games]) for k in (0, 1))
    ids = np.repeat(np.arange(len(games)), len(games[0][0]))
    arrays = {"frames": frames, "actions": actions, "episode_ids": ids, "fps": 15} | more
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_a_video_becomes_the_frames_and_actions_that_were_filmed(filmed, tmp_path, capsys):
    folder, filmed_games = filmed
    data = imported(folder, tmp_path / "data.npz")
    assert data.meta["action_meanings"] == list(ball_world.ACTIONS) and data.ram.size == 0
    assert data.emulator == RecordedConfig("own-ball", 15.0)
    for k, (frames, actions, _) in enumerate(filmed_games):
        rows = data.episode_ids == k
        assert np.abs(data.frames[rows].astype(int) - frames).mean() < 2  # H.264's loss
        np.testing.assert_array_equal(data.actions[rows][:-1], actions[:-1])
        assert data.has_action[rows].sum() == 59 and data.truncated[rows].argmax() == 58
    assert [split_of_game(e["seed"]) for e in data.meta["episodes"]] == ["train", "val", "train"]
    said = capsys.readouterr().out
    assert "180 frames of 3 episodes, 15 a second" in said and "taken: NOOP" in said
    assert (tmp_path / "data.png").stat().st_size > 5000


def test_equal_sources_give_equal_files_and_no_game_stands_in_two_splits(filmed, tmp_path):
    first, second = (imported(filmed[0], tmp_path / f"{k}.npz").meta for k in range(2))
    assert first["episodes"] == second["episodes"] and first["shards"] == second["shards"]
    twice = save_arrays(tmp_path / "twice.npz", [filmed[1][0], *filmed[1]])
    assert len(imported(twice, tmp_path / "once.npz").meta["episodes"]) == 3


def test_of_a_single_game_the_end_is_held_out(filmed, tmp_path):
    frames, actions, _ = game = ball_world.play(np.random.default_rng(0), 200)
    alone = save_arrays(tmp_path / "alone.npz", [game], episode_ids=None)
    data = imported(alone, tmp_path / "data.npz")
    hold_out_end(data)
    np.testing.assert_array_equal(data.frames[data.rows_of("val")], frames[-20:])
    np.testing.assert_array_equal(data.actions[data.rows_of("val")][:-1], actions[-20:-1])
    assert not data.has_action[data.rows_of("train")[-1]]


def test_arrays_of_any_size_become_frames_by_the_area_average(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (200, 168, 128), np.uint8)
    source = tmp_path / "mine.npz"
    np.savez(source, frames=grey, actions=np.arange(200) % 3, fps=30.0)
    assert import_recordings.main([str(source), "--out", str(tmp_path / "data.npz")]) == 0
    data = load_game_data(tmp_path / "data.npz")
    expected = grey.reshape(200, 84, 2, 64, 2).mean((2, 4))
    assert np.abs(data.frames - expected[..., None]).max() <= 0.5
    assert data.emulator.game == "own-mine" and data.emulator.steps_per_second == 30


def test_a_picture_is_padded_cropped_or_stretched():
    wide = np.zeros((100, 400, 3), np.uint8)
    wide[:, :200] = 200
    padded, cropped, stretched = (fit_screen(wide, fit) for fit in ("pad", "crop", "stretch"))
    assert (padded[34:50, :32] == 200).all() and not padded[:33].any() and not padded[51:].any()
    assert (cropped[:, :32] == 200).all() and not cropped[:, 32:].any()
    np.testing.assert_array_equal(cropped, stretched)


def test_an_action_that_is_off_by_one_is_named_and_shifted_back(tmp_path, capsys):
    game = [ball_world.play(np.random.default_rng(k), 300) for k in range(2)]
    late = [(frames, np.roll(actions, 1), places) for frames, actions, places in game]
    right = imported(save_arrays(tmp_path / "a.npz", game), tmp_path / "right.npz")
    assert "actions: they explain" in capsys.readouterr().out
    imported(save_arrays(tmp_path / "b.npz", late), tmp_path / "late.npz")
    assert "give --shift 1" in capsys.readouterr().out
    imported(tmp_path / "b.npz", tmp_path / "wrong.npz", "--shift", "-1")
    assert "shifted by +2" in (said := capsys.readouterr().out) and "give --shift 1" in said
    mended = imported(tmp_path / "b.npz", tmp_path / "mended.npz", "--shift", "1")
    np.testing.assert_array_equal(mended.frames, right.frames)
    np.testing.assert_array_equal(mended.actions, right.actions)
    early = [np.roll(actions, -1) for _, actions, _ in game]
    ids = np.repeat([0, 1], 300)
    assert check_shift(right.frames, np.concatenate(early), ids).best == -1


def test_each_second_frame_has_the_actions_of_both(tmp_path):
    frames, _, _ = ball_world.play(np.random.default_rng(0), 41)
    actions = np.repeat([0, 3, 1, 2], 11)[:41]
    actions[:2] = 1
    other = ball_world.play(np.random.default_rng(1), 41)
    source = save_arrays(tmp_path / "a.npz", [(frames, actions), other],
                         rewards=np.ones(82, np.float32))  # fmt: skip
    data = imported(source, tmp_path / "data.npz", "--every", "2")
    rows = data.episode_ids == 0
    np.testing.assert_array_equal(data.frames[rows], frames[::2])
    np.testing.assert_array_equal(data.actions[rows][:5], [1, 0, 0, 0, 0])
    assert (data.rewards[rows][:-1] == 2).all() and data.emulator.steps_per_second == 7.5


def test_whole_numbers_of_a_spreadsheet_are_numbers_of_actions(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("action\n0.0\n12.0\n3\n-1\nUP\n1.5\n")
    assert read_table(table)["actions"] == [0, 12, 3, -1, "UP", "1.5"]


@pytest.mark.parametrize("every", [1, 2, 4, 7])
def test_the_end_of_a_game_and_its_last_reward_are_kept_at_any_speed(tmp_path, every):
    folder = tmp_path / "videos"
    for number, length in enumerate(range(70, 78)):
        ball_world.film(folder / "one", 1, length, seed=number)
        video = (folder / "one" / "game00.mp4").replace(folder / f"game{number:02d}.mp4")
        _, *actions = (folder / "one" / "game00.csv").read_text().split()
        rows = [f"{action},0,0" for action in actions]
        rows[-2] = f"{actions[-2]},1,1"  # the last action; the last row is the last frame's
        video.with_suffix(".csv").write_text("\n".join(["action,reward,terminated", *rows]))
        shutil.rmtree(folder / "one")
    data = imported(folder, tmp_path / "data.npz", "--every", str(every))
    lasts = np.flatnonzero(np.diff(data.episode_ids, append=8)) - 1
    assert data.terminated[lasts].all() and data.terminated.sum() == 8
    assert (data.rewards[lasts] == 1).all() and data.rewards.sum() == 8
    assert not data.truncated.any()
    for number, length in enumerate(range(70, 78)):
        frames = data.frames[data.episode_ids == number]
        assert len(frames) == 1 + -(-(length - 1) // every)
        filmed = ball_world.play(np.random.default_rng(number), length)[0]
        assert np.abs(frames[-1].astype(int) - filmed[-1]).mean() < 2


def test_a_game_that_ends_at_the_list_of_json_and_names_in_small_letters(filmed, tmp_path):
    frames, actions, _ = filmed[1][0]
    for k in range(2):
        (tmp_path / f"g{k}.mp4").write_bytes((filmed[0] / f"game0{k}.mp4").read_bytes())
        table = {"actions": [k, *actions[1:].tolist()], "terminated": [False] * 58 + [True],
                 "action_meanings": [name.lower() for name in ball_world.ACTIONS]}  # fmt: skip
        (tmp_path / f"g{k}.json").write_text(json.dumps(table))
    out = tmp_path / "data.npz"
    assert import_recordings.main([str(tmp_path), "--out", str(out)]) == 0
    data = load_game_data(out)
    assert data.terminated.sum() == 2
    assert data.meta["action_meanings"] == list(ball_world.ACTIONS)


@pytest.mark.parametrize("by_minari", [False, True])
def test_parts_of_one_game_stay_in_one_split(game_data, tmp_path, monkeypatch, by_minari):
    """Those of a game that was rewound share its seed."""
    for episode in game_data.meta["episodes"]:
        episode["seed"] = 100 + episode["id"] // 4
    save_game_data(tmp_path / "parts.npz", game_data)
    source, flags = str(tmp_path / "parts.npz"), ["--name", "parts"]
    if by_minari:
        pytest.importorskip("minari")
        pytest.importorskip("h5py")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
        write_minari("mine/parts-v0", game_data)
        source = "mine/parts-v0"
    assert import_recordings.main([source, "--out", str(tmp_path / "data.npz"), *flags]) == 0
    seeds = [episode["seed"] for episode in load_game_data(tmp_path / "data.npz").meta["episodes"]]
    assert [seed - seeds[0] for seed in seeds] == [k // 4 for k in range(20)]


def test_a_video_that_is_turned_is_shown_upright(filmed, tmp_path):
    turned = tmp_path / "turned.mp4"
    content = bytearray((filmed[0] / "game00.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44
    quarter = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # to the right
    content[matrix : matrix + 36] = struct.pack(">9i", *quarter)
    turned.write_bytes(content)
    shown, was = (next(pictures(str(path), [])) for path in (turned, filmed[0] / "game00.mp4"))
    np.testing.assert_array_equal(shown, np.rot90(was, -1))


def test_what_minari_is_given_comes_back_unchanged(filmed, tmp_path, monkeypatch):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    flags = ["--to-minari", "mine/ball-v0"]
    before = imported(save_arrays(tmp_path / "a.npz", filmed[1]), tmp_path / "before.npz", *flags)
    with pytest.raises(FileExistsError, match="give the next version"):
        imported(tmp_path / "a.npz", tmp_path / "b.npz", *flags)
    for k, source in enumerate(("mine/ball-v0", str(tmp_path / "minari/mine/ball-v0"))):
        out = tmp_path / f"back{k}.npz"
        assert import_recordings.main([source, "--name", "ball", "--out", str(out)]) == 0
        after = load_game_data(out)
        assert after.meta["action_meanings"] == list(ball_world.ACTIONS)
        assert after.emulator == before.emulator
        for name, array in before.arrays().items():
            np.testing.assert_array_equal(array, getattr(after, name), err_msg=name)


def test_what_play_saves_can_be_imported_and_its_clips_are_told_apart(data_path, tmp_path):
    assert import_recordings.main([str(data_path), "--out", str(tmp_path / "own.npz")]) == 0
    was, now = load_game_data(data_path), load_game_data(tmp_path / "own.npz")
    for name in ("frames", "actions", "rewards", "terminated", "episode_ids", "has_action"):
        np.testing.assert_array_equal(getattr(was, name), getattr(now, name))
    assert now.ram.size == 0 and now.emulator.game == "own-atari-game-data"
    flags = [str(data_path), "--out", str(tmp_path / "named.npz"), "--actions"]
    assert import_recordings.main([*flags, "NOOP,FIRE,UP,DOWN"]) == 0
    named = load_game_data(tmp_path / "named.npz")
    assert named.meta["action_meanings"] == ["NOOP", "FIRE", "UP", "DOWN"]
    with pytest.raises(ValueError, match="has 4 actions, got 2 names"):
        import_recordings.main([*flags, "UP,DOWN", "--overwrite"])


def test_a_picture_beside_the_data_is_kept(filmed, tmp_path):
    source, sheet = save_arrays(tmp_path / "a.npz", filmed[1]), tmp_path / "data.png"
    sheet.write_bytes(b"mine")
    imported(source, tmp_path / "data.npz")
    assert sheet.read_bytes() == b"mine" and (tmp_path / "data_2.png").exists()


def test_an_import_that_is_stopped_leaves_nothing_and_says_by_which_signal(
    filmed, tmp_path, monkeypatch
):
    source, out = save_arrays(tmp_path / "a.npz", filmed[1]), tmp_path / "data.npz"
    monkeypatch.setattr(StopRequest, "__enter__", lambda stop: stop._handle(15, None) or stop)
    assert import_recordings.main([str(source), "--out", str(out)]) == 143
    assert list(tmp_path.iterdir()) == [source]


def refused(filmed, tmp_path: Path, what: str) -> tuple[list[str], str]:
    """Return flags that are refused, and words of the reason."""
    source, out = tmp_path / "videos", ["--out", str(tmp_path / "data.npz")]
    source.mkdir()
    for path in filmed[0].iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    table = source / "game01.csv"
    lines = table.read_text().splitlines()
    array = tmp_path / "a.npz"
    frames, actions, _ = filmed[1][0]
    match what:
        case "short table":
            table.write_text("\n".join(lines[:40]))
            return [str(source), *out], "game01.mp4 has 60 frames and 39 actions"
        case "no table":
            table.unlink()
            return [str(source), *out], "game01.mp4 has no table of actions: write game01.csv"
        case "no column":
            table.write_text("key\n" + "\n".join(lines[1:]))
            return [str(source), *out], "no column named action"
        case "empty line":
            table.write_text("\n".join([*lines[:20], "", *lines[20:-1]]))
            return [str(source), *out], "game01.csv: line 21 has no action"
        case "neither true nor false":
            rows = [f"{line},{'perhaps' if k == 30 else 0.0}" for k, line in enumerate(lines[1:])]
            table.write_text("\n".join(["action,terminated", *rows]))
            return [str(source), *out], "line 32: terminated must be true or false, got perhaps"
        case "end of another form":
            place = source / "game01.json"
            place.with_suffix(".csv").unlink()
            place.write_text(json.dumps({"actions": [0] * 60, "terminated": "yes"}))
            return [str(source), *out], "terminated must be true or false, or a list of them"
        case "equal names":
            np.savez(array, frames=frames, actions=actions, fps=15,
                     action_meanings=["noop", "up", "UP", "left", "down"])  # fmt: skip
            return [str(array), *out], "noop,up,UP,left,down: each needs a name of its own"
        case "two orders":
            for number, names in enumerate((["UP", "DOWN"], ["DOWN", "UP"])):
                place = source / f"game0{number}.json"
                place.with_suffix(".csv").unlink()
                place.write_text(json.dumps({"actions": [0, 1] * 30, "action_meanings": names}))
            return [str(source), *out], "number all of them alike"
        case "unknown action":
            table.write_text("\n".join([*lines[:-1], "JUMP"]))
            return [str(source), "--actions", NAMES, *out], "action 'JUMP' is none of NOOP"
        case "clip of play":
            table.unlink()
            table.with_suffix(".json").write_text(json.dumps({"actions": [{"step": 1}]}))
            return [str(source), *out], "a clip that play saved"
        case "damaged video":
            table.with_suffix(".mp4").write_bytes(b"no video" * 99)
            return [str(source), *out], "game01.mp4 is no video that can be read"
        case "end of another length":
            table.unlink()
            place = table.with_suffix(".json")
            place.write_text(json.dumps({"actions": [0] * 60, "terminated": [False] * 9 + [True]}))
            return [str(source), *out], "game01.json holds 60 actions, and 10 of terminated"
        case "number without end":
            table.unlink()
            place = table.with_suffix(".json")
            place.write_text(json.dumps({"actions": [0] * 60, "rewards": [10**400] * 60}))
            return [str(source), *out], "game01.json: a reward is no number"
        case "depth without end":
            table.unlink()
            table.with_suffix(".json").write_text("[" * 100_000)
            return [str(source), *out], "game01.json is no JSON"
        case "number below 0":
            table.write_text("\n".join(["action", *("-1.0" for _ in lines[1:])]))
            return [str(source), *out], "action -1 is none of"
        case "no video":
            (tmp_path / "empty").mkdir()
            return [str(tmp_path / "empty"), *out], "holds no video"
        case "no source":
            return [str(tmp_path / "nowhere"), *out], "no SOURCE"
        case "floats":
            np.savez(array, frames=frames / 255, actions=actions, fps=15)
            return [str(array), *out], "frames must be uint8"
        case "no rate":
            np.savez(array, frames=frames, actions=actions)
            return [str(array), *out], "does not say its frame rate: give --fps"
        case "lengths":
            np.savez(array, frames=frames, actions=actions[:-2], fps=15)
            return [str(array), *out], "60 frames and 58 actions"
        case "action range":
            np.savez(array, frames=frames, actions=actions - 1, fps=15)
            return [str(array), *out], "action -1 is none of"
        case "two rates":
            np.savez(array, frames=frames, actions=actions, fps=[15, 30])
            return [str(array), *out], "fps must be a number, got int64 (2,)"
        case "ids of two axes":
            np.savez(array, frames=frames, actions=actions, fps=15, episode_ids=np.zeros((60, 1)))
            return [str(array), *out], "episode_ids must be 60 ascending whole numbers"
        case "rewards of two axes":
            np.savez(array, frames=frames, actions=actions, fps=15, rewards=np.zeros((60, 2)))
            return [str(array), *out], "rewards must be numbers, (M,), got float64 (60, 2)"
        case "reward that is no number":
            np.savez(array, frames=frames, actions=actions, fps=15, rewards=np.full(60, np.nan))
            return [str(array), *out], "a.npz episode 0: a reward is not finite"
        case "huge cell":
            table.write_text("action\n" + 200_000 * "x")
            return [str(source), *out], "game01.csv is no table"
        case "objects":
            np.savez(array, frames=np.array([{}], object), actions=actions, fps=15)
            return [str(array), *out], "is no npz file of plain arrays"
        case "too short":
            np.savez(array, frames=frames[:6], actions=actions[:6], fps=15)
            return [str(array), *out], "nothing to import; left out"
        case "there already":
            (tmp_path / "data.npz").touch()
            return [str(source), *out], "is there already: --overwrite replaces it"
    raise AssertionError(what)


@pytest.mark.parametrize(
    "what",
    ["short table", "no table", "no column", "unknown action", "clip of play", "damaged video",
     "no video", "no source", "floats", "no rate", "lengths", "action range", "objects",
     "too short", "there already", "two rates", "ids of two axes", "rewards of two axes",
     "reward that is no number", "huge cell", "empty line", "neither true nor false",
     "two orders", "end of another form", "equal names", "end of another length",
     "number below 0", "number without end", "depth without end"],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_line(filmed, tmp_path, what, ends):
    flags, reason = refused(filmed, tmp_path, what)
    before = sorted(tmp_path.iterdir())
    ends(import_recordings.main, flags, 2, reason)
    assert sorted(tmp_path.iterdir()) == before  # nothing is left behind


def test_a_recorded_game_has_a_name_of_its_own_and_no_emulator():
    assert game_id("own-ball") == "own-ball"
    with pytest.raises(ValueError, match="no emulator of it"):
        EmulatorConfig("own-ball")
    with pytest.raises(ValueError, match="begins with own-"):
        RecordedConfig("breakout", 15.0)
    assert stored_config({"game": "own-ball", "steps_per_second": 30.0}).steps_per_second == 30


def test_all_stages_of_an_own_game_learn_from_its_recording_smoke_too(own_game, monkeypatch):
    learnt_from = []

    def train(self, kind, wanted, script, *flags):
        learnt_from.append(flags)
        raise SystemExit(0)

    monkeypatch.setattr(pipeline.Pipeline, "train", train)
    for preset in ("default", "smoke"):
        with pytest.raises(SystemExit):
            pipeline.main(["--game", "own-ball", "--preset", preset])
    assert learnt_from == [("--data", own_game[0])] * 2
    own_game[0].unlink()
    with pytest.raises(FileNotFoundError, match="import_recordings.py"):
        pipeline.main(["--game", "own-ball", "--preset", "smoke"])


def test_an_own_game_in_another_home_is_played_with_its_data(own_game, tmp_path, capsys):
    home = tmp_path / "home"
    (tmp_path / "own-ball").rename(home)
    flags = ["--game", "own-ball", "--headless", "--steps", "3"]
    assert play_atari_hires.main([*flags, "--run", str(home)]) == 0
    assert f"recording: {home / 'atari_game_data.npz'}" in capsys.readouterr().out


@pytest.fixture
def own_game(filmed, small_models, tmp_path, monkeypatch) -> tuple[Path, Path, Path]:
    """Data, VQ-VAE and world model of an imported game, in the place of its own."""
    monkeypatch.setattr(games, "CHECKPOINTS", tmp_path)
    source = save_arrays(tmp_path / "a.npz", filmed[1])
    assert import_recordings.main([str(source), "--name", "ball", "--actions", NAMES]) == 0
    folder = tmp_path / "own-ball"
    data = folder / "atari_game_data.npz"
    vqvae = train_vqvae(folder, data, "--game", "own-ball", "--set", "steps=2")
    flags = ["--data", str(data), "--vqvae", str(vqvae), "--game", "own-ball"]
    assert tokenize_atari.main([*flags, "--out", str(folder / "tokens.npz")]) == 0
    run = train_world_model(folder, data, vqvae, "--game", "own-ball", "--set", "steps=1")
    return data, vqvae, run


def test_after_the_import_nothing_needs_an_emulator(own_game, tmp_path, monkeypatch, capsys):
    data, _, _ = own_game
    result = tmp_path / "result.json"
    flags = ["--game", "own-ball", "--data", str(data), "--tier", "canary", "--json", str(result)]
    small = dataclasses.replace(
        gold_eval.TIERS["canary"], tokenizer_frames=8, one_step_clips=4, turns=2, rollouts=2,
        rollout_steps=5, long_rollouts=0, branches=1,
        long_dreams=1, long_dream_steps=3, timed_steps=2,
    )  # fmt: skip
    monkeypatch.setitem(gold_eval.TIERS, "canary", small)
    assert gold_eval.main(flags) == 0
    metrics = json.loads(result.read_text())["metrics"]
    assert "rollout/psnr@5" in metrics and not any("ball" in name for name in metrics)
    engine = DreamEngine.load("latest", "own-ball", "cpu")
    env = RecordedEnv(data, stored_config(engine.info["emulator"]))
    session = PlaySession(env, engine)
    recorded = load_game_data(data)
    held_out = recorded.rows_of("val")
    for k in range(5):  # whatever is pressed, the recording and its dream take its own actions
        moment = session.step(4)
        np.testing.assert_array_equal(moment.real_frame, recorded.frames[held_out[4 + k]])
        assert moment.action == recorded.actions[held_out[3 + k]]
    assert len(session.agreements) == 5
    session.rewind(2)
    assert session.step(0).real_frame.tobytes() == recorded.frames[held_out[7]].tobytes()
    session.set_mode("dream")
    assert session.step(4).action == 4  # here the keys count


@pytest.mark.slow
def test_who_is_given_the_weights_of_an_own_game_can_play_without_its_data(
    own_game, tmp_path, capsys
):
    data, _, world_model = own_game
    folder, video = tmp_path / "share", tmp_path / "played.png"
    flags = ["--game", "own-ball"]
    assert ship.main([*flags, "--run", str(world_model), "--to", str(folder)]) == 0
    assert str(tmp_path) not in (folder / "README.md").read_text()
    data.unlink()
    play = [*flags, "--weights", str(folder), "--headless", "--steps", "3"]
    assert play_atari_hires.main([*play, "--record", str(video)]) == 0
    assert f"recording: {folder / 'start.npz'}" in capsys.readouterr().out and video.exists()
    (folder / "start.npz").unlink()
    with pytest.raises(FileNotFoundError, match="no recording of own-ball in .* nor beside"):
        play_atari_hires.main(play)
