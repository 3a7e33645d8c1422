"""Counterfactual branches: one saved state, every held action, the real outcome of each.

Contract: a dream of a held action should end up nearest to the real branch of that action. Branches
that coincide count as one; a state with too few branches apart, or whose real paddle is hidden in
one, is left out and counted. Knows the engine only by v2.eval.engine.Engine.
"""

from dataclasses import dataclass

import numpy as np

from v2.data.atari_dataset import NUM_RAM_BYTES, spread
from v2.data.frames import FRAME_SHAPE
from v2.eval import metrics
from v2.eval.engine import Dreams, Engine, Progress, Scores, dream
from v2.eval.intervals import Metric, mean_metric
from v2.eval.objects import detector
from v2.eval.starts import HISTORY, Clips

BRANCH_STEPS = 8
BRANCH_HORIZONS = (1, 3, 5, 8)
SHUFFLE_HORIZONS = (5, 10)
SAME_PLACE_PX = 0.8  # 2 native pixels: paddles closer than this are one branch
MIN_BRANCHES = {True: 3, False: 2}  # by whether the paddle can be read


@dataclass
class Branches:
    """S saved states, each continued for 8 steps under each of A held actions."""

    game: str
    history: np.ndarray  # uint8 (S, 4, 84, 64, 3)
    past_actions: np.ndarray  # uint8 (S, 3)
    frames: np.ndarray  # uint8 (S, A, 8, 84, 64, 3)
    ram: np.ndarray  # uint8 (S, A, 8, 128)
    episodes: np.ndarray  # int (S,): the game's seed

    def __len__(self) -> int:
        return len(self.history)

    @property
    def num_actions(self) -> int:
        return self.frames.shape[1]

    def first(self, count: int) -> "Branches":
        """Return evenly spread states."""
        rows = spread(np.arange(len(self)), count)
        return Branches(self.game, *(getattr(self, name)[rows] for name in (
            "history", "past_actions", "frames", "ram", "episodes")))  # fmt: skip


def branch_scores(
    engine: Engine, branches: Branches, progress: Progress = None
) -> tuple[Scores, np.ndarray]:
    """Return the metrics and the dreamed frames, uint8 (S, A, 4, 84, 64, 3)."""
    count, num_actions = len(branches), branches.num_actions
    held = np.tile(np.arange(num_actions), count)  # (S * A,)
    dreams = dream(
        engine,
        branches.history.repeat(num_actions, 0),
        branches.past_actions.repeat(num_actions, 0),
        held[:, None].repeat(BRANCH_STEPS, 1),
        list(BRANCH_HORIZONS),
        progress,
    )
    dreamed = dreams.frames.reshape(count, num_actions, len(BRANCH_HORIZONS), *FRAME_SHAPE)
    scores: Scores = {}
    for k, h in enumerate(BRANCH_HORIZONS):
        real = branches.frames[:, :, h - 1]
        found = _by_pixels(dreamed[:, :, k], real)
        scores |= _right_rows("right_branch_pixels", h, branches, *found)
        if detector.has_truth(branches.game):
            places = _paddles(branches, dreamed[:, :, k], h)
            scores |= _right_rows("right_branch", h, branches, *_by_paddle(*places))
            scores[f"branches/separation@{h}"] = _separation(*places, branches.episodes)
    return scores, dreamed


def _paddles(branches: Branches, dreamed: np.ndarray, h: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the dreamed and the real paddle of every branch, (S, A) each."""
    shape = dreamed.shape[:2]
    seen = detector.read_frames(branches.game, dreamed.reshape(-1, *dreamed.shape[2:]))
    real = detector.read_ram(branches.game, branches.ram[:, :, h - 1].reshape(-1, NUM_RAM_BYTES))
    return seen.paddle.reshape(shape), real.paddle.reshape(shape)


def _by_paddle(dreamed: np.ndarray, real: np.ndarray):
    """Return right (S, A), each action's branch (S, A) and whether a state counts (S,)."""
    order = real.argsort(1)
    gaps = np.diff(np.take_along_axis(real, order, 1), axis=1) > SAME_PLACE_PX
    ranks = np.concatenate([np.zeros((len(real), 1), int), gaps.cumsum(1)], 1)
    branch = np.empty_like(ranks)
    np.put_along_axis(branch, order, ranks, 1)
    distances = np.abs(dreamed[:, :, None] - real[:, None, :])  # (S, dreamed A, real A)
    lost = np.isnan(dreamed)
    nearest = np.nan_to_num(distances, nan=np.inf).argmin(2)
    right = (np.take_along_axis(branch, nearest, 1) == branch) & ~lost
    counts = (ranks[:, -1] + 1 >= MIN_BRANCHES[True]) & ~np.isnan(real).any(1)
    return right, branch, counts


def _by_pixels(dreamed: np.ndarray, real: np.ndarray):
    count, num_actions = dreamed.shape[:2]
    flat_dreamed = dreamed.reshape(count, num_actions, -1).astype(np.float32)
    flat_real = real.reshape(count, num_actions, -1).astype(np.float32)
    right = np.zeros((count, num_actions), bool)
    branch_ids = np.zeros((count, num_actions), int)
    for k in range(count):
        errors = ((flat_dreamed[k][:, None] - flat_real[k][None]) ** 2).sum(-1)  # (A, A)
        is_same = (flat_real[k][:, None] == flat_real[k][None]).all(-1)
        branch = np.unique(is_same.argmax(1), return_inverse=True)[1]
        right[k] = branch[errors.argmin(1)] == branch
        branch_ids[k] = branch
    return right, branch_ids, branch_ids.max(1) + 1 >= MIN_BRANCHES[False]


def _right_rows(name, h, branches: Branches, right, branch_ids, counts) -> Scores:
    """Every branch counts alike, however many actions lead to it: else standing still pays."""
    episodes = branches.episodes[counts]
    same = branch_ids[:, :, None] == branch_ids[:, None, :]  # (S, A, A)
    num_branches = branch_ids.max(1) + 1
    share = (right / same.sum(2)).sum(1) / num_branches
    row = mean_metric(share[counts], episodes)
    row.baselines["chance"] = mean_metric(1 / num_branches[counts], episodes)
    left_out = Metric(float((~counts).sum()), num_samples=len(counts))
    return {f"branches/{name}@{h}": row, f"branches/{name}_left_out@{h}": left_out}


def _separation(dreamed: np.ndarray, real: np.ndarray, episodes: np.ndarray) -> Metric:
    """Return how far apart the outermost dreamed paddles are, as a share of the real ones.

    Signed: swapped sides count as negative.
    """
    rows = np.arange(len(real))
    left, right = real.argmin(1), real.argmax(1)
    apart = real[rows, right] - real[rows, left]
    dreamed_apart = dreamed[rows, right] - dreamed[rows, left]
    is_apart = apart > SAME_PLACE_PX
    dreamed_apart = np.nan_to_num(dreamed_apart, nan=0.0)[is_apart]
    return mean_metric(dreamed_apart, episodes[is_apart], apart[is_apart])


def shuffle_scores(
    engine: Engine, clips: Clips, dreamed: Dreams, progress: Progress = None
) -> Scores:
    """Return the loss of PSNR when a clip is dreamed under the actions of another clip.

    Args:
        dreamed: the Dreams of the same clips under their own actions.
    """
    horizons = [h for h in SHUFFLE_HORIZONS if h in dreamed.horizons]
    actions = np.roll(clips.actions[:, HISTORY - 1 :], 1, axis=0)
    wrong = dream(engine, clips.history, clips.past_actions, actions, horizons, progress,
                  clips.ages)  # fmt: skip
    scores: Scores = {}
    for h in horizons:
        real = clips.frames_at(h)
        loss = metrics.psnr(dreamed.at(h)[0], real) - metrics.psnr(wrong.at(h)[0], real)
        row = mean_metric(loss, clips.episodes, is_share=False)
        scores[f"actions/shuffle_loss_db@{h}"] = row
    return scores
