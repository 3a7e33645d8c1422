"""One step of the world model and K steps: the same code in training, evaluation and play.

Contract: `predict_next` turns history and actions into the next tokens; `unroll` applies it K
times, feeding its own tokens back unless the truth is given for a sample. Horizons count steps
after the last real frame. Knows nothing of pixels, files or losses.

Positions are predicted side by side, so where the outcome is open each by itself would rather stay
as it is, and an object is left out. Where more changes are expected than chosen, one of them is
decided first and the frame is predicted once more with it given.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from v2.data.importance import draw_positions
from v2.models.temporal_world_model import Prediction, Subset, TemporalWorldModel


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen from logits; temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0  # 0: all codes
    max_missing: float = 1.0  # changes expected beyond those chosen, before a second prediction

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        if self.max_missing < 0:
            raise ValueError(f"max_missing must be at least 0, got {self.max_missing}")


GREEDY = Sampling()

# Training counts a change more than a token that stays, and one that stays though it was doubted
# more again (data.importance): its probabilities of a change are too high by what these undo.
CHANGE_WEIGHT, GHOST_WEIGHT = 30.0, 8.0
NEGLIGIBLE = 0.01  # probability of a change that needs no second look
NUM_REVISED = 96  # positions that are predicted again
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


def predict_next(
    model: TemporalWorldModel,
    history: torch.Tensor,
    actions: torch.Tensor,
    sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, Prediction]:
    """Predict one step: tokens (B, N) and the prediction they were chosen from.

    Args:
        history: tokens (B, 4, N), oldest first.
        actions: (B, 4), the three between them and the one taken now.
    """
    prediction = model(history, actions)
    K = prediction.logits.shape[-1]
    change = change_probs(prediction.logits, history[:, -1])
    given = decide_first(prediction.logits, change, history[:, -1], sampling, generator)
    again = (given < K).any(1).nonzero().flatten()
    if len(again):
        prediction = _predict_again(model, history, actions, prediction, change, given, again)
    tokens = choose_tokens(prediction.logits, sampling, generator)
    return torch.where(given < K, given, tokens), prediction


def change_probs(logits: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return how probable it is that each token differs from the last frame's, (B, N).

    Args:
        logits: (B, N, K); last: tokens (B, N).
    """
    stay = logits.softmax(-1).gather(2, last.unsqueeze(2)).squeeze(2)
    change = 1 - stay
    stay = stay * CHANGE_WEIGHT / (1 + GHOST_WEIGHT * change)
    return change / (change + stay)


def decide_first(
    logits: torch.Tensor, change: torch.Tensor, last: torch.Tensor, sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Decide one change of each frame that lacks some, int64 (B, N): its token, K elsewhere.

    A frame lacks changes where the sum of their probabilities exceeds the number of those that the
    likeliest tokens make by more than `max_missing`. Decided is the most probable of the others;
    with a temperature one drawn in proportion.

    Args:
        logits: (B, N, K); change: `change_probs`, (B, N); last: the frame before, (B, N).
    """
    K = logits.shape[-1]
    is_chosen = logits.argmax(-1) != last
    is_lacking = (change - is_chosen.float()).sum(1, keepdim=True) > sampling.max_missing
    others = change.masked_fill(is_chosen, 0)
    if sampling.temperature:
        place = torch.multinomial(others + 1e-9, 1, generator=generator)
    else:
        place = others.argmax(1, keepdim=True)
    there = logits.scatter(2, last.unsqueeze(2), -torch.inf)
    there = there.gather(1, place.unsqueeze(2).expand(-1, -1, K))  # (B, 1, K)
    token = choose_tokens(there, sampling, generator)
    return torch.full_like(last, K).scatter(1, place, torch.where(is_lacking, token, K))


def _predict_again(model, history, actions, first, change, given, rows) -> Prediction:
    """Predict some rows once more with the given tokens, at the positions where it may matter.

    They are those that training learns at, near what moved and some others, with all that may
    change or lie beside what is given.
    """
    config = model.config
    history, actions, given, change = (t[rows] for t in (history, actions, given, change))
    grid = config.grid_height, config.grid_width
    draws = torch.arange(config.num_positions, device=change.device) * GOLDEN_RATIO % 1
    beside = (given < config.num_codes).float().unflatten(1, grid).unsqueeze(1)
    beside = F.max_pool2d(beside, 5, stride=1, padding=2).flatten(1) > 0
    is_open = (change > NEGLIGIBLE) | beside
    count = min(NUM_REVISED, config.num_positions)
    positions, chances = draw_positions(history, count, grid, draws - 2.0 * is_open)
    chances = chances.masked_fill(is_open.gather(1, positions), 1)
    second = model(history, actions, Subset(positions, chances), given)
    index = positions.unsqueeze(2).expand_as(second.logits)
    logits = first.logits[rows].scatter(1, index, second.logits)
    return Prediction(*(
        before.index_copy(0, rows, after)
        for before, after in zip(first, second._replace(logits=logits), strict=True)
    ))  # fmt: skip


def advance(history: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Drop the oldest frame of (B, 4, N) and append tokens (B, N)."""
    return torch.cat([history[:, 1:], tokens.unsqueeze(1)], dim=1)


def unroll(
    model: TemporalWorldModel,
    history: torch.Tensor,
    actions: torch.Tensor,
    truth: torch.Tensor | None = None,
    is_teacher_forced: torch.Tensor | None = None,
    sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
    max_wrong: int | None = None,
) -> Iterator[tuple[torch.Tensor, Prediction, torch.Tensor]]:
    """Yield tokens (B, N), prediction and the history (B, 4, N) that follows, for each of K steps.

    Args:
        history: tokens (B, 4, N).
        actions: (B, 3 + K).
        truth: tokens (B, K, N) of the real frames, needed with `is_teacher_forced`.
        is_teacher_forced: bool (B, K): after this step, go on from the real frame.
        max_wrong: go on from the real frame also where more tokens are wrong; None: never.
    """
    num_past = history.shape[1] - 1
    for k in range(actions.shape[1] - num_past):
        window = actions[:, k : k + num_past + 1]
        tokens, prediction = predict_next(model, history, window, sampling, generator)
        fed = tokens
        if is_teacher_forced is not None:
            is_real = is_teacher_forced[:, k]
            if max_wrong is not None:
                is_real = is_real | ((tokens != truth[:, k]).sum(1) > max_wrong)
            fed = torch.where(is_real[:, None], truth[:, k], tokens)
        history = advance(history, fed)
        yield tokens, prediction, history
