"""One step of the world model and K steps: the same code in training, evaluation and play.

Contract: `predict_next` turns history and actions into the next tokens; `unroll` applies it K
times, feeding its own tokens back unless the truth is given for a sample. Horizons count steps
after the last real frame. Knows nothing of pixels, files or losses.

Positions are predicted side by side, so where the outcome is open each for itself would leave an
object out or show it twice. Where that is likely, one of the doubtful changes is decided first and
the frame is predicted once more with it given.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from v2.models.temporal_world_model import Prediction, TemporalWorldModel


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen from logits; temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0  # 0: all codes
    max_doubt: float = 0.5  # tokens of a frame expected to be wrong before it is predicted again

    SURE = 0.95  # a change at least as probable as this is not in doubt

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        if self.max_doubt < 0:
            raise ValueError(f"max_doubt must be at least 0, got {self.max_doubt}")


GREEDY = Sampling()

# Training counts a change so many times as a token that stays, and one that stays though it was
# doubted more again (data.importance), so that probabilities of a change come out too high.
CHANGE_WEIGHT, GHOST_WEIGHT = 13.0, 8.0


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
    given = decide_first(prediction.logits, history[:, -1], sampling, generator)
    again = (given < K).any(1).nonzero().flatten()
    if len(again):
        second = model(history[again], actions[again], given=given[again])
        prediction = Prediction(*(
            first.index_copy(0, again, other)
            for first, other in zip(prediction, second, strict=True)
        ))  # fmt: skip
    tokens = choose_tokens(prediction.logits, sampling, generator)
    return torch.where(given < K, given, tokens), prediction


def decide_first(
    logits: torch.Tensor, last: torch.Tensor, sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Decide one change of each frame in doubt, int64 (B, N): its token, K elsewhere.

    A frame is in doubt where the expected number of wrong tokens, by the probability of a change
    at each position, exceeds `max_doubt`. Decided is the most probable of the changes that are
    not sure, with a temperature one drawn in proportion.

    Args:
        logits: (B, N, K); last: the tokens (B, N) of the frame before.
    """
    K = logits.shape[-1]
    is_last = F.one_hot(last, K).bool()
    change = 1 - logits.softmax(-1)[is_last].view_as(last)  # (B, N)
    stay = (1 - change) * CHANGE_WEIGHT / (1 + GHOST_WEIGHT * change)
    change = change / (change + stay)
    doubt = torch.minimum(change, 1 - change).sum(1)
    open_ = change.masked_fill(change >= sampling.SURE, 0)
    if sampling.temperature:
        place = torch.multinomial(open_ + 1e-9, 1, generator=generator)
    else:
        place = open_.argmax(1, keepdim=True)
    others = logits.masked_fill(is_last, -torch.inf)
    others = others.gather(1, place.unsqueeze(2).expand(-1, -1, K))  # (B, 1, K)
    token = choose_tokens(others, sampling, generator)
    token = torch.where(doubt.unsqueeze(1) > sampling.max_doubt, token, K)
    return torch.full_like(last, K).scatter(1, place, token)


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
) -> Iterator[tuple[torch.Tensor, Prediction, torch.Tensor]]:
    """Yield tokens (B, N), prediction and the history (B, 4, N) that follows, for each of K steps.

    Args:
        history: tokens (B, 4, N).
        actions: (B, 3 + K).
        truth: tokens (B, K, N) of the real frames, needed with `is_teacher_forced`.
        is_teacher_forced: bool (B, K): after this step, go on from the real frame.
    """
    num_past = history.shape[1] - 1
    for k in range(actions.shape[1] - num_past):
        window = actions[:, k : k + num_past + 1]
        tokens, prediction = predict_next(model, history, window, sampling, generator)
        fed = tokens
        if is_teacher_forced is not None:
            fed = torch.where(is_teacher_forced[:, k, None], truth[:, k], tokens)
        history = advance(history, fed)
        yield tokens, prediction, history
