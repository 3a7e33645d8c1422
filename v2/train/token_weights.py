"""Hybrid importance weights: how much each token of a frame counts in the loss.

Contract: from tokens and the codebook alone; nothing here knows a game.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


def code_distances(codebook: torch.Tensor) -> torch.Tensor:
    """Return distances between codes (K, D) over their mean off the diagonal, (K, K)."""
    distances = torch.cdist(codebook.float(), codebook.float())
    num_pairs = len(codebook) * (len(codebook) - 1)
    return distances / (distances.sum() / num_pairs).clamp_min(1e-8)


def change_rarity(tokens: torch.Tensor, is_step: torch.Tensor) -> torch.Tensor:
    """Return how rare a change is at each position, in [0, 1], (N,).

    Args:
        tokens: uint8 (M, N), consecutive frames.
        is_step: bool (M,): the next row is the next frame of the same episode.
    """
    rows = is_step[:-1].nonzero().flatten()
    changes = torch.zeros(tokens.shape[1])
    for part in rows.split(65536):
        changes += (tokens[part] != tokens[part + 1]).sum(0)
    rarity = -torch.log((changes + 1) / (len(rows) + 1))
    return rarity / rarity.max().clamp_min(1e-8)


@dataclass(frozen=True)
class ImportanceConfig:
    """Hybrid importance weights of tokens: w = 1 + a motion + b eventness + c persistence."""

    motion_scale: float = 8.0
    event_scale: float = 4.0
    persistence_scale: float = 4.0
    cap: float = 20.0  # times the sample's median weight
    ghost_scale: float = 8.0  # see `ghost_weights`

    def __post_init__(self):
        for name, value in self.__dict__.items():
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if self.cap < 1:
            raise ValueError(f"cap must be at least 1, got {self.cap}")


def importance_weights(
    frames_tokens: torch.Tensor,
    config: ImportanceConfig,
    distances: torch.Tensor,
    rarity: torch.Tensor,
    grid: tuple[int, int],
) -> torch.Tensor:
    """Return the weight of every token of the last frame, mean 1 a sample, (B, N).

    Motion is the distance between the codes before and after; eventness how rare a change is at
    the position; persistence the share of the earlier transitions in which its 3x3 neighbourhood
    changed. All three are zero where nothing changes.

    Args:
        frames_tokens: true tokens (B, T, N) of consecutive frames, T >= 2; the last is predicted.
        distances: `code_distances`, (K, K).
        rarity: `change_rarity`, (N,).
    """
    B, T, N = frames_tokens.shape
    last, following = frames_tokens[:, -2], frames_tokens[:, -1]
    is_changed = (last != following).float()
    weights = config.motion_scale * distances[last, following] + config.event_scale * rarity
    if T > 2:
        moved = (frames_tokens[:, 1:-1] != frames_tokens[:, :-2]).float()  # (B, T-2, N)
        near = F.max_pool2d(moved.unflatten(2, grid), 3, stride=1, padding=1)
        weights = weights + config.persistence_scale * near.flatten(2).mean(1)
    weights = 1 + weights * is_changed
    median = weights.median(dim=1, keepdim=True).values
    weights = torch.minimum(weights, config.cap * median)
    return weights / weights.mean(dim=1, keepdim=True)


def ghost_weights(entropy: torch.Tensor, is_changed: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the weight of what stays the same but was thought to change, (B, N).

    Importance weights alone make a model that is unsure prefer a change, and so paint ghosts. Here
    a token that stays counts 1 + scale (1 - p), p being the probability that the model gave it.

    Args:
        entropy: cross-entropy of every token, (B, N).
        is_changed: the token differs from the one before, bool (B, N).
    """
    doubt = 1 - torch.exp(-entropy.detach())
    return torch.where(is_changed, 1.0, 1 + scale * doubt)
