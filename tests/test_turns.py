"""One step at turns: the windows are what they say, and the score tells right from wrong."""

import numpy as np
import pytest
from PIL import Image

from tests import canaries
from v2.dream import DreamEngine
from v2.eval import bounces
from v2.eval.gold import EvaluationSet
from v2.eval.objects import detector
from v2.eval.starts import HISTORY, cut_clips, stratified_starts
from v2.eval.turns import MORE_FLIGHT, turn_scores, turn_starts


@pytest.fixture(scope="module")
def game():
    return canaries.record_with_states(seed=3, num_steps=900)


@pytest.fixture(scope="module")
def clips(game):
    data = game[0]
    starts, kinds = turn_starts("breakout", data.ram, data.episode_ids, per_kind=100)
    return cut_clips(data, starts, 1, kinds)


def test_the_windows_of_each_kind_show_it_in_the_next_step(clips):
    before, here, after = (
        detector.read_ram("breakout", clips.ram[:, HISTORY - 1 + k]) for k in (-1, 0, 1)
    )
    came, goes = here.ball - before.ball, after.ball - here.ball
    bricks = [objects.bricks.sum((1, 2)) for objects in (here, after)]
    kinds = {kind: clips.strata == kind for kind in set(clips.strata)}
    assert {"flight", "side wall", "paddle", "brick"} <= kinds.keys()
    flight = kinds["flight"]
    assert np.linalg.norm(came - goes, axis=1)[flight].max() <= 1
    assert (bricks[0] == bricks[1])[flight].all()
    assert (came * goes <= 0)[kinds["side wall"], 0].all()
    assert ((came[:, 1] > 0) & (goes[:, 1] <= 0))[kinds["paddle"]].all()
    assert (bricks[1] < bricks[0])[kinds["brick"]].all()
    if "top wall" in kinds:
        assert ((came[:, 1] < 0) & (goes[:, 1] >= 0))[kinds["top wall"]].all()
    if "serve" in kinds:
        assert np.isnan(here.ball[kinds["serve"], 0]).all()
    if "lost" in kinds:
        assert np.isnan(after.ball[kinds["lost"], 0]).all()


def test_the_ball_came_by_one_step_three_times(clips):
    objects = [detector.read_ram("breakout", clips.ram[:, t]) for t in range(HISTORY)]
    steps = np.stack([b.ball - a.ball for a, b in zip(objects, objects[1:], strict=False)], 1)
    steady = clips.strata != "serve"
    assert np.linalg.norm(np.diff(steps[steady], axis=1), axis=2).max() <= 1


def _scores(kind, game, clips) -> dict[str, float]:
    engine = kind(game[1], canaries.PatchTokenizer())
    engine.grid = (21, 16)
    return {name: row.value for name, row in turn_scores(engine, clips).items()}


def test_a_perfect_model_is_exact_everywhere_and_a_copy_nowhere_in_flight(game, clips):
    perfect = _scores(canaries.PerfectEngine, game, clips)
    exact = {name: value for name, value in perfect.items() if name.startswith("turns/exact")}
    assert set(exact.values()) == {1.0} and len(exact) >= 5
    assert perfect["turns/within_1px flight"] >= 0.97
    copied = _scores(canaries.CopyLast, game, clips)
    assert copied["turns/exact flight"] == 0 and copied["turns/exact paddle"] == 0
    assert any(name.startswith("turns/exact flight, speed") for name in perfect)


def test_a_copy_of_the_last_frame_is_the_baseline_that_it_scores(game, clips):
    engine = canaries.CopyLast(game[1], canaries.PatchTokenizer())
    engine.grid = (21, 16)
    rows = {name: row for name, row in turn_scores(engine, clips).items()
            if row.baselines.keys() == {"copy_last"}}  # fmt: skip
    assert "turns/no_ball serve" in rows
    for name, row in rows.items():
        assert row.value == row.baselines["copy_last"].value, name


def test_an_erased_ball_is_told_as_no_ball_and_a_late_one_as_wrong(game, clips):
    erased = _scores(canaries.BallErased, game, clips)
    assert erased["turns/no_ball flight, open field"] > 0.8
    assert erased["turns/exact flight, open field"] < 0.3
    late = _scores(canaries.OneStepLate, game, clips)
    assert late["turns/exact flight"] == 0 and late["turns/no_ball flight"] == 0


def test_constant_velocity_is_right_in_flight_and_wrong_at_turns(game, clips):
    engine = canaries.CopyLast(game[1], canaries.PatchTokenizer())
    engine.grid = (21, 16)
    scores = turn_scores(engine, clips)
    right = {
        kind: scores[f"turns/within_1px {kind}"].baselines["constant_velocity"].value
        for kind in ("flight", "side wall", "paddle")
    }
    assert right["flight"] > 0.95 > 0.5 > right["paddle"]


def test_rare_speeds_and_places_are_filled_up_and_leave_the_row_of_flight_alone(game):
    data, rows = game[0], {}
    for per_kind in (240, 10**6):  # 10**6: all there are
        starts, kinds = turn_starts("breakout", data.ram, data.episode_ids, per_kind=per_kind)
        assert len(set(starts)) == len(starts)
        engine = canaries.CopyLast(game[1], canaries.PatchTokenizer())
        engine.grid = (21, 16)
        scores = turn_scores(engine, cut_clips(data, starts, 1, kinds))
        rows[per_kind] = {name: row.num_samples for name, row in scores.items()}
        assert not [name for name in scores if MORE_FLIGHT in name]
    few, every = rows.values()
    assert few["turns/exact flight"] == 240 < every["turns/exact flight"]
    parts = {name for name in every if name.startswith("turns/exact flight, ")}
    assert parts and all(few[name] >= min(40, every[name]) for name in parts)
    assert any(few[name] == 40 < every[name] for name in parts)


def test_a_recording_of_twenty_frames_has_starts():
    data, _ = canaries.record_with_states(seed=3, num_steps=19)
    starts, _ = stratified_starts(data, 4, 5, np.random.default_rng(0))
    assert len(data) == 20 and len(starts) and starts.max() < 15


def test_pong_has_kinds_of_its_own():
    data, _ = canaries.record_with_states(seed=1, num_steps=400, game="pong")
    _, kinds = turn_starts("pong", data.ram, data.episode_ids, per_kind=20)
    assert {"flight", "paddle"} <= set(kinds) <= {"flight", "wall", "paddle", "serve", "lost"}


def test_bounces_are_drawn_real_over_dreamed(game, vqvae, world_model, tmp_path, monkeypatch, ends):
    data, engine = game[0], DreamEngine(vqvae, world_model)
    gold = EvaluationSet(data, *([[]] * 4), None, True, "", "")
    monkeypatch.setattr(bounces, "load_gold", lambda game: gold)
    monkeypatch.setattr(bounces.DreamEngine, "load", lambda *_: engine)
    monkeypatch.setattr(bounces, "KINDS", {"breakout": ("paddle", "brick")})
    clips = bounces.bounces(data)
    before, after, later = (clips.objects_at(bounces.LEAD_STEPS + k) for k in range(3))
    assert later.ball[0, 1] < before.ball[0, 1] and before.ball[0, 1] > 60  # off the paddle
    assert after.bricks[1].sum() == before.bricks[1].sum() - 1
    path = tmp_path / "bounces.png"
    assert bounces.main(["--out", str(path), "--weights", "shipped", "latest"]) == 0
    with Image.open(path) as picture:
        assert picture.size == (3 * (8 * 66 - 2), 3 * (6 * 86 - 2))
        shown = np.asarray(picture)[1::3, 1::3]
    assert np.array_equal(shown[:84, 132:196], clips.frames_at(2)[0])
    assert np.array_equal(shown[86:170, :64], clips.frames_at(0)[0])  # what the dream knows
    ends(bounces.main, ["--game", "freeway"], 2, "breakout")
