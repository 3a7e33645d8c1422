"""What two frames, two token grids or two readings of the objects have in common.

Contract: arrays in, numbers out; whatever belongs to one sample stays apart (one value a sample),
so that the caller can average over episodes. Frames are uint8 (B, H, W, 3) or float (B, 3, H, W)
in [0, 1]. Knows nothing of models, files or games.
"""

import numpy as np
import torch
import torch.nn.functional as F

from v2.eval.objects.base import Objects

MAX_PSNR = 60.0  # dB; where frames are equal, and about the rounding error of uint8
MAX_BALL_ERROR_PX = 2.0  # about one step of flight
SPURIOUS_MARGIN_PX = 4


def psnr(first, second) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each pair of frames in dB, at most 60, (B,)."""
    difference = _pixels(first) - _pixels(second)
    error = difference.square().flatten(1).mean(1).clamp_min(10 ** (-MAX_PSNR / 10))
    return (-10 * error.log10()).numpy()


def ssim(first, second) -> np.ndarray:
    """Return the structural similarity of each pair of frames, (B,).

    Wang et al. 2004: Gaussian window of 11 pixels with sigma 1.5, mean over the three colours.
    """
    first, second = _pixels(first), _pixels(second)
    offsets = torch.arange(11) - 5
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(image):
        batch, channels, height, width = image.shape
        image = image.reshape(batch * channels, 1, height, width)
        image = F.conv2d(F.conv2d(image, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))
        return image.reshape(batch, channels, *image.shape[-2:])

    mean_1, mean_2 = blur(first), blur(second)
    variance_1 = blur(first * first) - mean_1**2
    variance_2 = blur(second * second) - mean_2**2
    covariance = blur(first * second) - mean_1 * mean_2
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    similarity /= (mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2)
    return similarity.flatten(1).mean(1).numpy()


def worst_patch_psnr(first, second) -> np.ndarray:
    """Return the PSNR of each pair's worst patch of 8x8 pixels, at every fourth pixel, (B,)."""
    error = (_pixels(first) - _pixels(second)).square().mean(1, keepdim=True)
    worst = F.avg_pool2d(error, 8, 4).flatten(1).amax(1).clamp_min(10 ** (-MAX_PSNR / 10))
    return (-10 * worst.log10()).numpy()


def _pixels(frames) -> torch.Tensor:
    """Return float32 (B, 3, H, W) in [0, 1] on the CPU."""
    frames = torch.as_tensor(frames).detach().cpu()
    if frames.ndim != 4:
        raise ValueError(f"frames must have four axes, got {tuple(frames.shape)}")
    if frames.dtype == torch.uint8:
        return frames.movedim(-1, 1).float() / 255
    return frames.float()


def token_accuracy(predicted, target) -> np.ndarray:
    """Return the share of right tokens of each sample, (B,); tokens are (B, N)."""
    return (np.asarray(predicted) == np.asarray(target)).mean(1)


def change_counts(predicted, target, last) -> dict[str, np.ndarray]:
    """Count, for each sample, what became of the tokens that change and of those that do not.

    Args:
        predicted, target, last: tokens (B, N); `last` is the frame before the predicted one.
    Returns:
        changed, changed_right, unchanged, false_changes, each (B,).
    """
    predicted, target, last = (np.asarray(tokens) for tokens in (predicted, target, last))
    changed = target != last
    return {
        "changed": changed.sum(1),
        "changed_right": (changed & (predicted == target)).sum(1),
        "unchanged": (~changed).sum(1),
        "false_changes": (~changed & (predicted != target)).sum(1),
    }


def spurious_changes(first_frames, second_frames, first_tokens, second_tokens) -> np.ndarray:
    """Count tokens that changed although no pixel within 4 px of their patch did, (B,).

    Args:
        first_frames, second_frames: uint8 (B, 84, 64, 3), consecutive.
        first_tokens, second_tokens: (B, N), row by row.
    """
    moved = (np.asarray(first_frames) != np.asarray(second_frames)).any(-1)
    moved = torch.from_numpy(moved).float()[:, None]  # (B, 1, H, W)
    num_tokens = np.asarray(first_tokens).shape[1]
    patch = round((moved.shape[-1] * moved.shape[-2] / num_tokens) ** 0.5)
    margin = SPURIOUS_MARGIN_PX
    near = F.max_pool2d(F.pad(moved, [margin] * 4), patch + 2 * margin, stride=patch)
    is_near = near.flatten(1).numpy() > 0
    return ((np.asarray(first_tokens) != np.asarray(second_tokens)) & ~is_near).sum(1)


def code_histogram(tokens, num_codes: int) -> np.ndarray:
    """Return how often each code stands, as shares."""
    counts = np.bincount(np.asarray(tokens).reshape(-1), minlength=num_codes)
    return counts / counts.sum()


def perplexity(histogram: np.ndarray) -> float:
    used = histogram[histogram > 0]
    return float(np.exp(-(used * np.log(used)).sum()))


def histogram_kl(seen: np.ndarray, reference: np.ndarray) -> float:
    """Return KL(seen || reference) in nats, the reference smoothed by 1e-5."""
    reference = (reference + 1e-5) / (reference + 1e-5).sum()
    used = seen > 0
    return float((seen[used] * np.log(seen[used] / reference[used])).sum())


def ball_errors(truth: Objects, seen: Objects) -> np.ndarray:
    """Return the distance from the strongest ball seen to the true one in px, NaN without, (N,)."""
    return np.hypot(*(seen.ball - truth.ball).T)


def ball_counts(
    truth: Objects, seen: Objects, max_error_px: float = MAX_BALL_ERROR_PX
) -> dict[str, np.ndarray]:
    """Count for each frame what was seen of the ball.

    Returns:
        visible (a ball can be seen), hits (and is seen within `max_error_px`), found (some ball is
        seen), balls (how many are seen), false_balls (those seen elsewhere or beside the first),
        duplicates (more than one ball is seen), each (N,).
    """
    visible = truth.num_balls > 0
    near = ball_errors(truth, seen) <= max_error_px  # also a ball that is half hidden
    return {
        "visible": visible,
        "hits": visible & near,
        "found": visible & (seen.num_balls > 0),
        "balls": seen.num_balls,
        "false_balls": seen.num_balls - near,
        "duplicates": seen.num_balls > 1,
    }


def ball_scores(
    truth: Objects, seen: Objects, max_error_px: float = MAX_BALL_ERROR_PX
) -> dict[str, float]:
    """Return recall, precision, false_balls and duplicates a frame, and the position error in px.

    A ball is recalled when the strongest ball seen lies within `max_error_px` of the true one.
    NaN where nothing can be said.
    """
    counts = ball_counts(truth, seen, max_error_px)
    errors = ball_errors(truth, seen)[counts["hits"]]
    return {
        "recall": _ratio(counts["hits"].sum(), counts["visible"].sum()),
        "precision": 1 - _ratio(counts["false_balls"].sum(), counts["balls"].sum()),
        "false_balls": float(counts["false_balls"].mean()),
        "duplicates": float(counts["duplicates"].mean()),
        "error_median_px": float(np.median(errors)) if len(errors) else float("nan"),
        "error_p90_px": float(np.percentile(errors, 90)) if len(errors) else float("nan"),
    }


def brick_counts(truth: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
    """Count bricks that are there and seen, there, and seen, each (N,); maps are (N, 6, 18)."""
    return {
        "both": (truth & seen).sum((1, 2)),
        "there": truth.sum((1, 2)),
        "seen": seen.sum((1, 2)),
    }


def _ratio(part, whole) -> float:
    return float(part / whole) if whole else float("nan")
