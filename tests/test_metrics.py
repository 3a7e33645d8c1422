"""Metrics say what they are named after."""

import numpy as np
import pytest
import torch

from v2.eval import metrics
from v2.eval.intervals import mean_metric, paired_difference, quantile_metric


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def noise(rng, count=3):
    return rng.integers(0, 256, (count, 84, 64, 3), dtype=np.uint8)


def test_psnr_of_a_known_error(rng):
    frames = np.full((2, 84, 64, 3), 100, np.uint8)
    other = frames.copy()
    other[1] += 10
    values = metrics.psnr(frames, other)
    assert values[0] == pytest.approx(metrics.MAX_PSNR)
    assert values[1] == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)


def test_bytes_and_floats_score_the_same(rng):
    first, second = noise(rng), noise(rng)
    pixels = [torch.from_numpy(f).movedim(-1, 1).float() / 255 for f in (first, second)]
    assert metrics.psnr(first, second) == pytest.approx(metrics.psnr(*pixels), abs=1e-4)
    assert metrics.ssim(first, second) == pytest.approx(metrics.ssim(*pixels), abs=1e-4)


def test_ssim_is_one_for_equal_frames_and_near_zero_for_noise(rng):
    frames = noise(rng)
    assert metrics.ssim(frames, frames) == pytest.approx(1, abs=1e-4)
    assert np.abs(metrics.ssim(frames, noise(rng))).max() < 0.1


def test_changed_tokens_and_false_changes_are_counted_apart():
    last, target = np.array([[1, 1, 1, 1]]), np.array([[1, 2, 2, 1]])
    counts = metrics.change_counts(np.array([[3, 2, 1, 1]]), target, last)
    assert {name: int(count[0]) for name, count in counts.items()} == {
        "changed": 2, "changed_right": 1, "unchanged": 2, "false_changes": 1,
    }  # fmt: skip


def test_a_token_that_changes_far_from_any_moved_pixel_is_spurious():
    frames = np.zeros((2, 84, 64, 3), np.uint8)
    moved = frames.copy()
    moved[:, 40, 40] = 255  # in patch (10, 10)
    tokens = np.zeros((2, 336), int)
    changed = tokens.copy()
    changed[0, 10 * 16 + 10] = changed[0, 9 * 16 + 9] = 1  # at the pixel and beside it
    changed[1, 0] = changed[1, 12 * 16 + 12] = 1  # far away
    assert metrics.spurious_changes(frames, moved, tokens, changed).tolist() == [0, 2]


def test_perplexity_counts_equally_used_codes():
    histogram = metrics.code_histogram([0, 1, 2, 3], 32)
    assert metrics.perplexity(histogram) == pytest.approx(4)
    assert metrics.histogram_kl(histogram, histogram) == pytest.approx(0, abs=1e-3)


def test_intervals_hold_the_truth_and_know_episodes(rng):
    episodes = np.repeat(np.arange(40), 25)
    luck = rng.normal(size=40)[episodes]  # shared by an episode's frames
    metric = mean_metric(luck + rng.normal(size=1000), episodes)
    frame_wise = mean_metric(luck, np.arange(1000))
    assert metric.low < 0 < metric.high
    assert metric.high - metric.low > 3 * (frame_wise.high - frame_wise.low)
    assert metric.low < metric.value < metric.high


def test_intervals_are_as_wide_as_their_name_says(rng):
    values = rng.normal(size=400)
    values = (values - values.mean()) / values.std()
    metric = mean_metric(values, np.arange(400))
    assert metric.high - metric.low == pytest.approx(2 * 1.96 / 20, rel=0.08)  # 90 %: a sixth less
    luck = rng.normal(size=40)[np.repeat(np.arange(40), 25)]
    widths = [quantile_metric(luck, ids, 0.5) for ids in (np.repeat(np.arange(40), 25),
                                                          np.arange(1000))]  # fmt: skip
    by_game, by_frame = (metric.high - metric.low for metric in widths)
    assert by_game > 2 * by_frame


def test_the_worst_patch_is_the_worst():
    frames = np.full((1, 84, 64, 3), 100, np.uint8)
    changed = frames.copy()
    changed[0, 8:16, 8:16] += 10
    assert metrics.worst_patch_psnr(frames, changed) == pytest.approx(20 * np.log10(25.5), abs=0.01)


def test_nothing_seen_in_few_games_leaves_a_doubt_to_shares_and_none_to_counts():
    nothing, episodes = np.zeros(20), np.arange(20) // 2
    assert mean_metric(nothing, episodes).high == pytest.approx(0.31, abs=0.01)  # 0.975 of ten
    assert mean_metric(nothing, episodes, is_share=False).high == 0


def test_ratios_are_of_sums_and_nan_is_left_out():
    metric = mean_metric([1, 0, np.nan], [0, 1, 2], [1, 3, 5])
    assert metric.value == pytest.approx(0.25)
    assert np.isnan(mean_metric([np.nan], [0]).value)


def test_quantiles_have_intervals(rng):
    metric = quantile_metric(rng.normal(size=500), np.arange(500), 0.5)
    assert metric.low < metric.value < metric.high and abs(metric.value) < 0.2


def test_paired_differences_are_sharper_than_the_numbers_themselves(rng):
    base = rng.normal(size=50)
    first = mean_metric(base, np.arange(50)).to_dict()
    second = mean_metric(base + 0.1, np.arange(50)).to_dict()
    difference, low, high = paired_difference(first, second)
    assert difference == pytest.approx(0.1) and low > 0.09 and high < 0.11


def test_eight_of_eight_leave_doubt():
    """A share of 0 or 1 has an interval, too: (1 - p) ** 8 = 2.5 %."""
    every, none = (mean_metric([hit] * 8, range(8)) for hit in (1, 0))
    assert (every.value, every.high) == (1, 1) and every.low == pytest.approx(0.6306, abs=1e-3)
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(1 - 0.6306, abs=1e-3)
    episodes = [1, 1, 1, 1, 2, 2, 2, 2]  # eight samples of two games say less
    assert mean_metric([1] * 8, episodes).low < every.low
    twice = mean_metric([0] * 8, range(8), [1, 2] * 4)  # of frames with a ball, and with two
    assert twice.high == none.high
    assert mean_metric([0.0] * 8, range(8), [100] * 8).high == 0  # no shares of samples


def test_one_episode_alone_has_no_interval():
    metric = mean_metric([0.2, 0.4], [7, 7])
    assert metric.value == pytest.approx(0.3) and np.isnan(metric.low)
    difference, low, _ = paired_difference(metric.to_dict(), metric.to_dict())
    assert difference == 0 and np.isnan(low)
