"""One step of the world model: the same code in training, evaluation and play.

Contract: `predict_next` turns history and actions into the next tokens, `advance` feeds them back.
Horizons count steps after the last real frame. Knows nothing of pixels, files or losses.

Positions are predicted side by side, so where the outcome is open each by itself would rather stay
as it is, and an object is left out; or each chooses another outcome, and it is doubled or a digit
becomes no number. Where more changes are expected than chosen, or those chosen are not sure, one
of them is decided first and the frame is predicted once more with it given. So it goes with time:
what has one chance in ten at every step would never come, and is decided when it is overdue. At
last, pairs of neighbours that the game never showed are put right (v2.models.pairs), where they are
known.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

from v2.models.cells import draw_positions
from v2.models.pairs import SeenPairs, mended
from v2.models.temporal_world_model import Prediction, Subset, TemporalWorldModel
from v2.runtime.cli import MIN_TEMPERATURE


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen from logits, and when a frame is looked at twice."""

    temperature: float = 0.0  # 0: greedy; else at least MIN_TEMPERATURE
    top_k: int = 0  # 0: all codes
    max_missing: float = 0.5  # changes expected beyond those chosen; inf: never a second look
    min_sure: float = 0.8  # probability of a token; where several have less, one is decided first
    max_doubt: float = 1.0  # changes expected of one token over time that never came

    def __post_init__(self):
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"temperature must be 0 or at least {MIN_TEMPERATURE}, got {self.temperature}"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        if self.max_missing < 0:
            raise ValueError(f"max_missing must be at least 0, got {self.max_missing}")
        if not 0 <= self.min_sure <= 1:
            raise ValueError(f"min_sure must be 0 to 1, got {self.min_sure}")
        if self.max_doubt <= 0:
            raise ValueError(f"max_doubt must be above 0, got {self.max_doubt}")


END_PROB = 0.5  # above it a dream says that its game is over
GREEDY = Sampling()
ONE_LOOK = Sampling(max_missing=math.inf)

# Training counts changes up to 20 times, draws windows with events oftener, and counts a token that
# stays though it was doubted up to 9 times. So the odds of a change come out too high, by about
# this factor (found on held-out frames) over 1 + the ghost scale times the probability itself.
CHANGE_WEIGHT, GHOST_SCALE = 30.0, 8.0
NEGLIGIBLE = 0.01  # probability of a change that needs no second look
NUM_REVISED = 64  # positions that are predicted again
SURE = 0.98  # probability from which a token stays as the first look saw it
CHANGE_BONUS, GIVEN_BONUS = 4.0, 100.0  # nats by which what changed, or was decided, rather stays
GOLDEN_RATIO = 0.618034  # its multiples, modulo 1, are spread evenly


def choose_tokens(
    logits: torch.Tensor, sampling: Sampling = GREEDY, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Choose tokens (B, N) from logits (B, N, K)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probs = logits.softmax(-1)
    chosen = torch.multinomial(probs.flatten(0, 1), 1, generator=generator)
    return chosen.view(logits.shape[:-1])


class Step(NamedTuple):
    tokens: torch.Tensor  # (B, N)
    prediction: Prediction
    doubt: torch.Tensor  # (B, N): how many changes of each were expected since it was first doubted


def predict_next(
    model: TemporalWorldModel,
    history: torch.Tensor,
    actions: torch.Tensor,
    sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
    doubt: torch.Tensor | None = None,
    subset: Subset | None = None,
    given: torch.Tensor | None = None,
    seen: SeenPairs | None = None,
) -> Step:
    """Predict one step.

    After a second look the tokens are those of the second prediction, but for what was sure in the
    first, which saw more; reward and end are of the second too. The logits stay those of the first,
    what the model says before anything is decided.

    Args:
        history: tokens (B, 4, N), oldest first.
        actions: (B, 4), the three between them and the one taken now.
        doubt: (B, N), what the step before returned; None: none yet.
        subset: as in training, with `ONE_LOOK` only: the other tokens stay as they are.
        given: with it too, next tokens that were decided beforehand, (B, N), K where none was.
        seen: the pairs of neighbours that may be dreamed, not with a subset; None: all.
    """
    prediction = model(history, actions, subset, given)
    logits, K, last = prediction.logits, prediction.logits.shape[-1], history[:, -1]
    if doubt is None:
        doubt = torch.zeros_like(last, dtype=torch.float32)
    if given is None:
        given = torch.full_like(last, K)
    looks_again = not math.isinf(sampling.max_missing)
    if looks_again:
        change = change_probs(logits, last)
        doubt = torch.where(change > NEGLIGIBLE, doubt + change, 0)
        given = decide_first(logits, change, last, doubt, sampling, generator)
        logits, prediction = _revised(model, history, actions, prediction, change, given)
    tokens = choose_tokens(logits, sampling, generator)
    if subset is not None:
        tokens = last.scatter(1, subset.positions, tokens)
    tokens = torch.where(given < K, given, tokens)
    if seen is not None:
        tokens = _with_seen_pairs(model, tokens, logits, last, given, seen)
    if looks_again:
        is_over = (tokens != last) | (given < K).any(1, keepdim=True)
        doubt = doubt.masked_fill(is_over, 0)
    return Step(tokens, prediction, doubt)


def change_probs(logits: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return how probable it is that each token differs from the last frame's, (B, N).

    Args:
        logits: (B, N, K); last: tokens (B, N).
    """
    stay = logits.softmax(-1).gather(2, last.unsqueeze(2)).squeeze(2)
    change = 1 - stay
    stay = stay * CHANGE_WEIGHT / (1 + GHOST_SCALE * change)
    return change / (change + stay)


def decide_first(
    logits: torch.Tensor, change: torch.Tensor, last: torch.Tensor, doubt: torch.Tensor,
    sampling: Sampling = GREEDY, generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Decide one change of each frame that is open, int64 (B, N): its token, K elsewhere.

    A frame is open where

    - a token was doubted for so long that `max_doubt` changes of it were to be expected: that one
      changes;
    - or several tokens are less probable than `min_sure`, one of them a change: decided is the
      least probable of the changes, which tells most about the others;
    - or changes are lacking: the sum of their probabilities exceeds the number of those that the
      likeliest tokens make by more than `max_missing`. Decided is the most probable of the others,
      with a temperature one drawn in proportion.

    Args:
        logits: (B, N, K); change: `change_probs`, (B, N); last: the frame before, (B, N).
        doubt: (B, N), the sum of `change` over the steps in which the token was doubted and stayed.
    """
    K = logits.shape[-1]
    sure, likeliest = logits.softmax(-1).max(-1)
    is_chosen = likeliest != last
    is_lacking = (change - is_chosen.float()).sum(1, keepdim=True) > sampling.max_missing
    others = change.masked_fill(is_chosen, 0)
    if sampling.temperature:
        place = torch.multinomial(others + 1e-9, 1, generator=generator)  # all may be zero
    else:
        place = others.argmax(1, keepdim=True)
    least_sure, unsure = sure.masked_fill(~is_chosen, torch.inf).min(1, keepdim=True)
    is_unsure = least_sure < sampling.min_sure
    is_unsure &= (sure < sampling.min_sure).sum(1, keepdim=True) > 1
    place = torch.where(is_unsure, unsure, place)
    doubt, doubted = doubt.masked_fill(is_chosen, 0).max(1, keepdim=True)
    is_overdue = doubt >= sampling.max_doubt
    place = torch.where(is_overdue, doubted, place)
    there = logits.scatter(2, last.unsqueeze(2), -torch.inf)
    there = there.gather(1, place.unsqueeze(2).expand(-1, -1, K))  # (B, 1, K)
    token = choose_tokens(there, sampling, generator)
    is_open = is_lacking | is_unsure | is_overdue
    return torch.full_like(last, K).scatter(1, place, torch.where(is_open, token, K))


def _revised(
    model, history, actions, prediction: Prediction, change, given
) -> tuple[torch.Tensor, Prediction]:
    """Look again at the frames in which a token is given.

    Returns:
        the logits to choose from, and a prediction with the logits of the first look, but reward
        and end of the second.
    """
    logits = prediction.logits
    again = (given < logits.shape[-1]).any(1).nonzero().flatten()
    if not len(again):
        return logits, prediction
    rows = (tensor[again] for tensor in (history, actions, change, given))
    second, positions = _look_again(model, *rows)
    index = positions.unsqueeze(2).expand_as(second.logits)
    first = logits[again]
    before = first.gather(1, index)
    is_sure = before.softmax(-1).amax(-1, keepdim=True) >= SURE
    revised = torch.where(is_sure, before, second.logits)
    revised = logits.index_copy(0, again, first.scatter(1, index, revised))
    reward = prediction.reward_logits.index_copy(0, again, second.reward_logits)
    end = prediction.terminated_logits.index_copy(0, again, second.terminated_logits)
    return revised, Prediction(logits, reward, end)


def _look_again(model, history, actions, change, given) -> tuple[Prediction, torch.Tensor]:
    """Predict once more with a token given, at the positions where it may matter, (B, 64).

    They are what is given and lies beside it, what may change, and then, as in training, what is
    near motion and some others, each of which stands for those left out.
    """
    config = model.config
    grid = config.grid_height, config.grid_width
    is_given = given < config.num_codes
    beside = is_given.float().unflatten(1, grid).unsqueeze(1)
    beside = F.max_pool2d(beside, 5, stride=1, padding=2).flatten(1) > 0
    draws = torch.arange(config.num_positions, device=change.device) * GOLDEN_RATIO % 1
    draws = torch.where(is_given, -2.0, draws - beside.float())
    is_certain = beside | (change > NEGLIGIBLE)
    count = min(NUM_REVISED, config.num_positions)
    subset = Subset(*draw_positions(history, count, grid, draws, is_certain))
    plain = getattr(model, "_orig_mod", model)  # compiled, each number of rows would be again
    return plain(history, actions, subset, given), subset.positions


def _with_seen_pairs(model, tokens, logits, last, given, seen: SeenPairs) -> torch.Tensor:
    """Return tokens (B, N) mended; what changed stays rather, and what was decided stays."""
    bonus = (tokens != last) * CHANGE_BONUS + (given < model.config.num_codes) * GIVEN_BONUS
    scores = logits.float()
    chosen = (scores.amax(-1) + bonus).unsqueeze(2)  # no code is likelier than the chosen one
    scores = scores.scatter(2, tokens.unsqueeze(2), chosen)
    grid = model.config.grid_height, model.config.grid_width
    return mended(tokens.unflatten(1, grid), scores.unflatten(1, grid), seen).flatten(1)


def advance(history: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Drop the oldest frame of (B, 4, N) and append tokens (B, N)."""
    return torch.cat([history[:, 1:], tokens.unsqueeze(1)], dim=1)
