"""Open-loop rollouts against the game: tokens, pixels, ball, paddle, bricks, digits.

Contract: every number of a dream is compared at the same horizon with the real frame and
memory, beside what copying the last real frame (and flying on at constant velocity) would score.
What a game lacks (bricks, lives, an opponent) has no row. Knows nothing of engines or files.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from v2.eval import metrics
from v2.eval.engine import Dreams, Scores
from v2.eval.intervals import (
    Metric,
    first_miss_metric,
    half_life_metric,
    mean_metric,
    quantile_metric,
)
from v2.eval.objects import detector
from v2.eval.objects.base import Objects
from v2.eval.starts import HISTORY, Clips, strata_of

HORIZONS = (1, 3, 5, 10, 20, 50, 100, 200)
STRATUM_HORIZONS = (1, 5, 10, 20)
STRATUM_ROWS = (
    "ball_hit_2px", "ball_hit_1px", "ball_recall", "ball_precision", "ball_duplicates",
    "ball_error_px",
)  # fmt: skip
HIT_RADII_PX = (1, 2)
LOST_PADDLE_ERROR_PX = 32.0  # half the field
PICTURE_PX = (64, 84)  # width and height


@dataclasses.dataclass
class Rollouts:
    """Clips and what was dreamed of them."""

    clips: Clips
    dreams: Dreams
    tokens: dict  # horizon -> tokens (B, N) of the real frames, horizon 0 included
    kept: dict  # horizon -> real frames (B, 84, 64, 3) after a tokenizer round trip, the ceiling


def rollout_scores(
    near: Rollouts, far: Rollouts | None = None, horizons: Sequence[int] = HORIZONS
) -> Scores:
    """Score dreams at every horizon up to the last.

    Args:
        near: many, which decide all horizons that they reach.
        far: fewer and longer ones, for the horizons beyond.
    """
    scores: Scores = {}
    found, last = [], 0
    for rollouts in [near] + ([far] if far else []):
        reached = [h for h in horizons if last < h <= rollouts.clips.horizon]
        last = rollouts.clips.horizon
        for h in reached:
            scores |= _picture_rows(rollouts, h)
        if not detector.has_truth(near.clips.game):
            continue
        found.append(DetectedObjects(rollouts.clips, rollouts.dreams))
        for h in reached:
            ceiling = detector.read_frames(near.clips.game, rollouts.kept[h])
            rows = _ball_rows(found[-1], h, ceiling=ceiling)
            scores |= {f"rollout/{row}@{h}": metric for row, metric in rows.items()}
            scores |= _other_rows(found[-1], h)
    if found:
        scores |= _time_rows(found)
        scores |= _loss_row(found[0])
        scores |= _stratum_rows(found[0], [h for h in horizons if h <= near.clips.horizon])
    return scores


def _picture_rows(rollouts: Rollouts, h: int) -> Scores:
    clips, tokens, kept = rollouts.clips, rollouts.tokens, rollouts.kept
    frames, dreamed = rollouts.dreams.at(h)
    real, last, episodes = clips.frames_at(h), clips.frames_at(0), clips.episodes
    rows = {
        f"rollout/token_accuracy@{h}": (metrics.token_accuracy, dreamed, tokens[h], {
            "copy_last": tokens[0]}),
        f"rollout/psnr@{h}": (metrics.psnr, frames, real, {
            "copy_last": last, "ceiling": kept[h]}),
        f"rollout/ssim@{h}": (metrics.ssim, frames, real, {
            "copy_last": last, "ceiling": kept[h]}),
    }  # fmt: skip
    scores = {}
    for name, (measure, seen, target, others) in rows.items():
        scores[name] = mean_metric(measure(seen, target), episodes)
        for baseline, values in others.items():
            scores[name].baselines[baseline] = mean_metric(measure(values, target), episodes)
    counts = metrics.change_counts(dreamed, tokens[h], tokens[0])  # since the last real frame
    row = mean_metric(counts["changed_right"], episodes, counts["changed"])
    row.baselines["copy_last"] = Metric(0.0)
    return scores | {f"rollout/changed_accuracy@{h}": row}


class DetectedObjects:
    """The objects of clips and dreams at every horizon, each detected once.

    `start` is what the last real frame shows: baselines know no ball that only memory holds.
    """

    def __init__(self, clips: Clips, dreams: Dreams):
        self.clips, self.episodes = clips, clips.episodes
        self.true = [clips.objects_at(h) for h in range(clips.horizon + 1)]
        self.seen: dict[int, Objects] = {
            h: detector.read_frames(clips.game, dreams.at(h)[0]) for h in dreams.horizons
        }
        before = detector.read_ram(clips.game, clips.ram[:, HISTORY - 2])
        self.start = dataclasses.replace(self.true[0], ball=_in_sight(self.true[0]))
        self.velocity = self.start.ball - _in_sight(before)  # NaN unless seen at both
        seen = {h: objects.bricks for h, objects in self.seen.items()}
        self.absent = absent_before(self.start.bricks, seen)

    def guesses(self, h: int) -> dict[str, Objects]:
        """Return what the baselines show: the last real frame, and its ball flown on."""
        flown = self.start.ball + h * self.velocity
        is_inside = ((flown >= 0) & (flown <= PICTURE_PX)).all(1)
        flown = np.where(is_inside[:, None], flown, np.nan)
        moved = dataclasses.replace(self.start, ball=flown, num_balls=is_inside.astype(int))
        return {"copy_last": self.start, "constant_velocity": moved}


def _in_sight(objects: Objects) -> np.ndarray:
    """Return the ball (N, 2) where it can be seen."""
    return np.where(objects.num_balls[:, None] > 0, objects.ball, np.nan)


def absent_before(start: np.ndarray, seen: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Return, for each horizon, the bricks that were absent at the start or in the dream since."""
    absent, before = ~start, {}
    for h in sorted(seen):
        before[h] = absent
        absent = absent | ~seen[h]
    return before


def ball_rows(true: Objects, seen: Objects, episodes: np.ndarray) -> Scores:
    """Score the ball: its place (recall, precision, hits, error) apart from its presence.

    Seen is a ball anywhere where there is a real one; possible are as many balls as there are real
    ones; a hit is exactly one ball, near the real one. Recall and precision are within 2 px.
    """
    counts = metrics.ball_counts(true, seen)
    balls, visible = counts["balls"], counts["visible"]
    possible = np.minimum(balls, ~np.isnan(true.ball[:, 0]))
    errors = np.where(visible, metrics.ball_errors(true, seen), np.nan)
    rows = {
        "ball_seen": mean_metric(counts["found"], episodes, visible),
        "ball_possible": mean_metric(possible, episodes, balls),
        "ball_recall": mean_metric(counts["hits"], episodes, visible),
        "ball_precision": mean_metric(balls - counts["false_balls"], episodes, balls),
        "ball_duplicates": mean_metric(counts["duplicates"], episodes),
        "ball_error_px": quantile_metric(errors, episodes, 0.5),
        "ball_error_p90_px": quantile_metric(errors, episodes, 0.9),
    }
    for radius in HIT_RADII_PX:
        rows[f"ball_hit_{radius}px"] = mean_metric(_hits(true, seen, radius), episodes, visible)
    return rows


def _hits(true: Objects, seen: Objects, radius: float) -> np.ndarray:
    """Tell where exactly one ball is seen, near the true one."""
    counts = metrics.ball_counts(true, seen, radius)
    return counts["hits"] & ~counts["duplicates"]


def _ball_rows(
    detected: DetectedObjects, h: int, chosen=np.s_[:], ceiling: Objects | None = None
) -> Scores:
    """Score the ball in the chosen clips, its baselines in the same rows."""
    true, episodes = detected.true[h][chosen], detected.episodes[chosen]
    rows = ball_rows(true, detected.seen[h][chosen], episodes)
    others = {} if ceiling is None else {"ceiling": ceiling}
    for name, objects in (others | detected.guesses(h)).items():
        for row, metric in ball_rows(true, objects[chosen], episodes).items():
            rows[row].baselines[name] = metric
    return rows


def _other_rows(detected: DetectedObjects, h: int) -> Scores:
    true, seen, start = detected.true[h], detected.seen[h], detected.start
    episodes = detected.episodes
    scores: Scores = {}
    for name, objects in (("", seen), ("copy_last", start)):
        rows = {"paddle_error_px": paddle_error(objects.paddle, true.paddle, episodes)}
        if np.isfinite(true.opponent).any():
            error = paddle_error(objects.opponent, true.opponent, episodes)
            rows["opponent_error_px"] = error
        if true.bricks.size:
            absent = ~start.bricks if name else detected.absent[h]
            rows |= _brick_rows(objects.bricks, true.bricks, start.bricks, absent, episodes)
        for digits in ("score", "lives"):
            known = getattr(true, digits)
            if (known >= 0).any():  # -1: not readable
                right = _digits_right(getattr(objects, digits), known, episodes)
                rows[f"{digits}_right"] = right
        for row, metric in rows.items():
            if name:
                scores[f"rollout/{row}@{h}"].baselines[name] = metric
            else:
                scores[f"rollout/{row}@{h}"] = metric
    return scores


def paddle_error(seen: np.ndarray, true: np.ndarray, episodes) -> Metric:
    """Return the mean error where there is a paddle; one not seen is off by half the field."""
    error = np.abs(seen - true)
    error = np.where(np.isnan(error), LOST_PADDLE_ERROR_PX, error)
    return mean_metric(np.where(np.isnan(true), np.nan, error), episodes, is_share=False)


def _brick_rows(seen, true, start, absent, episodes) -> Scores:
    bricks = metrics.brick_counts(true, seen)
    removals = metrics.brick_counts(start & ~true, start & ~seen)
    illegal = (seen & absent & ~true).sum((1, 2))
    return {
        "brick_f1": mean_metric(2.0 * bricks["both"], episodes, bricks["there"] + bricks["seen"]),
        "brick_removal_f1": mean_metric(
            2.0 * removals["both"], episodes, removals["there"] + removals["seen"]
        ),
        "bricks_reappeared": mean_metric(illegal, episodes, is_share=False),
    }


def _digits_right(seen: np.ndarray, true: np.ndarray, episodes) -> Metric:
    return mean_metric((seen == true) & (true >= 0), episodes, true >= 0)


def _time_rows(found: list[DetectedObjects]) -> Scores:
    """Score for how long the ball is right (exactly one, within 2 px), over all clips.

    The last horizon stands for "not within the clip". Steps at which no real ball can be seen
    neither count for it nor against it.
    """
    steps = max(len(detected.seen) for detected in found)
    episodes = np.concatenate([detected.episodes for detected in found])
    scores: Scores = {}
    for name in ("", *found[0].guesses(1)):
        hits, visible = (np.concatenate(part) for part in zip(
            *(_seen_right(detected, name, steps) for detected in found), strict=True))  # fmt: skip
        rows = {
            "rollout/ball_half_life": half_life_metric(hits, visible, episodes),
            "rollout/ball_first_miss": first_miss_metric(hits, visible, _reached(found), episodes),
        }
        for row, metric in rows.items():
            if name:
                scores[row].baselines[name] = metric
            else:
                scores[row] = metric
    return scores


def _seen_right(detected: DetectedObjects, name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the ball is right and where it can be seen, bool (B, steps), by step."""
    right, visible = np.zeros((2, len(detected.episodes), steps), bool)
    for h, seen in detected.seen.items():
        shown = detected.guesses(h)[name] if name else seen
        right[:, h - 1] = _hits(detected.true[h], shown, 2)
        visible[:, h - 1] = detected.true[h].num_balls > 0
    return right, visible


def _reached(found: list[DetectedObjects]) -> np.ndarray:
    """Return how long each clip is, (B,)."""
    return np.concatenate([np.full(len(d.episodes), len(d.seen)) for d in found])


def _stratum_rows(detected: DetectedObjects, horizons) -> Scores:
    """Score the ball apart for what happens right after the start."""
    scores: Scores = {}
    for stratum in strata_of(detected.clips.game):
        chosen = detected.clips.strata == stratum
        for h in (h for h in horizons if h in STRATUM_HORIZONS and chosen.any()):
            rows = _ball_rows(detected, h, chosen)
            scores |= {f"rollout/{row}[{stratum}]@{h}": rows[row] for row in STRATUM_ROWS}
    return scores


def _loss_row(detected: DetectedObjects) -> Scores:
    """Score whether the digits show a lost ball within one step of when the game shows it.

    Of the clips in which one is lost soon; in Breakout the lives tell, in Pong the points.
    """
    chosen = detected.clips.strata == strata_of(detected.clips.game)[-1]
    counter = "lives" if (detected.true[0].lives >= 0).any() else "score"
    if not chosen.any():
        return {}
    start, first = getattr(detected.true[0], counter)[chosen], []
    for shown in (detected.true, detected.seen):
        digits = np.stack([getattr(shown[h], counter)[chosen] for h in detected.seen], 1)
        is_other = (digits != start[:, None]) & (digits >= 0)
        first.append(np.where(is_other.any(1), is_other.argmax(1), np.inf))
    is_known = np.isfinite(first[0]) & (start >= 0)
    in_time = np.abs(first[1][is_known] - first[0][is_known]) <= 1
    row = mean_metric(in_time, detected.episodes[chosen][is_known])
    row.baselines["copy_last"] = Metric(0.0)
    return {"rollout/loss_in_time": row}
