"""The protocol: tokenizer, teacher-forced one step, open-loop rollouts; one code for every judge.

Contract: takes any engine (v2.eval.dreaming.Engine) and recorded clips, returns named metrics with
intervals over episodes and with their baselines in the same row. Horizons count steps after the
last real frame. `gold_eval` calls it on the frozen set, training on its validation split
(`quick_scores`). Knows nothing of files, and of the game only whether its objects can be read.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from v2.eval import metrics, truth
from v2.eval.bootstrap import Metric, episode_draws, interval, mean_metric
from v2.eval.clips import HISTORY, Clips
from v2.eval.dreaming import END_PROB, Dreams, Engine, chunks, dream, encode, flat, round_trip
from v2.eval.rollout_scores import ball_rows, paddle_error

VERSION = 9  # raise it when a number may change
Scores = dict[str, Metric]
Progress = Callable[[int], object] | None
QUICK_HORIZONS = (1, 5, 10)
TOKENIZER_ROWS = ("ball_recall", "ball_precision", "ball_error_px", "ball_error_p90_px")
LEAD_STEPS = 3  # before the end of a game, from which a dream is to find it
ONE_TOKEN = 1 / 336  # copying may be all but right where nothing moves


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
    scores["tokenizer/ssim"] = mean_metric(metrics.ssim(kept, here), episodes)
    if truth.has_truth(clips.game):
        true = clips.objects_at(0)
        seen = truth.read_frames(clips.game, kept)
        real = truth.read_frames(clips.game, here)
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


def one_step_scores(
    engine: Engine, clips: Clips, endings: Clips | None = None, progress: Progress = None
) -> Scores:
    """Score the step after four real frames (teacher-forced).

    Args:
        endings: clips whose step ends the game, too rare among the others; they count for the
            rows of termination only.
    """
    last, target = encode(engine, clips.frames_at(0)), encode(engine, clips.frames_at(1))
    predicted, losses, signs, ends = _one_step(engine, clips, target, progress)
    episodes, scores = clips.episodes, {}
    accuracy = mean_metric(metrics.token_accuracy(predicted, target), episodes)
    counts = metrics.change_counts(predicted, target, last)
    accuracy.baselines["copy_last"] = mean_metric(metrics.token_accuracy(last, target), episodes)
    scores["one_step/token_accuracy"] = accuracy
    scores["one_step/cross_entropy"] = mean_metric(losses, episodes)
    scores["one_step/cross_entropy"].baselines["copy_last"] = _copy_entropy(
        last == target, engine, episodes
    )
    changed = mean_metric(counts["changed_right"], episodes, counts["changed"])
    changed.baselines["copy_last"] = Metric(0.0)
    scores["one_step/changed_accuracy"] = changed
    false_changes = mean_metric(counts["false_changes"], episodes, counts["unchanged"])
    false_changes.baselines["copy_last"] = Metric(0.0)
    scores["one_step/false_changes"] = false_changes
    gains = clips.rewards[:, HISTORY - 1] != 0
    right = np.sign(clips.rewards[:, HISTORY - 1]) == signs
    guessed = signs != 0
    scores |= _detection("reward", gains, guessed, guessed & right, episodes)
    is_over = clips.terminated[:, HISTORY - 1]
    if endings is not None and len(endings):
        target = encode(engine, endings.frames_at(1))
        ends = np.concatenate([ends, _one_step(engine, endings, target, progress)[3]])
        is_over = np.concatenate([is_over, endings.terminated[:, HISTORY - 1]])
        episodes = np.concatenate([episodes, endings.episodes])
    guessed = ends > END_PROB
    return scores | _detection("termination", is_over, guessed, guessed & is_over, episodes)


def ending_scores(engine: Engine, clips: Clips, progress: Progress = None) -> Scores:
    """Score whether open-loop dreams end within one step of the game.

    Args:
        clips: of `LEAD_STEPS` steps, the last of which ends the game. Its action is held for one
            step more.
    """
    in_time = np.zeros(0)
    if len(clips):
        own = clips.actions[:, HISTORY - 1 :]
        held = np.concatenate([own, own[:, -1:]], 1)
        dreams = dream(engine, clips.history, clips.past_actions, held, None, progress)
        is_over = dreams.ends > END_PROB  # (B, LEAD_STEPS + 1)
        in_time = is_over.any(1) & (np.abs(is_over.argmax(1) + 1 - LEAD_STEPS) <= 1)
    row = mean_metric(in_time, clips.episodes)
    row.baselines["copy_last"] = Metric(0.0)
    return {"termination/in_time": row}


def _one_step(engine: Engine, clips: Clips, target: np.ndarray, progress: Progress):
    """Return tokens, cross-entropies, reward signs and probabilities of an end, each (B, ...)."""
    parts = []
    for chunk in chunks(len(clips)):
        engine.reset(clips.history[chunk], clips.past_actions[chunk])
        engine.step(clips.actions_to(1)[chunk].astype(np.int64))
        losses = _cross_entropy(engine.logits, target[chunk])
        parts.append((flat(engine.tokens), losses, engine.last_reward, engine.last_terminated))
        if progress:
            progress(len(losses))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _cross_entropy(logits, target: np.ndarray) -> np.ndarray:
    if logits is None:
        return np.full(len(target), np.nan)
    goal = torch.as_tensor(target, dtype=torch.long, device=logits.device)
    loss = F.cross_entropy(logits.float().transpose(1, 2), goal, reduction="none")
    return loss.mean(1).cpu().numpy()


def _copy_entropy(is_right: np.ndarray, engine: Engine, episodes) -> Metric:
    """Return the cross-entropy of copying with the confidence that copying deserves."""
    num_codes = 2 if engine.logits is None else engine.logits.shape[-1]
    share = float(np.clip(is_right.mean(), 1e-6, 1 - 1e-6))
    wrong = -np.log((1 - share) / (num_codes - 1))
    return mean_metric(np.where(is_right, -np.log(share), wrong).mean(1), episodes)


def _detection(name, real, guessed, right, episodes) -> Scores:
    """Score a rare event: `right` are the guesses that are real and of the right sign."""
    return {
        f"{name}/precision": mean_metric(right & real, episodes, guessed),
        f"{name}/recall": mean_metric(right & real, episodes, real),
        f"{name}/f1": mean_metric(2.0 * (right & real), episodes, real.astype(int) + guessed),
    }


def _brick_f1(true: np.ndarray, seen: np.ndarray, episodes) -> Metric:
    counts = metrics.brick_counts(true, seen)
    return mean_metric(2.0 * counts["both"], episodes, counts["there"] + counts["seen"])


def quick_scores(engine: Engine, clips: Clips, progress: Progress = None) -> dict[str, float]:
    """Score open-loop rollouts of a few short clips, for `best.pt`; no intervals.

    Takes one engine step for each clip and step. `score` is what `best.pt` is chosen by: the
    share of copy-last's wrong tokens that are right at 5 and 10 steps, averaged with the ball's
    hit rate over all steps where the ball can be read.
    """
    own = clips.actions[:, HISTORY - 1 :]
    dreams = dream(engine, clips.history, clips.past_actions, own, None, progress)
    scores = _quick_tokens(engine, clips, dreams)
    if truth.has_truth(clips.game):
        scores |= _quick_objects(clips, dreams)
        if np.isfinite(scores["ball_hit"]):
            scores["score"] = (scores["score"] + scores["ball_hit"]) / 2
    return scores


def _quick_tokens(engine: Engine, clips: Clips, dreams: Dreams) -> dict[str, float]:
    last = encode(engine, clips.frames_at(0))
    scores, shares = {}, []
    for h in (h for h in QUICK_HORIZONS if h <= clips.horizon):
        real = encode(engine, clips.frames_at(h))
        frames, tokens = dreams.at(h)
        accuracy = float(metrics.token_accuracy(tokens, real).mean())
        copied = float(metrics.token_accuracy(last, real).mean())
        scores[f"token_accuracy@{h}"], scores[f"copy_last@{h}"] = accuracy, copied
        scores[f"psnr@{h}"] = float(metrics.psnr(frames, clips.frames_at(h)).mean())
        shares.append((accuracy - copied) / max(1 - copied, ONE_TOKEN))
        if h == 1:
            counts = metrics.change_counts(tokens, real, last)
            scores["changed_accuracy@1"] = _share(counts["changed_right"], counts["changed"])
            scores["false_changes@1"] = _share(counts["false_changes"], counts["unchanged"])
    scores["score"] = float(np.clip(np.mean(shares[-2:]), -1, 1))
    return scores


def _quick_objects(clips: Clips, dreams: Dreams) -> dict[str, float]:
    """Return the ball's hit rate over all horizons and at the last, and the paddle's error."""
    hits, visible, found, ghosts, paddle = [], [], [], [], []
    for h in dreams.horizons:
        true = truth.read_ram(clips.game, clips.ram[:, HISTORY - 1 + h])
        seen = truth.read_frames(clips.game, dreams.at(h)[0])
        counts = metrics.ball_counts(true, seen)
        hits.append((counts["hits"] & ~counts["duplicates"]).sum())
        visible.append(counts["visible"].sum())
        found.append(counts["found"].sum())
        ghosts.append((counts["balls"] > 1).mean())
        paddle.append(paddle_error(seen.paddle, true.paddle, clips.episodes).value)
    hits, visible = np.array(hits), np.array(visible)
    scores = {"ball_hit": _share(hits, visible), "ball_found": _share(found, visible)}
    scores["ball_doubled"] = float(np.mean(ghosts))
    for h in QUICK_HORIZONS:
        if h in dreams.horizons:
            k = dreams.horizons.index(h)
            scores[f"ball_hit@{h}"] = _share(hits[k : k + 1], visible[k : k + 1])
            scores[f"paddle_error_px@{h}"] = paddle[k]
    return scores


def _share(part, whole) -> float:
    return float(np.sum(part) / np.sum(whole)) if np.sum(whole) else float("nan")


def speed_scores(engine: Engine, clips: Clips, steps_per_second: float, steps: int = 60) -> Scores:
    """Time single dream steps on this device, after a few to warm up."""
    engine.reset(clips.history[:1], clips.past_actions[:1])
    seconds = []
    for k in range(steps + 5):
        action = clips.actions[:1, k % clips.actions.shape[1]].astype(np.int64)
        began = time.perf_counter()
        engine.step(action)
        seconds.append(time.perf_counter() - began)
    milliseconds = 1000 * np.array(seconds[5:])
    rate = 1000 / milliseconds.mean()
    return {
        "speed/steps_per_second": Metric(float(rate), num_samples=steps),
        "speed/latency_p50_ms": Metric(float(np.percentile(milliseconds, 50)), num_samples=steps),
        "speed/latency_p95_ms": Metric(float(np.percentile(milliseconds, 95)), num_samples=steps),
        "speed/real_time_factor": Metric(float(rate / steps_per_second), num_samples=steps),
    }
