"""The tokenizer by itself: what a round trip keeps of frames and objects.

Contract: takes any engine (v2.eval.engine.Engine) and recorded clips; returns named metrics with
intervals over episodes. The ceiling of all that follows.
"""

import numpy as np

from v2.eval import metrics
from v2.eval.engine import Engine, Scores, encode, round_trip
from v2.eval.intervals import Metric, episode_draws, interval, mean_metric
from v2.eval.objects import detector
from v2.eval.rollouts import ball_rows, paddle_error
from v2.eval.starts import Clips

TOKENIZER_ROWS = ("ball_recall", "ball_precision", "ball_error_px", "ball_error_p90_px")


def tokenizer_scores(engine: Engine, clips: Clips, num_codes: int = 32) -> Scores:
    """Score the round trip of two consecutive frames a clip: the ceiling of all that follows.

    Args:
        clips: of at least one step; the last history frame and the next one are used.
    """
    here, there = clips.frames_at(0), clips.frames_at(1)
    kept, tokens = round_trip(engine, here)
    next_tokens = encode(engine, there)
    episodes, scores = clips.episodes, {}
    scores["tokenizer/psnr"] = mean_metric(metrics.psnr(kept, here), episodes)
    scores["tokenizer/worst_patch_psnr"] = mean_metric(
        metrics.worst_patch_psnr(kept, here), episodes
    )
    scores["tokenizer/ssim"] = mean_metric(metrics.ssim(kept, here), episodes)
    if detector.has_truth(clips.game):
        true = clips.objects_at(0)
        seen = detector.read_frames(clips.game, kept)
        real = detector.read_frames(clips.game, here)
        rows, others = (ball_rows(true, objects, episodes) for objects in (seen, real))
        for row in TOKENIZER_ROWS:
            scores[f"tokenizer/{row}"] = rows[row]
            rows[row].baselines["real"] = others[row]
        for name in ("paddle", "opponent"):
            places = getattr(true, name)
            if np.isfinite(places).any():
                error = paddle_error(getattr(seen, name), places, episodes)
                scores[f"tokenizer/{name}_error_px"] = error
        if true.bricks.size:
            scores["tokenizer/brick_f1"] = _brick_f1(true.bricks, seen.bricks, episodes)
    spurious = metrics.spurious_changes(here, there, tokens, next_tokens)
    scores["tokenizer/spurious_changes"] = mean_metric(spurious, episodes, is_share=False)
    changed = (tokens != next_tokens).mean(1)
    scores["tokenizer/changed_tokens"] = mean_metric(changed, episodes)
    return scores | _code_rows(tokens, num_codes, episodes)


def _code_rows(tokens: np.ndarray, num_codes: int, episodes: np.ndarray) -> Scores:
    names = np.unique(episodes)
    used = np.stack([np.bincount(tokens[episodes == name].ravel(), minlength=num_codes)
                     for name in names])  # (E, K)  # fmt: skip
    histograms = [used.sum(0), *(episode_draws(len(names)) @ used)]
    value, *resampled = (metrics.perplexity(counts / counts.sum()) for counts in histograms)
    low, high = interval(np.array(resampled), len(names))
    num_used = float((used.sum(0) > 0).sum())  # no interval: a resample can only lose codes
    return {
        "tokenizer/codes_used": Metric(num_used, num_samples=len(tokens)),
        "tokenizer/perplexity": Metric(value, low, high, len(tokens)),
    }


def _brick_f1(true: np.ndarray, seen: np.ndarray, episodes) -> Metric:
    counts = metrics.brick_counts(true, seen)
    return mean_metric(2.0 * counts["both"], episodes, counts["there"] + counts["seen"])
