"""Detection by synthesis: what the object detectors of all games share.

Contract: what the emulator draws is laid on a frame by the exact 2.5x area average (`ROWS`,
`COLUMNS`); digits and paddles are the template that explains most; balls are compact spots in a map
of how much of each pixel a ball covers. Knows neither colours nor places of any game.
"""

import numpy as np

from v2.data.frames import FRAME_SHAPE, SCREEN_WIDTH, all_shares
from v2.eval.objects.base import NATIVE_PIXELS

SCREEN_HEIGHT = 210  # of the games that have a detector
BALL_WIDTH, BALL_HEIGHT = 2, 4  # native pixels
BALL_MASS = BALL_WIDTH * BALL_HEIGHT / NATIVE_PIXELS**2  # 1.28 pixels of full coverage
MAX_BALLS = 4
MIN_BALL_MASS = 0.5 * BALL_MASS  # half a ball counts: blurred, not erased
MIN_BALL_PEAK = 0.16  # half the peak of the worst-placed real ball, 0.32
MIN_BALL_SHARE = 0.55  # of the mass around it: a ball is compact, a smear or an edge is not
NOISE_COVERAGE = 0.06  # 12 of 200 grey levels
BALL_LIMITS = np.array(
    [NOISE_COVERAGE, MIN_BALL_MASS, MIN_BALL_PEAK, MIN_BALL_SHARE, MAX_BALLS], np.float32
)
MAX_GLYPH_ERROR = 0.35  # share of the digit's energy that its best glyph may leave unexplained

_GLYPHS = (  # the emulator's font, 3 x 5 cells
    "111101101101111", "010010010010010", "111001111100111", "111001011001111", "101101111001001",
    "111100111001111", "100100111101111", "111001001001001", "111101111101111", "111101111001001",
)  # fmt: skip
DIGITS = np.array([list(glyph) for glyph in _GLYPHS], np.float32).reshape(10, 5, 3)


ROWS, COLUMNS = (  # (84, 210), (64, 160): the area average of frames along each axis
    shares / shares[0].sum()
    for shares in map(all_shares, (SCREEN_HEIGHT, SCREEN_WIDTH), FRAME_SHAPE[:2])
)


def shrink(screen: np.ndarray) -> np.ndarray:
    """Return the frame of a drawn screen, float32 (84, 64, 3)."""
    return np.einsum("ay,bx,yxc->abc", ROWS, COLUMNS, screen, optimize=True)


def best_template(coverage: np.ndarray, templates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of (P, K) templates explains most of each (N, K), and what share is there."""
    energy = (templates**2).sum(1)
    match = coverage @ templates.T  # (N, P)
    best = (2 * match - energy).argmax(1)
    return best, match[np.arange(len(best)), best] / energy[best]


def read_glyphs(shade: np.ndarray, glyphs: np.ndarray) -> np.ndarray:
    """Return which of (G, K) glyphs each (N, K) shows, -1 where none explains it."""
    errors = ((shade[:, None] - glyphs) ** 2).sum(-1)  # (N, G)
    best = errors.argmin(1)
    energy = (glyphs**2).sum(1)[best]
    return np.where(errors.min(1) <= MAX_GLYPH_ERROR * energy, best, -1)


def find_balls(coverage: np.ndarray, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return the strongest ball (N, 2) and the number of balls (N,): strongest first, repeatedly.

    A ball lies in 2 x 3 pixels wherever it is, and its centre is taken over 4 x 5.

    Args:
        coverage: (N, 84, 64), of which `rows` and `columns` are searched.
    """
    field = coverage[:, rows, columns]
    field = np.where(field > NOISE_COVERAGE, field, 0).clip(max=1)
    field = np.pad(field, ((0, 0), (2, 2), (2, 2)))
    whole = field.copy()  # what is cleared below still counts as surroundings
    ball = np.full((len(field), 2), np.nan, np.float32)
    num_balls = np.zeros(len(field), int)
    active = np.arange(len(field))
    for _ in range(MAX_BALLS + 2):  # two more, for smears that hide a weaker ball
        mass = _window_sums(field[active])
        flat = mass.reshape(len(active), -1)
        best = flat.argmax(1)
        keep = flat[np.arange(len(active)), best] >= MIN_BALL_MASS
        active, best = active[keep], best[keep]
        if len(active) == 0:
            break
        y, x = np.unravel_index(best, mass.shape[1:])
        near_y, near_x = y[:, None] + np.arange(-1, 4), x[:, None] + np.arange(-1, 3)
        index = (active[:, None, None], near_y[:, :, None], near_x[:, None, :])
        patch = field[index]  # (n, 5, 4)
        inner = patch[:, 1:4, 1:3]
        total = patch.sum((1, 2))
        is_ball = (inner.max((1, 2)) >= MIN_BALL_PEAK) & (
            inner.sum((1, 2)) >= MIN_BALL_SHARE * whole[index].sum((1, 2))
        )
        centre_x = (patch.sum(1) * (near_x + 0.5)).sum(1) / total + columns.start - 2
        centre_y = (patch.sum(2) * (near_y + 0.5)).sum(1) / total + rows.start - 2
        is_first = is_ball & (num_balls[active] == 0)
        ball[active[is_first]] = np.stack([centre_x, centre_y], 1)[is_first]
        num_balls[active] += is_ball
        field[index] = 0
    return ball, num_balls.clip(max=MAX_BALLS)


def _window_sums(field: np.ndarray) -> np.ndarray:
    """Sum every window of 3 rows and 2 columns whose 5 x 4 surroundings lie in the field."""
    pairs = field[:, :, 1:-2] + field[:, :, 2:-1]
    sums = np.zeros((len(field), field.shape[1] - 2, field.shape[2] - 1), np.float32)
    sums[:, 1:-1, 1:-1] = pairs[:, 1:-3] + pairs[:, 2:-2] + pairs[:, 3:-1]
    return sums


def edges(*parts: slice) -> np.ndarray:
    """Return where parts of a frame begin and stop, uint8."""
    return np.array([edge for part in parts for edge in (part.start, part.stop)], np.uint8)


def ahead(values: np.ndarray) -> np.ndarray:
    """Return for each row what stands in the next."""
    return np.concatenate([values[1:], values[-1:]])
