"""Noise on the history: mistakes of the kinds promised, in the history alone."""

import numpy as np
import pytest

from v2.train.history_noise import MAX_PATCH, NUM_DRAWS, PASTED_SHARE, add_noise

GRID = (21, 16)
BALL, WALL, FLOOR = 7, 3, 1


def _window(steps: int = 5) -> np.ndarray:
    """A ball of one token that falls by a cell a step beside a wall, (1, 4 + steps, 336)."""
    window = np.full((1, 4 + steps, *GRID), FLOOR)
    window[..., 0] = WALL
    for t in range(4 + steps):
        window[0, t, 4 + t, 8] = BALL
    return window.reshape(1, 4 + steps, -1)


def _draws(mistake: float, first: float) -> np.ndarray:
    draws = np.zeros((1, NUM_DRAWS))
    draws[0, 1] = PASTED_SHARE
    draws[0, 3:6] = mistake, first, 0.5  # four cells away, to the right
    return draws


@pytest.mark.parametrize(("mistake", "balls"), [(0, []), (1, [(7, 8), (7, 12)]), (2, [(7, 9)])])
@pytest.mark.parametrize("first", [0, 3])
def test_an_object_is_dropped_doubled_or_shifted(mistake, balls, first):
    window = _window()
    before = window.copy()
    draws = _draws(mistake / 3 + 0.01, first / 4)
    noisy = add_noise(window, window[:, 0], GRID, 1.0, draws)
    assert (window == before).all()
    noisy = noisy.reshape(4, *GRID)
    assert [tuple(cell) for cell in np.argwhere(noisy[3] == BALL)] == balls
    assert (noisy[:, :, 0] == WALL).all()
    truth = window[0, :4].reshape(4, *GRID)
    is_changed = (noisy != truth).any((1, 2))
    assert is_changed[3] and not is_changed[:first].any()


@pytest.mark.parametrize("first", [0, 3])
def test_a_patch_of_another_frame_is_pasted_where_it_stays(first):
    window, draws = _window(), np.full((1, NUM_DRAWS), 0.5)
    draws[0, 1], draws[0, 3] = 0, 0 if first == 0 else 0.99
    other = np.full(GRID, FLOOR)
    other[:, 0], other[15, 3] = WALL, BALL  # differs at the ball it lacks and at its own
    noisy = add_noise(window, other.reshape(1, -1), GRID, 1.0, draws)
    noisy, truth = noisy.reshape(4, *GRID), window[0, :4].reshape(4, *GRID)
    assert (noisy[first:, 15, 3] == BALL).all() and (noisy[:first] == truth[:first]).all()
    noisy[first:, 15, 3] = FLOOR
    assert (noisy == truth).all()


def test_what_is_pasted_is_small_and_whole():
    rng = np.random.default_rng(0)
    windows, others = rng.integers(0, 16, (90, 5, 336)), rng.integers(16, 32, (90, 336))
    draws = rng.random((90, NUM_DRAWS))
    draws[:, 1] = 0
    noisy = add_noise(windows, others, GRID, 1.0, draws).reshape(90, 4, *GRID)
    for k in range(90):
        is_other = noisy[k, 3] >= 16
        cells = np.argwhere(is_other)
        height, width = np.ptp(cells, axis=0) + 1
        assert max(height, width) <= MAX_PATCH and height * width == len(cells)
        assert (noisy[k, 3][is_other] == others[k].reshape(GRID)[is_other]).all()


def test_a_frame_where_nothing_stands_out_stays():
    still = np.full((2, 6, 336), FLOOR)
    draws = np.full((2, NUM_DRAWS), 0.4)
    for pasted in (0, PASTED_SHARE):
        draws[:, 1] = pasted
        assert (add_noise(still, still[:, 0], GRID, 1.0, draws) == FLOOR).all()


def test_the_rate_is_the_share_of_samples_with_a_mistake():
    rng = np.random.default_rng(0)
    window = np.repeat(_window(), 400, axis=0)
    for rate in (0, 0.25):
        draws = rng.random((400, NUM_DRAWS))
        noisy = add_noise(window, window[:, -1], GRID, rate, draws)
        share = (noisy != window[:, :4]).any((1, 2)).mean()
        assert abs(share - rate) <= 0.06
    assert set(np.unique(noisy)) == {BALL, WALL, FLOOR}
