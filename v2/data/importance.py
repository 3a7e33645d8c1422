"""What matters: weights of pixels and tokens, which windows are drawn, where a step learns.

Contract: from pixels, tokens, the codebook, rewards and ends alone; nothing here knows a game.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

BLOCK = 4096  # rows looked at together
END_SHARE = 0.1  # of the draws for events
MIN_POSITIONS = 9  # that `draw_positions` draws, one of them certain


def median_frame(pixels: torch.Tensor) -> torch.Tensor:
    """Return the per-pixel median of (B, 3, H, W) as (1, 3, H, W): what usually stands there."""
    return pixels.median(dim=0, keepdim=True).values


def deviates(pixels: torch.Tensor, median: torch.Tensor, threshold: float = 0.08) -> torch.Tensor:
    """Tell where pixels (B, 3, H, W) differ from others in some colour, float (B, 1, H, W)."""
    return ((pixels - median).abs() > threshold).any(dim=1, keepdim=True).to(pixels.dtype)


def deviation_rarity(pixels: torch.Tensor, median: torch.Tensor) -> torch.Tensor:
    """Return how rare it is that a pixel deviates from the median, in [0, 1], (1, 1, H, W)."""
    share = (deviates(pixels, median).sum(0, keepdim=True) + 1) / (len(pixels) + 1)
    return -share.log() / math.log(len(pixels) + 1)


def pixel_weights(
    pixels: torch.Tensor,
    before: torch.Tensor,
    median: torch.Tensor,
    rarity: torch.Tensor,
    rarity_scale: float,
    motion_scale: float,
) -> torch.Tensor:
    """Return w = 1 + a rarity + b motion of every pixel, (B, 1, H, W).

    Args:
        pixels, before: a frame and the one before it, (B, 3, H, W).
        median, rarity: `median_frame`, and `deviation_rarity`, which counts where a pixel deviates.
        motion_scale: of what moved. Both have a margin of 4 px: specks beside it count too.
    """
    unusual, moved = rarity * deviates(pixels, median), deviates(pixels, before)
    return 1 + _with_margin(rarity_scale * unusual) + _with_margin(motion_scale * moved)


def _with_margin(weights: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(weights, 9, stride=1, padding=4)


def rare_motion_chances(
    frames: np.ndarray, rows: np.ndarray, before: np.ndarray, share: float, threshold: int = 20
) -> np.ndarray:
    """Return the chance with which to draw each frame, (n,): more often where motion is rare.

    A frame scores the largest 1 / (how often that pixel moves) of its moving pixels, at most ten
    times the median score: a ball among bricks is then seen oftener than one in the open.

    Args:
        frames: uint8 (M, H, W, 3).
        rows, before: the frames to draw from and those before them, (n,).
        share: of the draws that follow the scores; the others are uniform.
        threshold: a pixel moves where some colour differs by more, of 255.
    """
    parts = np.array_split(np.arange(len(rows)), max(1, len(rows) // 1024))

    def moving(part):  # (n, H * W)
        here, there = frames[rows[part]], frames[before[part]]
        differ = np.maximum(here, there) - np.minimum(here, there) > threshold
        return differ.any(-1).reshape(len(part), -1)

    counts = sum(moving(part).sum(0) for part in parts)
    rarity = (1 / counts.clip(1)).astype(np.float32)
    scores = np.concatenate([(moving(part) * rarity).max(1) for part in parts])
    if (scores > 0).any():
        scores = scores.clip(max=10 * np.median(scores[scores > 0]))
    chances = (1 - share) / len(rows) + share * scores / max(scores.sum(), 1e-12)
    return chances / chances.sum()


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


def event_steps(
    tokens: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, grid: tuple[int, int],
    max_rate: float = 0.05,
) -> np.ndarray:  # fmt: skip
    """Tell at which rows something happens that motion does not announce, bool (M,).

    A reward or the end; a token that changes though nothing within two cells of it moved in the
    three steps before (serves, bricks, digits); an object that comes back to a cell which it left
    in the three steps before (bounces): there the token is unlike the cell's most frequent one
    again. Returns count only in cells that change in less than `max_rate` of the steps. What is
    said of the first three rows of an episode and of its last means nothing.

    Args:
        tokens: uint8 (M, N), consecutive frames.
        rewards, terminated: (M,), of the step taken at each row.
        grid: (h, w); max_rate: of the steps.
    """
    events = (rewards != 0) | terminated
    usual = np.array([np.bincount(cell).argmax() for cell in tokens.T], np.uint8)
    changes = sum(np.not_equal(a[1:], a[:-1]).sum(0) for a in _overlapping(tokens))
    is_quiet = torch.from_numpy(changes < max_rate * len(tokens))
    for first in range(3, len(tokens) - 1, BLOCK):
        rows = tokens[first - 3 : first + BLOCK + 1]  # from three before the first to one after
        seen = torch.from_numpy(rows)
        changed = seen[1:] != seen[:-1]
        moved = (changed[:-3] | changed[1:-2] | changed[2:-1]).float().unflatten(1, grid)
        near = F.max_pool2d(moved.unsqueeze(1), 5, stride=1, padding=2).flatten(1) > 0
        is_object = torch.from_numpy(rows != usual)
        was_object = is_object[:-4] | is_object[1:-3] | is_object[2:-2]
        returns = was_object & ~is_object[3:-1] & is_object[4:] & is_quiet
        happened = ((changed[3:] & ~near) | returns).any(1).numpy()
        events[first : first + len(happened)] |= happened
    return events


def _overlapping(tokens: np.ndarray):
    """Yield blocks of rows (n + 1, N) that share their last and first."""
    for first in range(0, len(tokens) - 1, BLOCK):
        yield tokens[first : first + BLOCK + 1]


def event_chances(
    events: np.ndarray, ends: np.ndarray, starts: np.ndarray, history: int, steps: int,
    share: float,
) -> np.ndarray | None:  # fmt: skip
    """Return the chance to draw each window, (n,); None where no window has an event.

    Args:
        events, ends: bool (M,); starts: first rows of the windows, (n,).
        share: of the draws that go to windows with an event in the steps that are predicted, some
            of them (`END_SHARE`) to those with the end of a game, which is the rarest.
    """
    has_event, has_end = (_within(rows, starts + history - 1, steps) for rows in (events, ends))
    if not share or not has_event.any():
        return None
    end_share = share * END_SHARE if has_end.any() else 0.0
    chances = (share - end_share) * has_event / has_event.sum()
    chances += end_share * has_end / max(has_end.sum(), 1)
    return chances + (1 - share) / len(starts)


def _within(happens: np.ndarray, first: np.ndarray, steps: int) -> np.ndarray:
    """Tell where something happens in the rows first .. first + steps - 1."""
    total = np.concatenate([[0], np.cumsum(happens)])
    return total[first + steps] > total[first]


def draw_positions(
    history: torch.Tensor, count: int, grid: tuple[int, int], draws: torch.Tensor,
    is_certain: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Draw positions, the nearer to what moved in the history the sooner; return them and chances.

    A quarter lies far from motion and holds a token that is rare in the last frame, such as digits
    or the edge of a hole in a wall, an eighth the other far ones.

    Args:
        history: tokens (B, 4, N). What is predicted is not looked at: the choice betrays nothing.
        count: M positions a sample, at least `MIN_POSITIONS`, and 8 more than are certain, for none
            to be left without a chance.
        draws: uniform in [0, 1), (B, N).
        is_certain: bool (B, N): drawn before all others, those with the least draws first.
    Returns:
        positions int64 (B, M) and the probability with which each was drawn, float32 (B, M).
    """
    group = 4 - sum(near.long() for near in _near_motion(history, grid))
    group = group + ((group == 4) & ~_is_rare(history[:, -1])).long()
    if is_certain is not None:
        group = group.masked_fill(is_certain, 0)
    numbers = F.one_hot(group, 6).sum(1)  # (B, 6)
    drawn = _shares(numbers, count)
    chances = (drawn / numbers.clamp_min(1)).gather(1, group).masked_fill(group == 0, 1)
    order = (draws + 3 * group).argsort(1)  # each group at random
    rank = torch.arange(order.shape[1], device=order.device)
    rank = rank - (numbers.cumsum(1) - numbers).gather(1, group).gather(1, order)  # in its group
    is_drawn = rank < drawn.gather(1, group).gather(1, order)
    positions = order[is_drawn].view(len(order), count)
    return positions, chances.gather(1, positions)


def _near_motion(history: torch.Tensor, grid: tuple[int, int]) -> list[torch.Tensor]:
    """Tell which positions moved in a history (B, T, N), and lie within one and two of such."""
    moved = (history[:, 1:] != history[:, :-1]).any(1)  # (B, N)
    cells = moved.float().unflatten(1, grid).unsqueeze(1)
    rings = [F.max_pool2d(cells, 2 * r + 1, stride=1, padding=r).flatten(1) > 0 for r in (1, 2)]
    return [moved, *rings]


def _is_rare(frame: torch.Tensor) -> torch.Tensor:
    """Tell which tokens of frames (B, N), below 256, occur in at most one cell of 64."""
    counts = frame.new_zeros(len(frame), 256).scatter_add_(1, frame, torch.ones_like(frame))
    return counts.gather(1, frame) <= frame.shape[1] // 64


def _shares(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Return how many positions to draw of each group, (B, 6), `count` together.

    Of those near motion the nearest come first, but some are of each group, so that all have a
    chance.

    Args:
        numbers: how many there are that are certain, moved, within one, within two, far and rare,
            and far.
    """
    certain = numbers[:, :1].clamp(max=count)
    left = count - certain
    few = torch.maximum(left // 16, (left >= MIN_POSITIONS - 1).long())
    least = torch.cat([few, few, few, left // 4, left // 8], 1)
    least = torch.minimum(least, numbers[:, 1:])
    more = left - least.sum(1, keepdim=True)
    filled = torch.minimum((numbers[:, 1:] - least).cumsum(1), more)
    return torch.cat([certain, least + filled.diff(dim=1, prepend=0 * certain)], 1)
