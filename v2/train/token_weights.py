"""Hybrid importance weights: how much each token of a frame counts in the loss.

Contract: from tokens and the codebook alone; nothing here knows a game.
"""

import torch
from torch.nn import functional as F

from v2.train.recipe import WorldModelRecipe


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


def importance_weights(
    frames_tokens: torch.Tensor,
    recipe: WorldModelRecipe,
    distances: torch.Tensor,
    rarity: torch.Tensor,
    grid: tuple[int, int],
) -> torch.Tensor:
    """Return w = 1 + a motion + b eventness + c persistence of the last frame, mean 1, (B, N).

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
    weights = recipe.motion_scale * distances[last, following] + recipe.event_scale * rarity
    if T > 2:
        moved = (frames_tokens[:, 1:-1] != frames_tokens[:, :-2]).float()  # (B, T-2, N)
        near = F.max_pool2d(moved.unflatten(2, grid), 3, stride=1, padding=1)
        weights = weights + recipe.persistence_scale * near.flatten(2).mean(1)
    weights = 1 + weights * is_changed
    median = weights.median(dim=1, keepdim=True).values
    weights = torch.minimum(weights, recipe.importance_cap * median)
    return weights / weights.mean(dim=1, keepdim=True)


def false_change_weights(
    entropy: torch.Tensor, is_changed: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return the weight of what stays the same but was thought to change, (B, N).

    Importance weights alone make an unsure model prefer a change, and so make false changes. Here
    a token that stays counts 1 + scale (1 - p), p being its probability by the model.

    Args:
        entropy: cross-entropy of every token, (B, N).
        is_changed: the token differs from the one before, bool (B, N).
    """
    doubt = 1 - torch.exp(-entropy.detach())
    return torch.where(is_changed, 1.0, 1 + scale * doubt)
