"""Open-loop rollouts against the game: tokens, pixels, ball, paddle, bricks, digits.

Contract: the dream is given, every number is compared at the same horizon with the real frame and
memory, beside what copying the last real frame (and flying on at constant velocity) would score.
What a game lacks (bricks, lives, an opponent) has no row. Knows nothing of engines or files.
"""

import dataclasses

import numpy as np

from v2.eval import metrics, truth
from v2.eval.bootstrap import Metric, episode_draws, interval, mean_metric, quantile_metric
from v2.eval.clips import HISTORY, Clips, strata_of
from v2.eval.dreaming import Dreams
from v2.eval.truth import Objects

HORIZONS = (1, 5, 10, 20, 50, 100, 200)
STRATUM_HORIZONS = (1, 5, 10, 20)
HIT_RADII_PX = (1, 2)
LOST_PADDLE_ERROR_PX = 32.0  # half the field
PICTURE_PX = (64, 84)  # width and height
Scores = dict[str, Metric]


def rollout_scores(
    clips: Clips, dreams: Dreams, tokens: dict, kept: dict, horizons=HORIZONS
) -> Scores:
    """Score dreams of every horizon up to the last.

    Args:
        tokens: horizon -> tokens (B, N) of the real frames, horizon 0 included.
        kept: horizon -> real frames (B, 84, 64, 3) after a tokenizer round trip, the ceiling.
    """
    scores: Scores = {}
    horizons = [h for h in horizons if h <= clips.horizon]
    for h in horizons:
        scores |= _picture_rows(clips, dreams, tokens, kept, h)
    if truth.has_truth(clips.game):
        reader = Reader(clips, dreams)
        for h in horizons:
            scores |= _ball_rows(reader, h, kept[h])
            scores |= _other_rows(reader, h)
        scores["rollout/ball_half_life"] = _half_life_row(reader)
        scores |= _stratum_rows(reader, horizons)
    return scores


def _picture_rows(clips, dreams, tokens, kept, h) -> Scores:
    frames, dreamed = dreams.at(h)
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
    return scores


class Reader:
    """The objects of clips and dreams at every horizon, each read once.

    `start` is what the last real frame shows: baselines know no ball that only memory holds.
    """

    def __init__(self, clips: Clips, dreams: Dreams):
        self.clips, self.episodes = clips, clips.episodes
        self.true = [clips.objects_at(h) for h in range(clips.horizon + 1)]
        self.seen: dict[int, Objects] = {
            h: truth.read_frames(clips.game, dreams.at(h)[0]) for h in dreams.horizons
        }
        before = truth.read_ram(clips.game, clips.ram[:, HISTORY - 2])
        self.start = dataclasses.replace(self.true[0], ball=_in_sight(self.true[0]))
        self.velocity = self.start.ball - _in_sight(before)  # NaN unless seen at both
        seen = {h: objects.bricks for h, objects in self.seen.items()}
        self.absent = absent_before(self.start.bricks, seen)

    def hits(self, h: int, radius: float) -> np.ndarray:
        return _hits(metrics.ball_counts(self.true[h], self.seen[h], radius))

    def visible(self, h: int) -> np.ndarray:
        return self.true[h].num_balls > 0

    def guesses(self, h: int) -> dict[str, np.ndarray]:
        """Return where the baselines put the ball, (B, 2); NaN: nowhere in the picture."""
        flown = self.start.ball + h * self.velocity
        is_inside = ((flown >= 0) & (flown <= PICTURE_PX)).all(1, keepdims=True)
        flown = np.where(is_inside, flown, np.nan)
        return {"copy_last": self.start.ball, "constant_velocity": flown}

    def guess_hits(self, h: int, radius: float) -> dict[str, np.ndarray]:
        return {
            name: self.visible(h) & (np.hypot(*(ball - self.true[h].ball).T) <= radius)
            for name, ball in self.guesses(h).items()
        }


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


def _hits(counts: dict[str, np.ndarray]) -> np.ndarray:
    """Tell where exactly one ball is seen, near the true one."""
    return counts["hits"] & ~counts["duplicates"]


def _ball_rows(reader: Reader, h: int, kept: np.ndarray) -> Scores:
    """Score the ball: its place (recall, precision, hits, error) apart from its presence.

    Seen is a ball anywhere where there is a real one; possible are as many balls as there are real
    ones. Recall and precision are of balls within 2 px, as those of the tokenizer.
    """
    true, seen, episodes = reader.true[h], reader.seen[h], reader.episodes
    ceiling = truth.read_frames(reader.clips.game, kept)
    scores = {}
    for name, objects in (("", seen), ("ceiling", ceiling), ("copy_last", reader.start)):
        counts = metrics.ball_counts(true, objects)
        possible = np.minimum(counts["balls"], ~np.isnan(true.ball[:, 0]))
        errors = np.where(counts["visible"], metrics.ball_errors(true, objects), np.nan)
        rows = {
            "ball_seen": mean_metric(counts["found"], episodes, counts["visible"]),
            "ball_possible": mean_metric(possible, episodes, counts["balls"]),
            "ball_recall": mean_metric(counts["hits"], episodes, counts["visible"]),
            "ball_precision": mean_metric(
                counts["balls"] - counts["ghosts"], episodes, counts["balls"]
            ),
            "ball_duplicates": mean_metric(counts["duplicates"], episodes),
            "ball_error_px": quantile_metric(errors, episodes, 0.5),
            "ball_error_p90_px": quantile_metric(errors, episodes, 0.9),
        }
        for radius in HIT_RADII_PX:
            hits = _hits(metrics.ball_counts(true, objects, radius))
            rows[f"ball_hit_{radius}px"] = mean_metric(hits, episodes, counts["visible"])
        for row, metric in rows.items():
            if name:
                scores[f"rollout/{row}@{h}"].baselines[name] = metric
            else:
                scores[f"rollout/{row}@{h}"] = metric
    guess, visible = reader.guesses(h)["constant_velocity"], reader.visible(h)
    is_guess = ~np.isnan(guess[:, 0])
    is_near = np.hypot(*(guess - true.ball).T) <= metrics.MAX_BALL_ERROR_PX
    for row, metric in {
        "ball_seen": mean_metric(is_guess & visible, episodes, visible),
        "ball_possible": mean_metric(is_guess & ~np.isnan(true.ball[:, 0]), episodes, is_guess),
        "ball_recall": mean_metric(is_near & visible, episodes, visible),
        "ball_precision": mean_metric(is_near, episodes, is_guess),
        "ball_duplicates": mean_metric(np.zeros(len(guess)), episodes, is_share=False),
    }.items():
        scores[f"rollout/{row}@{h}"].baselines["constant_velocity"] = metric
    flown = np.where(visible, np.hypot(*(guess - true.ball).T), np.nan)
    for row, share in (("ball_error_px", 0.5), ("ball_error_p90_px", 0.9)):
        error = quantile_metric(flown, episodes, share)
        scores[f"rollout/{row}@{h}"].baselines["constant_velocity"] = error
    for radius in HIT_RADII_PX:
        flown = reader.guess_hits(h, radius)["constant_velocity"]
        scores[f"rollout/ball_hit_{radius}px@{h}"].baselines["constant_velocity"] = mean_metric(
            flown, episodes, reader.visible(h)
        )
    return scores


def _other_rows(reader: Reader, h: int) -> Scores:
    true, seen, start, episodes = reader.true[h], reader.seen[h], reader.start, reader.episodes
    scores = {}
    for name, objects in (("", seen), ("copy_last", start)):
        rows = {"paddle_error_px": paddle_error(objects.paddle, true.paddle, episodes)}
        if np.isfinite(true.opponent).any():
            error = paddle_error(objects.opponent, true.opponent, episodes)
            rows["opponent_error_px"] = error
        if true.bricks.size:
            absent = ~start.bricks if name else reader.absent[h]
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


def _half_life_row(reader: Reader) -> Metric:
    """Return the first horizon at which the hit rate within 2 px is under one half.

    The last horizon stands for "not within the clip".
    """
    steps = sorted(reader.seen)
    visible = np.stack([reader.visible(h) for h in steps], 1)  # (B, H)
    hits = np.stack([reader.hits(h, 2) for h in steps], 1)
    row = _half_life(hits, visible, reader.episodes, steps)
    for name in ("copy_last", "constant_velocity"):
        guessed = np.stack([reader.guess_hits(h, 2)[name] for h in steps], 1)
        row.baselines[name] = _half_life(guessed, visible, reader.episodes, steps)
    return row


def _half_life(hits, visible, episodes, steps) -> Metric:
    names, index = np.unique(episodes, return_inverse=True)
    sums, totals = (np.zeros((len(names), len(steps))) for _ in range(2))
    np.add.at(sums, index, hits)
    np.add.at(totals, index, visible)

    def first_below(parts, wholes):
        below = (parts < 0.5 * wholes) & (wholes > 0)
        return np.where(below.any(-1), np.array(steps)[below.argmax(-1)], steps[-1])

    draws = episode_draws(len(names))
    low, high = interval(first_below(draws @ sums, draws @ totals), len(names))
    value = first_below(sums.sum(0), totals.sum(0))
    return Metric(float(value), low, high, len(episodes))


def _stratum_rows(reader: Reader, horizons) -> Scores:
    """Score the ball's place apart for what happens right after the start."""
    scores = {}
    for stratum in strata_of(reader.clips.game):
        chosen = reader.clips.strata == stratum
        for h in (h for h in horizons if h in STRATUM_HORIZONS and chosen.any()):
            name, episodes = f"rollout/ball_hit_2px[{stratum}]@{h}", reader.episodes[chosen]
            visible = reader.visible(h)[chosen]
            scores[name] = mean_metric(reader.hits(h, 2)[chosen], episodes, visible)
            for baseline, hits in reader.guess_hits(h, 2).items():
                scores[name].baselines[baseline] = mean_metric(hits[chosen], episodes, visible)
    return scores
