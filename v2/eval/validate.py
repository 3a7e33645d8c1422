"""Figures of a world model on held-out episodes while it trains, copy-last beside their tokens.

Contract: the evaluation suite at its smallest size; the same clips every time, from the validation
split, never from gold; open loop, greedy, under the recorded actions.
"""

from pathlib import Path

import numpy as np
import torch

from v2.data.ages import cut_ages, episode_steps
from v2.data.atari_dataset import ARRAY_FIELDS, fields_of, seeds_of, spread, window_starts
from v2.data.npz import read_meta, read_rows
from v2.data.recordings import META_FIELDS, Data, data_paths
from v2.data.tokens import TokenData
from v2.dream import DreamEngine
from v2.eval import metrics
from v2.eval.engine import Dreams, Engine, dream, encode
from v2.eval.objects import detector
from v2.eval.pictures import save_grid
from v2.eval.rollouts import paddle_error
from v2.eval.starts import ANY, HISTORY, Clips
from v2.eval.turns import turn_scores, turn_starts
from v2.models.temporal_world_model import TemporalWorldModel
from v2.models.vqvae_hires import VQVAE

NUM_CLIPS = 40
NUM_STEPS = 10  # of a clip, fewer where no held-out episode is so long
NUM_TURNS, MIN_TURNS = 200, 20  # windows of each kind, and of a row that is logged
WINDOWS_A_CLIP, WINDOWS_A_TURN = 20, 16  # trained on; so validation takes a fifth of the time


class Evaluation:
    """Held-out clips, read once."""

    def __init__(
        self, vqvae: VQVAE, tokens: TokenData, data: Data, device: torch.device, num_windows: int,
        ages: np.ndarray | None = None,
    ):  # fmt: skip
        """Choose clips, as many as `sizes` allows for so many windows trained on in between.

        Args:
            ages: of the tokens, from `token_ages`, for a model that reads them.
        """
        self.vqvae, self.device, self.ages = vqvae, device, ages
        num_clips, num_turns = sizes(num_windows)
        held_out = tokens.rows_of("val")
        longest = int(np.bincount(tokens.episode_ids[held_out]).max())
        steps = max(1, min(NUM_STEPS, longest - HISTORY))
        firsts = spread(window_starts(tokens.episode_ids, HISTORY + steps, held_out), num_clips)
        self.clips = self._clips(tokens, data, firsts, steps, [ANY] * len(firsts))
        self.turns = None
        game = tokens.emulator.game
        if detector.has_truth(game) and num_turns:
            ram = _read("ram", data, held_out[:, None])[:, 0]
            of_held_out = tokens.episode_ids[held_out]
            starts, kinds = turn_starts(game, ram, of_held_out, per_kind=num_turns)
            if len(starts):
                firsts = held_out[starts] + 1 - HISTORY
                self.turns = self._clips(tokens, data, firsts, 1, kinds)

    def __call__(self, model: TemporalWorldModel, picture: Path) -> tuple[dict, float]:
        """Return figures and the score that chooses `best.pt`; draw a clip, real over dream."""
        engine = DreamEngine(self.vqvae, model, self.device)
        figures = quick_scores(engine, self.clips)
        clips, one = self.clips, [len(self.clips) // 2]
        ages = None if clips.ages is None else clips.ages[one]
        dreams = dream(
            engine, clips.history[one], clips.past_actions[one], clips.actions[one, HISTORY - 1 :],
            ages=ages,
        )  # fmt: skip
        dreamed = np.stack([dreams.at(h)[0][0] for h in dreams.horizons])
        save_grid(picture, [clips.frames[one[0], HISTORY:], dreamed])
        score = figures.pop("score")
        if self.turns is not None:
            scores = turn_scores(engine, self.turns).items()
            figures |= {name: row.value for name, row in scores if row.num_samples >= MIN_TURNS}
        return figures, score

    def _clips(
        self, tokens: TokenData, data: Data, firsts: np.ndarray, steps: int, strata
    ) -> Clips:
        """Cut windows of four frames and the steps after them that begin at some rows."""
        rows = firsts[:, None] + np.arange(HISTORY + steps)  # (B, 4 + H)
        last, ages = rows[:, HISTORY - 1], self.ages
        if ages is not None:
            ages = cut_ages(ages[last], episode_steps(tokens.episode_ids)[last])
        return Clips(
            game=tokens.emulator.game,
            frames=_read("frames", data, rows),
            actions=tokens.actions[rows[:, :-1]],
            rewards=tokens.rewards[rows[:, :-1]],
            terminated=tokens.terminated[rows[:, :-1]],
            ram=_read("ram", data, rows),
            episodes=seeds_of(tokens.meta["episodes"], tokens.episode_ids[rows[:, 0]]),
            strata=np.array(strata),
            ages=ages,
        )


def sizes(num_windows: int) -> tuple[int, int]:
    """Return how many clips, and windows of each kind of turn, a short training deserves."""
    num_turns = min(NUM_TURNS, num_windows // WINDOWS_A_TURN)
    num_clips = min(NUM_CLIPS, max(1, num_windows // WINDOWS_A_CLIP))
    return num_clips, num_turns if num_turns >= MIN_TURNS else 0


def _read(name: str, data: Data, rows: np.ndarray) -> np.ndarray:
    """Read rows (B, T) of one array of recordings, a block at a time."""
    paths = data_paths(data)
    if name not in fields_of(read_meta(paths[0], META_FIELDS)):
        return np.empty((*rows.shape, 0), np.uint8)
    dtype, tail = ARRAY_FIELDS[name]
    wanted, inverse = np.unique(rows, return_inverse=True)
    parts, first = [], 0
    for path in paths:
        part, length = read_rows(path, name, dtype, tail, wanted, first)
        parts.append(part)
        first += length
    return np.concatenate(parts)[inverse.reshape(rows.shape)]


QUICK_HORIZONS = (1, 5, 10)


def quick_scores(engine: Engine, clips: Clips) -> dict[str, float]:
    """Score open-loop rollouts of a few short clips, for `best.pt`; no intervals.

    Takes one engine step for each clip and step. `score` is what `best.pt` is chosen by: the gain
    over copy-last as a share of what it has wrong, at 5 and 10 steps, averaged with the ball's hit
    rate over all steps where the ball can be read.
    """
    own = clips.actions[:, HISTORY - 1 :]
    dreams = dream(engine, clips.history, clips.past_actions, own, ages=clips.ages)
    scores = _quick_tokens(engine, clips, dreams)
    if detector.has_truth(clips.game):
        scores |= _quick_objects(clips, dreams)
        if np.isfinite(scores["ball_hit"]):
            scores["score"] = (scores["score"] + scores["ball_hit"]) / 2
    return scores


def _quick_tokens(engine: Engine, clips: Clips, dreams: Dreams) -> dict[str, float]:
    last = encode(engine, clips.frames_at(0))
    scores, shares = {}, []
    one_token = 1 / last.shape[1]  # copying may be all but right where nothing moves
    for h in (h for h in QUICK_HORIZONS if h <= clips.horizon):
        real = encode(engine, clips.frames_at(h))
        frames, tokens = dreams.at(h)
        accuracy = float(metrics.token_accuracy(tokens, real).mean())
        copied = float(metrics.token_accuracy(last, real).mean())
        scores[f"token_accuracy@{h}"], scores[f"copy_last@{h}"] = accuracy, copied
        scores[f"psnr@{h}"] = float(metrics.psnr(frames, clips.frames_at(h)).mean())
        shares.append((accuracy - copied) / max(1 - copied, one_token))
        if h == 1:
            counts = metrics.change_counts(tokens, real, last)
            scores["changed_accuracy@1"] = _share(counts["changed_right"], counts["changed"])
            scores["false_changes@1"] = _share(counts["false_changes"], counts["unchanged"])
    scores["score"] = float(np.clip(np.mean(shares[-2:]), -1, 1))
    return scores


def _quick_objects(clips: Clips, dreams: Dreams) -> dict[str, float]:
    """Return the ball's hit rate over all horizons and at the last, and the paddle's error."""
    hits, visible, found, doubled, paddle = [], [], [], [], []
    for h in dreams.horizons:
        true = detector.read_ram(clips.game, clips.ram[:, HISTORY - 1 + h])
        seen = detector.read_frames(clips.game, dreams.at(h)[0])
        counts = metrics.ball_counts(true, seen)
        hits.append((counts["hits"] & ~counts["duplicates"]).sum())
        visible.append(counts["visible"].sum())
        found.append(counts["found"].sum())
        doubled.append((counts["balls"] > 1).mean())
        paddle.append(paddle_error(seen.paddle, true.paddle, clips.episodes).value)
    scores = {"ball_hit": _share(hits, visible), "ball_found": _share(found, visible)}
    scores["ball_doubled"] = float(np.mean(doubled))
    for h in QUICK_HORIZONS:
        if h in dreams.horizons:
            k = dreams.horizons.index(h)
            scores[f"ball_hit@{h}"] = _share(hits[k : k + 1], visible[k : k + 1])
            scores[f"paddle_error_px@{h}"] = paddle[k]
    return scores


def _share(part, whole) -> float:
    return float(np.sum(part) / np.sum(whole)) if np.sum(whole) else float("nan")
