"""One step after four real frames (teacher-forced): tokens, rewards, ends.

Contract: takes any engine (v2.eval.engine.Engine) and recorded clips, returns named metrics with
intervals over episodes and with their baselines in the same row. Knows nothing of files or games.
"""

import numpy as np
import torch
import torch.nn.functional as F

from v2.decoding import END_PROB
from v2.eval import metrics
from v2.eval.engine import Engine, Progress, Scores, begin_clips, chunks, dream, encode, flat
from v2.eval.intervals import Metric, mean_metric
from v2.eval.starts import HISTORY, Clips

LEAD_STEPS = 3  # before the end of a game, from which a dream is to find it


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
        dreams = dream(engine, clips.history, clips.past_actions, held, None, progress, clips.ages)
        is_over = dreams.ends > END_PROB  # (B, LEAD_STEPS + 1)
        in_time = is_over.any(1) & (np.abs(is_over.argmax(1) + 1 - LEAD_STEPS) <= 1)
    row = mean_metric(in_time, clips.episodes)
    row.baselines["copy_last"] = Metric(0.0)
    return {"termination/in_time": row}


def _one_step(engine: Engine, clips: Clips, target: np.ndarray, progress: Progress):
    """Return tokens, cross-entropies, reward signs and probabilities of an end, each (B, ...)."""
    parts = []
    for chunk in chunks(len(clips)):
        begin_clips(engine, clips, chunk)
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
