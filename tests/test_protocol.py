"""Every canary ranks where it must, and each defect is caught by the metric made for it."""

import dataclasses

import numpy as np
import pytest

from tests import canaries
from v2.eval.branches import Branches, branch_scores, shuffle_scores
from v2.eval.engine import dream, encode, speed_scores
from v2.eval.intervals import first_miss_metric
from v2.eval.long_dreams import _one_ball, long_dream_scores
from v2.eval.objects import detector
from v2.eval.objects.breakout import SERVE_STEPS
from v2.eval.one_step import LEAD_STEPS, ending_scores, one_step_scores
from v2.eval.rollouts import (
    DetectedObjects,
    Rollouts,
    absent_before,
    paddle_error,
    rollout_scores,
)
from v2.eval.starts import HISTORY, Clips, cut_clips, even_starts, random_starts, stratified_starts
from v2.eval.tokenizer import tokenizer_scores
from v2.eval.validate import quick_scores

HORIZON, HORIZONS = 20, (1, 5, 10, 20)
GAME_STEPS = 700


@pytest.fixture(scope="module")
def game():
    return canaries.record_with_states(seed=1_990_000_007, num_steps=GAME_STEPS)


@pytest.fixture(scope="module")
def clips(game) -> Clips:
    starts, strata = stratified_starts(game[0], 3, HORIZON, np.random.default_rng(0))
    return cut_clips(game[0], starts, HORIZON, strata)


@pytest.fixture(scope="module")
def branches(game) -> Branches:
    data, states = game
    env = canaries.make_atari_env()
    env.reset()
    parts = []
    for row in even_starts(data, 14, 10)[2:]:
        history, frames, ram = data.frames[row - 3 : row + 1], [], []
        for action in range(4):
            env.unwrapped.restore_state(states[canaries.history_key(history)])
            for _ in range(8):
                frames.append(env.step(action)[0])
                ram.append(env.ram)
        parts.append((history, data.actions[row - 3 : row], np.stack(frames), np.stack(ram), row))
    history, past, frames, ram, rows = (np.stack(part) for part in zip(*parts, strict=True))
    return Branches(
        "breakout", history, past, frames.reshape(-1, 4, 8, 84, 64, 3),
        ram.reshape(-1, 4, 8, 128), rows,
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(game, clips, branches):
    """Evaluate every canary once; return name -> metric name -> value."""
    tokenizer = canaries.PatchTokenizer()
    kinds = (
        canaries.PerfectEngine, canaries.CopyLast, canaries.Blank, canaries.BallErased,
        canaries.BallDoubled, canaries.ActionsIgnored, canaries.ActionsMirrored,
        canaries.OneStepLate, canaries.PaddleLost, canaries.BricksReturn,
        canaries.WrongDigits, canaries.AlwaysOver,
    )  # fmt: skip
    engines = [kind(game[1], tokenizer) for kind in kinds]
    return {type(e).__name__: evaluate_canary(e, clips, branches) for e in engines}


def evaluate_canary(engine, clips, branches) -> dict:
    tokens = {h: encode(engine, clips.frames_at(h)) for h in (0, *HORIZONS)}
    kept = {h: clips.frames_at(h) for h in HORIZONS}
    own = clips.actions[:, HISTORY - 1 :]
    dreams = dream(engine, clips.history, clips.past_actions, own)
    metrics = rollout_scores(Rollouts(clips, dreams, tokens, kept), horizons=HORIZONS)
    metrics |= one_step_scores(engine, clips)
    metrics |= branch_scores(engine, branches)[0]
    metrics |= shuffle_scores(engine, clips, dreams)
    return metrics


def value(evaluated, canary: str, name: str) -> float:
    return evaluated[canary][name].value


def test_the_perfect_model_is_perfect(evaluated):
    assert value(evaluated, "PerfectEngine", "rollout/psnr@20") == 60
    for name in ("one_step/token_accuracy", "rollout/token_accuracy@20", "rollout/score_right@10",
                 "rollout/brick_f1@20", "branches/right_branch@3", "one_step/changed_accuracy",
                 "rollout/lives_right@20", "branches/right_branch_pixels@8",
                 "rollout/changed_accuracy@10", "rollout/brick_removal_f1@20"):  # fmt: skip
        assert value(evaluated, "PerfectEngine", name) == pytest.approx(1), name
    for name in ("rollout/ball_recall@10", "rollout/ball_hit_2px@20", "rollout/ball_precision@5",
                 "rollout/ball_seen@10", "rollout/ball_possible@5"):  # fmt: skip
        assert value(evaluated, "PerfectEngine", name) >= 0.97, name
    assert value(evaluated, "PerfectEngine", "rollout/ball_half_life") == HORIZON
    assert value(evaluated, "PerfectEngine", "branches/separation@5") == pytest.approx(1, abs=0.05)
    assert value(evaluated, "PerfectEngine", "rollout/paddle_error_px@20") < 0.1


@pytest.mark.parametrize("name", [
    "rollout/token_accuracy@5", "rollout/psnr@5", "rollout/ssim@5", "rollout/ball_hit_2px@5",
    "one_step/token_accuracy",
])  # fmt: skip
def test_no_canary_beats_the_perfect_model(evaluated, name):
    best = value(evaluated, "PerfectEngine", name)
    for canary in evaluated:
        assert value(evaluated, canary, name) <= best, canary
    for canary in ("CopyLast", "Blank", "OneStepLate"):
        assert value(evaluated, canary, name) < best, canary


def test_copy_last_scores_what_its_baseline_says(evaluated):
    for name in ("one_step/token_accuracy", "rollout/token_accuracy@10", "rollout/psnr@10",
                 "rollout/ball_hit_2px@5", "rollout/paddle_error_px@10"):  # fmt: skip
        metric = evaluated["CopyLast"][name]
        assert metric.value == pytest.approx(metric.baselines["copy_last"].value, abs=0.05), name
    assert value(evaluated, "CopyLast", "one_step/changed_accuracy") == 0
    assert value(evaluated, "CopyLast", "rollout/changed_accuracy@10") == 0
    copied = value(evaluated, "CopyLast", "one_step/cross_entropy")
    assert value(evaluated, "PerfectEngine", "one_step/cross_entropy") < 0.01 * copied
    assert value(evaluated, "CopyLast", "one_step/false_changes") == 0


def test_an_erased_ball_is_missed_although_the_picture_is_fine(evaluated):
    assert value(evaluated, "BallErased", "rollout/psnr@5") > 40
    assert value(evaluated, "BallErased", "rollout/token_accuracy@5") > 0.98
    for row in ("rollout/ball_seen@5", "rollout/ball_recall@5"):
        perfect = value(evaluated, "PerfectEngine", row)
        assert value(evaluated, "BallErased", row) < perfect - 0.3
    assert value(evaluated, "BallErased", "rollout/ball_hit_2px[flight]@1") < 0.5


def test_a_doubled_ball_is_counted(evaluated):
    assert value(evaluated, "PerfectEngine", "rollout/ball_duplicates@5") == 0
    assert value(evaluated, "BallDoubled", "rollout/ball_duplicates@5") > 0.3
    assert value(evaluated, "BallDoubled", "rollout/ball_precision@5") < 0.85
    assert value(evaluated, "BallDoubled", "rollout/ball_possible@5") < 0.85
    assert value(evaluated, "BallDoubled", "rollout/ball_duplicates[flight]@1") > 0.3
    assert value(evaluated, "BallDoubled", "rollout/ball_precision[flight]@1") < 0.85


def test_ignored_actions_are_at_chance(evaluated):
    assert value(evaluated, "ActionsIgnored", "branches/separation@5") == pytest.approx(0, abs=0.05)
    row = evaluated["ActionsIgnored"]["branches/right_branch@5"]
    assert row.value == pytest.approx(1 / 3) == row.baselines["chance"].value
    assert value(evaluated, "ActionsIgnored", "actions/shuffle_loss_db@10") == pytest.approx(0)
    assert value(evaluated, "PerfectEngine", "actions/shuffle_loss_db@10") > 1


def test_mirrored_actions_are_worse_than_chance(evaluated):
    assert value(evaluated, "ActionsMirrored", "branches/separation@5") < -0.7
    row = evaluated["ActionsMirrored"]["branches/right_branch_pixels@8"]
    assert row.value < value(evaluated, "PerfectEngine", "branches/right_branch_pixels@8") - 0.3
    row = evaluated["ActionsMirrored"]["branches/right_branch@5"]
    assert row.value <= row.baselines["chance"].value  # no-op alone is right


def test_a_step_late_is_a_step_of_flight_behind(evaluated):
    late = value(evaluated, "OneStepLate", "rollout/ball_error_px@5")
    assert late > 1.0 > value(evaluated, "PerfectEngine", "rollout/ball_error_px@5")
    assert value(evaluated, "OneStepLate", "one_step/changed_accuracy") < 0.5
    for row in ("rollout/ball_half_life", "rollout/ball_first_miss"):
        for canary in ("BallErased", "BallDoubled", "OneStepLate"):
            assert value(evaluated, canary, row) < value(evaluated, "PerfectEngine", row), canary


def test_the_first_miss_of_a_copy_is_what_its_baseline_says(evaluated):
    row = evaluated["CopyLast"]["rollout/ball_first_miss"]
    assert row.value == row.baselines["copy_last"].value <= 2
    assert row.baselines["copy_last"].value <= row.baselines["constant_velocity"].value < 10
    assert value(evaluated, "PerfectEngine", "rollout/ball_first_miss") == HORIZON
    assert value(evaluated, "Blank", "rollout/ball_first_miss") == 1


def test_the_first_miss_is_a_median_and_clips_that_end_before_it_count_until_then():
    def median(misses, reached, hidden=()):
        hits, visible = np.ones((len(misses), 9), bool), np.arange(9) < np.array(reached)[:, None]
        for row, miss in enumerate(misses):
            hits[row, miss - 1 :] &= not miss  # 0: never
        for row, step in hidden:
            visible[row, step - 1] = False
        return first_miss_metric(hits, visible, np.array(reached), np.arange(len(misses))).value

    assert median([2, 4, 7], [9] * 3) == 4
    assert median([2, 0, 0], [9] * 3) == 9  # not within the clip
    assert median([2, 4, 7], [9] * 3, hidden=[(1, 4)]) == 5  # unseen: neither for it nor against it
    assert median([3, 0, 0, 6], [9, 4, 4, 9]) == 6  # two end at 4: one is left, and misses
    assert median([3, 0, 0, 6], [9] * 4) == 9


def test_far_rollouts_decide_the_horizons_beyond_the_near_ones(game):
    """All that is near is of the near ones, whatever the far ones show."""
    data, states = game
    tokenizer, parts = canaries.PatchTokenizer(), {}
    for name, kind, count, steps in (
        ("near", canaries.PerfectEngine, 12, 5), ("far", canaries.Blank, 6, 10)
    ):  # fmt: skip
        starts = even_starts(data, count, steps)[1:]
        clips, engine = cut_clips(data, starts, steps), kind(states, tokenizer)
        dreams = dream(engine, clips.history, clips.past_actions, clips.actions[:, HISTORY - 1 :])
        tokens = {h: encode(engine, clips.frames_at(h)) for h in (0, *HORIZONS) if h <= steps}
        kept = {h: clips.frames_at(h) for h in tokens}
        parts[name] = Rollouts(clips, dreams, tokens, kept)
    scores = rollout_scores(**parts, horizons=HORIZONS)
    alone = rollout_scores(parts["near"], horizons=HORIZONS)
    assert scores["rollout/psnr@5"].value == 60 > 30 > scores["rollout/psnr@10"].value
    assert {name for name in scores if name not in alone} == {
        name for name in scores if name.endswith("@10")
    }
    assert scores["rollout/ball_hit_2px@5"].num_samples == 11
    assert scores["rollout/ball_half_life"].value == 6 > 5 == alone["rollout/ball_half_life"].value


def test_flying_on_beats_copying_where_nothing_turns(evaluated, clips):
    row = evaluated["CopyLast"]["rollout/ball_hit_2px@1"]
    assert row.baselines["constant_velocity"].value > 0.5 > row.baselines["copy_last"].value
    row = evaluated["CopyLast"]["rollout/ball_seen@5"].baselines["constant_velocity"]
    assert row.value > 0.2  # a ball that has flown out of the picture is not seen
    last = evaluated["CopyLast"]["rollout/ball_seen@20"].baselines["constant_velocity"]
    assert last.value < 0.1
    assert value(evaluated, "CopyLast", "rollout/ball_seen@20") > 0.5
    assert value(evaluated, "CopyLast", "rollout/ball_recall@20") < 0.2


def test_a_blank_dream_has_no_objects(evaluated):
    assert value(evaluated, "Blank", "rollout/ball_seen@5") == 0
    assert value(evaluated, "Blank", "rollout/brick_f1@5") == 0
    assert value(evaluated, "Blank", "rollout/paddle_error_px@5") == 32
    assert value(evaluated, "Blank", "rollout/ball_half_life") == 1


def test_a_lost_paddle_and_returning_bricks_are_caught(evaluated):
    assert value(evaluated, "PaddleLost", "rollout/paddle_error_px@1") == 32
    assert value(evaluated, "BricksReturn", "rollout/bricks_reappeared@20") > 0.5
    assert value(evaluated, "PerfectEngine", "rollout/bricks_reappeared@20") == 0
    assert value(evaluated, "PaddleLost", "rollout/ball_recall@1") > 0.9


def test_the_baselines_know_no_ball_that_only_memory_holds(game, clips):
    ram = clips.ram.copy()
    ram[:, :HISTORY, 99], ram[:, :HISTORY, 101] = 49 + 80, 57 + 13 - 9  # inside the third row
    ram[:, :HISTORY, :36] = 255  # of a whole wall
    hidden = dataclasses.replace(clips, ram=ram)
    true = hidden.objects_at(0)
    assert not true.num_balls.any() and np.isfinite(true.ball).all()
    own = clips.actions[:, HISTORY - 1 :]
    engine = canaries.PerfectEngine(game[1], canaries.PatchTokenizer())
    dreams = dream(engine, clips.history, clips.past_actions, own)
    guesses = DetectedObjects(hidden, dreams).guesses(1)
    for guess in guesses.values():
        assert np.isnan(guess.ball).all() and not guess.num_balls.any()


def test_a_distance_of_nothing_is_no_share():
    exact = paddle_error(np.full(5, 30.0), np.full(5, 30.0), np.arange(5))
    assert (exact.value, exact.low, exact.high) == (0, 0, 0)


def test_a_brick_that_was_gone_in_the_dream_may_not_come_back():
    there, gone = np.ones((1, 6, 18), bool), np.ones((1, 6, 18), bool)
    gone[0, 5, 3] = False
    absent = absent_before(there, {1: there, 5: gone, 6: there})
    assert not absent[1].any() and not absent[5].any()
    assert absent[6].sum() == 1 and absent[6][0, 5, 3]


def test_a_dream_that_never_serves_has_no_ball_in_play():
    balls, places = np.zeros(100, int), np.full((100, 2), np.nan)
    balls[:20], places[:20, 1] = 1, np.linspace(40, 70, 20)  # lost near the floor
    for starts_in_play in (True, False):  # a recorded game that is never served counts alike
        dead = _one_ball("breakout", [(balls, places)], [0], starts_in_play)
        assert dead.value == pytest.approx(20 / (100 - SERVE_STEPS))
    unseen = np.zeros(100, int), np.full((100, 2), np.nan)
    assert _one_ball("breakout", [unseen], [0], starts_in_play=True).value == 0
    assert np.isnan(_one_ball("breakout", [unseen], [0], starts_in_play=False).value)


def test_a_long_dream_is_evaluated_by_what_it_dreamed(game, clips):
    """The last real frame has a ball, the dream never: not one step of it counts as seen."""
    data, states = game
    engine = canaries.Blank(states, canaries.PatchTokenizer())
    flight = clips.strata == "flight"
    scores, _ = long_dream_scores(
        engine, "breakout", data.meta["action_meanings"], clips.history[flight],
        clips.past_actions[flight], clips.episodes[flight], 20, [data.frames[:60]], [False],
        data.frames[::5], num_codes=5000,
    )  # fmt: skip
    assert scores["long/ball_seen"].value == 0


def test_horizons_count_steps_after_the_last_real_frame(game, clips):
    data, _ = game
    starts, _ = stratified_starts(data, 3, HORIZON, np.random.default_rng(0))
    assert (clips.frames_at(0) == data.frames[starts]).all()
    assert (clips.frames_at(3) == data.frames[starts + 3]).all()
    assert (clips.actions_to(1) == data.actions[starts]).all()


def test_strata_hold_what_they_are_named_after(clips):
    first = clips.objects_at(0)
    lives = clips.ram[:, 3:, 57].astype(int)  # the picture may show them a step late
    bricks = np.stack([clips.objects_at(h).bricks.sum((1, 2)) for h in range(5)], 1)
    lost = (np.diff(lives, axis=1) < 0).any(1)
    assert (lost == (clips.strata == "life_lost")).all()
    assert (bricks[clips.strata == "brick"].min(1) < bricks[clips.strata == "brick"][:, 0]).all()
    assert np.isnan(first.ball[clips.strata == "serve"]).all()
    assert not np.isnan(first.ball[clips.strata == "flight"]).any()


def test_the_tokenizer_is_scored_against_memory(game, clips):
    engine = canaries.PerfectEngine(game[1], canaries.PatchTokenizer())
    scores = tokenizer_scores(engine, clips)
    assert scores["tokenizer/psnr"].value == 60
    assert scores["tokenizer/ball_recall"].value >= 0.97
    assert scores["tokenizer/spurious_changes"].value == 0


def test_rewards_and_endings_are_scored(evaluated):
    for row in ("f1", "precision", "recall"):
        assert value(evaluated, "PerfectEngine", f"reward/{row}") == 1
    assert value(evaluated, "AlwaysOver", "reward/recall") == 0


def test_ends_that_are_missed_or_invented_are_counted(game, clips):
    class Knows(canaries.PerfectEngine):
        def step(self, actions):
            shown = super().step(actions)
            self.last_terminated = np.arange(len(shown)) == 2
            return shown

    terminated = np.zeros_like(clips.terminated)
    terminated[2, HISTORY - 1] = True
    few = cut_clips(game[0], even_starts(game[0], 8, 1), 1)
    few = dataclasses.replace(few, terminated=terminated[: len(few), :HISTORY])
    expected = {Knows: (1, 1), canaries.AlwaysOver: (1 / 8, 1), canaries.PerfectEngine: (None, 0)}
    for kind, (precision, recall) in expected.items():
        scores = one_step_scores(kind(game[1], canaries.PatchTokenizer()), few)
        assert scores["termination/recall"].value == recall
        assert precision is None or scores["termination/precision"].value == precision


@pytest.mark.parametrize("ends_at, share", [(1, 0), (2, 1), (LEAD_STEPS, 1), (4, 1), (5, 0)])
def test_a_game_that_ends_in_the_dream_ends_in_time_or_not(game, ends_at, share):
    class Ends(canaries.PerfectEngine):
        def reset(self, frames, actions=None):
            self.num_steps = 0
            return super().reset(frames, actions)

        def step(self, actions):
            shown = super().step(actions)
            self.num_steps += 1
            self.last_terminated = np.full(len(shown), float(self.num_steps >= ends_at))
            return shown

    led = cut_clips(game[0], even_starts(game[0], 30, LEAD_STEPS), LEAD_STEPS)
    scores = ending_scores(Ends(game[1], canaries.PatchTokenizer()), led)
    assert scores["termination/in_time"].value == share


def test_a_lost_life_is_shown_in_time_or_not(evaluated):
    expected = {"PerfectEngine": 1, "OneStepLate": 1, "CopyLast": 0, "Blank": 0, "WrongDigits": 0}
    found = {canary: value(evaluated, canary, "rollout/loss_in_time") for canary in expected}
    assert found == expected


def test_digits_that_cannot_be_read_are_not_right(evaluated):
    for digits in ("score", "lives"):
        assert value(evaluated, "WrongDigits", f"rollout/{digits}_right@10") == 0


def test_a_tokenizer_that_loses_the_ball_is_found_out(game, clips):
    data, states = game
    perfect, lossy = (
        tokenizer_scores(canaries.PerfectEngine(states, tokenizer()), clips, 5000)
        for tokenizer in (canaries.PatchTokenizer, canaries.LossyTokenizer)
    )
    assert perfect["tokenizer/ball_recall"].value > 0.95
    assert lossy["tokenizer/ball_recall"].value < 0.5
    assert perfect["tokenizer/psnr"].value == 60 > lossy["tokenizer/psnr"].value + 5


def test_frames_that_the_tokenizer_does_not_know_are_out_of_distribution(game, clips):
    """It keeps the game's frames but for a few grey levels, and no other ones."""

    class Narrow(canaries.PatchTokenizer):
        def decode(self, tokens):
            frames = super().decode(tokens)
            is_game = frames[:, 75:78].max((1, 2, 3)) > 0  # a paddle is there
            return np.where(is_game[:, None, None, None], frames, 255 - frames)

    data, states = game
    flight = clips.strata == "flight"
    shares = {}
    for kind in (canaries.PerfectEngine, canaries.Blank):
        scores, _ = long_dream_scores(
            kind(states, Narrow()), "breakout", data.meta["action_meanings"],
            clips.history[flight], clips.past_actions[flight], clips.episodes[flight], 60,
            [data.frames[:300]], [False], data.frames[::5], num_codes=5000,
        )  # fmt: skip
        shares[kind.__name__] = scores["long/out_of_distribution"].value
        assert scores["long/out_of_distribution"].baselines["real"].value < 0.1
        usage = {k: m.value for k, m in scores.items() if k.startswith("long/code_kl")}
        shares[f"{kind.__name__} codes"] = max(usage.values())
    assert shares["PerfectEngine"] < 0.1 and shares["Blank"] == 1
    assert shares["Blank codes"] > shares["PerfectEngine codes"] + 0.1


def test_long_dreams_tell_a_living_game_from_a_dead_one(game, clips):
    data, states = game
    flight = clips.strata == "flight"
    real = [data.frames[:300]]
    scores = {}
    for kind in (canaries.PerfectEngine, canaries.BallErased, canaries.CopyLast):
        engine = kind(states, canaries.PatchTokenizer())
        scores[kind.__name__], pictures = long_dream_scores(
            engine, "breakout", data.meta["action_meanings"], clips.history[flight],
            clips.past_actions[flight], clips.episodes[flight], 100, real,
            [False] * len(real), data.frames[::5], num_codes=5000,
        )  # fmt: skip
        assert pictures.shape == (3, 5, 84, 64, 3)
    perfect, erased, still = scores.values()
    assert perfect["long/one_ball"].value > 0.85
    assert erased["long/one_ball"].value < perfect["long/one_ball"].value - 0.2
    assert still["long/frozen_frames"].value == 1 > perfect["long/frozen_frames"].value + 0.5


def test_a_long_dream_begins_anew_when_it_says_that_its_game_is_over(game, clips):
    """One that stands still after its end is not frozen; one that says so at every step is told."""

    class OverAfterTen(canaries.PerfectEngine):
        def reset(self, frames, actions=None):
            self.ages = np.zeros(len(frames), int)
            return super().reset(frames, actions)

        def restart(self, rows):
            super().restart(rows)
            self.ages[rows] = 0

        def step(self, actions):
            before, self.ages = self.shown, self.ages + 1
            shown = super().step(actions)
            self.shown = np.where((self.ages > 10)[:, None, None, None], before, shown)
            self.tokens = self.encode(self.shown)
            self.last_terminated = (self.ages == 10).astype(float)
            return self.shown

    data, states = game
    flight = clips.strata == "flight"
    rows = {}
    for kind in (OverAfterTen, canaries.AlwaysOver, canaries.PerfectEngine):
        rows[kind], _ = long_dream_scores(
            kind(states, canaries.PatchTokenizer()), "breakout", data.meta["action_meanings"],
            clips.history[flight], clips.past_actions[flight], clips.episodes[flight], 60,
            [data.frames[:300], data.frames[:101]], [False, True], data.frames[::5], num_codes=5000,
        )  # fmt: skip
    over, always, perfect = rows.values()
    assert over["long/frozen_frames"].value <= perfect["long/frozen_frames"].value + 0.05
    assert over["long/one_ball"].value > 0.9
    ends = [scores["long/games_over"] for scores in rows.values()]
    assert [row.value for row in ends] == pytest.approx([100, 1000, 0])
    assert ends[0].baselines["real"].value == pytest.approx(1000 / 399)


def test_quick_scores_are_cheap_and_rank_the_canaries(game):
    data, states = game
    starts = random_starts(data, 8, 10, np.random.default_rng(0))
    clips, scores = cut_clips(data, starts, 10), {}
    for kind in (canaries.PerfectEngine, canaries.OneStepLate, canaries.CopyLast):
        engine = kind(states, canaries.PatchTokenizer())
        scores[kind.__name__] = quick_scores(engine, clips)
    perfect, late, copied = scores.values()
    assert perfect["score"] > 0.95 and perfect["token_accuracy@10"] == 1
    assert perfect["score"] > late["score"] > copied["score"]
    assert copied["token_accuracy@5"] == pytest.approx(copied["copy_last@5"])
    assert all(isinstance(number, float) for number in perfect.values())


def test_speed_is_a_share_of_real_time(game, clips):
    engine = canaries.PerfectEngine(game[1], canaries.PatchTokenizer())
    scores = speed_scores(engine, clips, steps_per_second=15, steps=5)
    rate = scores["speed/steps_per_second"].value
    assert scores["speed/real_time_factor"].value == pytest.approx(rate / 15)


@pytest.fixture(scope="module")
def pong():
    return canaries.record_with_states(seed=1_990_000_009, num_steps=500, game="pong")


def test_pongs_ball_flies_straight_where_that_is_the_stratum_and_turns_elsewhere(pong):
    data, _ = pong
    starts, strata = stratified_starts(data, 4, HORIZON, np.random.default_rng(0))
    ball, strata = detector.read_ram("pong", data.ram).ball, np.array(strata)
    straight = ball[starts] + 5 * (ball[starts] - ball[starts - 1])
    misses = np.linalg.norm(straight - ball[starts + 5], axis=1)
    assert (misses[strata == "flight"] < 1).all()
    assert (misses[np.isin(strata, ("wall", "paddle"))] > 2).all()
    assert np.isnan(ball[starts[strata == "serve"]]).all()
    points = detector.of_game("pong").losses(detector.read_ram("pong", data.ram))
    made = points[starts + HORIZON] > points[starts - 3]
    assert (made[strata != "serve"] == (strata[strata != "serve"] == "point")).all()


def test_a_perfect_model_of_pong_is_perfect_in_what_pong_has(pong):
    data, states = pong
    starts, strata = stratified_starts(data, 2, HORIZON, np.random.default_rng(0))
    assert {"flight", "wall", "paddle", "point"} <= set(strata)
    clips, scores = cut_clips(data, starts, HORIZON, strata), {}
    for kind in (canaries.PerfectEngine, canaries.CopyLast, canaries.Blank):
        engine = kind(states, canaries.PatchTokenizer(), "pong")
        tokens = {h: encode(engine, clips.frames_at(h)) for h in (0, *HORIZONS)}
        kept = {h: clips.frames_at(h) for h in HORIZONS}
        dreams = dream(engine, clips.history, clips.past_actions, clips.actions[:, HISTORY - 1 :])
        rollouts = Rollouts(clips, dreams, tokens, kept)
        scores[kind.__name__] = rollout_scores(rollouts, horizons=HORIZONS)
        scores[kind.__name__] |= tokenizer_scores(engine, clips)
    perfect, copied, blank = scores.values()
    for name in ("rollout/ball_hit_1px@10", "rollout/ball_precision@20", "rollout/score_right@10",
                 "tokenizer/ball_recall"):  # fmt: skip
        assert perfect[name].value == 1, name
    for name in ("rollout/paddle_error_px@10", "rollout/opponent_error_px@10"):
        assert perfect[name].value < 0.1 < copied[name].value, name
    assert copied["rollout/ball_hit_2px[flight]@5"].value == 0
    for name in ("rollout/paddle_error_px@5", "rollout/opponent_error_px@5"):
        assert blank[name].value == 32, name
    assert blank["rollout/ball_seen@5"].value == 0
    assert not [name for name in perfect if "brick" in name or "lives" in name]
    unknown = [name for name, row in perfect.items() if np.isnan(row.value)]
    assert all("[point]@" in name or "[serve]@" in name for name in unknown)  # hidden then
    assert perfect["rollout/loss_in_time"].value == 1 > copied["rollout/loss_in_time"].value == 0
    quick = quick_scores(canaries.PerfectEngine(states, canaries.PatchTokenizer(), "pong"), clips)
    assert quick["score"] > 0.95 and quick["paddle_error_px@10"] < 0.1


def test_a_long_dream_of_pong_is_played_from_its_pictures(pong):
    data, states = pong
    engine = canaries.PerfectEngine(states, canaries.PatchTokenizer(), "pong")
    starts = even_starts(data, 3, 20)[1:]
    history = np.stack([data.frames[row - 3 : row + 1] for row in starts])
    past = np.stack([data.actions[row - 3 : row] for row in starts])
    scores, _ = long_dream_scores(
        engine, "pong", data.meta["action_meanings"], history, past, np.arange(len(past)), 60,
        [data.frames[:300]], [False], data.frames[::5], num_codes=5000,
    )  # fmt: skip
    assert scores["long/one_ball"].value > 0.9 < scores["long/one_ball"].baselines["real"].value
