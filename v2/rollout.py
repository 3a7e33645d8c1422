"""One step of the world model and K steps: the same code in training, evaluation and play.

Contract: `predict_next` turns history and actions into the next tokens; `unroll` applies it K
times, feeding its own tokens back unless the truth is given for a sample. Horizons count steps
after the last real frame. Knows nothing of pixels, files or losses.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from v2.models.temporal_world_model import Prediction, TemporalWorldModel


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen from logits; temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0  # 0: all codes

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")


GREEDY = Sampling()


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
    return choose_tokens(prediction.logits, sampling, generator), prediction


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
