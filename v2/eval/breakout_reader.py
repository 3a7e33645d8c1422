"""Breakout's objects, from pixels by synthesis and from memory by known addresses.

Contract: reading pixels infers walls, bricks, paddle and digits, subtracts what they explain, and
calls a ball what is left, has a ball's colour at that height and about a ball's mass. The ball
takes the colour of the row it crosses: grey above the bricks, the bricks' own colour among them,
red below. Vectorised over frames; knows nothing of models.
"""

import dataclasses

import numpy as np

from v2.eval.truth import NATIVE_PIXELS, Objects

GREY, RED, TEAL = (142, 142, 142), (200, 72, 72), (66, 158, 130)
BRICK_COLOURS = np.array(
    [(200, 72, 72), (198, 108, 58), (180, 122, 48), (162, 162, 42), (72, 160, 72), (66, 72, 200)],
    np.float32,
)
LEFT_WALL, RIGHT_WALL, CEILING, FLOOR = 8, 152, 32, 196  # the field's edges, in native pixels
BRICK_TOP, BRICK_HEIGHT, BRICK_WIDTH = 57, 6, 8
PADDLE_TOP, PADDLE_BOTTOM, PADDLE_WIDTHS = 189, 193, (16, 12)
BALL_WIDTH, BALL_HEIGHT = 2, 4
BALL_MASS = BALL_WIDTH * BALL_HEIGHT / NATIVE_PIXELS**2  # 1.28 pixels of full coverage
MAX_BALLS = 4
CHUNK = 64  # frames read at once: what the processor's cache holds

MIN_BALL_MASS = 0.5 * BALL_MASS  # half a ball counts: blurred, not erased
MIN_BALL_PEAK = 0.16  # half the peak of the worst-placed real ball, 0.32
MIN_BALL_SHARE = 0.55  # of the mass around it: a ball is compact, a smear or an edge is not
NOISE_COVERAGE = 0.06  # 12 of 200 grey levels
MIN_BRICK, SURE_BRICK = 0.3, 0.7  # between them a brick is half dreamed and subtracted as it is
MIN_PADDLE = 0.5
MAX_GLYPH_ERROR = 0.35  # share of the digit's energy that its best glyph may leave unexplained

GLYPHS = (  # the emulator's font, 3 x 5 cells of 4 x 2 native pixels
    "111101101101111", "010010010010010", "111001111100111", "111001011001111", "101101111001001",
    "111100111001111", "100100111101111", "111001001001001", "111101111101111", "111101111001001",
)  # fmt: skip
DIGIT_TOP, SCORE_LEFT, LIVES_LEFT, PLAYER_LEFT = 5, (36, 52, 68), 100, 136
BRICK_BITS = (  # column -> (first byte of its group, bit); row r is r bytes before the last
    (30, 7), (24, 7), (24, 5), (24, 3), (24, 1), (18, 1), (18, 3), (18, 5), (18, 7), (12, 5),
    (12, 7), (6, 7), (6, 5), (6, 3), (6, 1), (0, 1), (0, 3), (0, 5),
)  # fmt: skip


def read_ram(ram: np.ndarray) -> Objects:
    """Return the objects that the memory holds; ram is uint8 (N, 128)."""
    ram = ram.astype(np.int32)
    bricks = np.empty((len(ram), 6, 18), bool)
    for column, (first, bit) in enumerate(BRICK_BITS):
        bricks[:, :, column] = (ram[:, first : first + 6][:, ::-1] >> bit & 1).astype(bool)
    ball_left, ball_top = ram[:, 99] - 49, ram[:, 101] + 9
    paddle_left = ram[:, 72] - 47
    paddle_right = paddle_left + 2 * ram[:, 108]  # 16 wide, 12 once the ball has met the ceiling
    paddle = (paddle_left.clip(LEFT_WALL) + paddle_right.clip(max=RIGHT_WALL)) / 2
    in_play = (ram[:, 101] > 0) & (ball_top < FLOOR)
    ball = np.stack([ball_left + BALL_WIDTH / 2, ball_top + BALL_HEIGHT / 2], 1)
    ball = np.where(in_play[:, None], ball / NATIVE_PIXELS, np.nan)
    visible = _visible_pixels(ball_left, ball_top, bricks, paddle_left, paddle_right)
    return Objects(
        ball=ball.astype(np.float32),
        num_balls=(in_play & (visible > BALL_WIDTH * BALL_HEIGHT / 2)).astype(int),
        paddle=(paddle / NATIVE_PIXELS).astype(np.float32),
        bricks=bricks,
        score=(ram[:, 76] & 15) * 100 + (ram[:, 77] >> 4) * 10 + (ram[:, 77] & 15),
        lives=ram[:, 57],
    )


def _visible_pixels(left, top, bricks, paddle_left, paddle_right) -> np.ndarray:
    """Count the ball's native pixels that differ from what lies behind them."""
    frames, count = np.arange(len(left)), np.zeros(len(left), int)
    for dy in range(BALL_HEIGHT):
        for dx in range(BALL_WIDTH):
            x, y = left + dx, top + dy
            inside = (x >= LEFT_WALL) & (x < RIGHT_WALL) & (y >= CEILING) & (y < FLOOR - 1)
            row = ((y - BRICK_TOP) // BRICK_HEIGHT).clip(0, 5)
            column = ((x - LEFT_WALL) // BRICK_WIDTH).clip(0, 17)
            among = (y >= BRICK_TOP) & (y < BRICK_TOP + 6 * BRICK_HEIGHT)
            behind = among & bricks[frames, row, column]
            beside = (x >= paddle_left - 3) & (x < paddle_right + 3)
            behind |= (y >= PADDLE_TOP - 2) & beside
            count += inside & ~behind
    return count


def read_frames(frames: np.ndarray) -> Objects:
    """Return the objects that the pixels show; frames is uint8 (N, 84, 64, 3)."""
    if frames.ndim != 4 or frames.shape[1:] != (84, 64, 3) or frames.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8 (N, 84, 64, 3), got {frames.dtype} {frames.shape}"
        )
    if len(frames) == 0:
        return read_ram(np.zeros((0, 128), np.uint8))
    chunks = [_read_chunk(frames[k : k + CHUNK]) for k in range(0, len(frames), CHUNK)]
    fields = dataclasses.fields(Objects)
    return Objects(*(np.concatenate([getattr(c, f.name) for c in chunks]) for f in fields))


def _read_chunk(frames: np.ndarray) -> Objects:
    residual = frames.astype(np.float32) - _BACKGROUND
    amounts = _brick_amounts(residual)
    paddle_mask, paddle = _find_paddle(residual)
    explained = np.where(amounts < MIN_BRICK, 0, np.where(amounts > SURE_BRICK, 1, amounts))
    residual[:, _BRICK_ROWS] -= _paint_bricks(explained.astype(np.float32))
    coverage = np.einsum("nyxc,yc->nyx", residual, _BALL_FILTER)
    coverage[:, _PADDLE_ROWS][paddle_mask[:, None].repeat(3, 1)] = 0
    ball, num_balls = _find_balls(coverage)
    return Objects(
        ball, num_balls, paddle, amounts > 0.5, _read_score(residual), _read_lives(residual)
    )


def _averaging(native: int, pixels: int) -> np.ndarray:
    """Return the matrix (pixels, native) of the exact 2.5x area average along one axis."""
    edges = np.arange(pixels + 1) * NATIVE_PIXELS
    left = np.maximum(edges[:-1, None], np.arange(native))
    right = np.minimum(edges[1:, None], np.arange(native) + 1)
    return ((right - left).clip(0) / NATIVE_PIXELS).astype(np.float32)


_ROWS, _COLUMNS = _averaging(210, 84), _averaging(160, 64)


def _draw_background() -> np.ndarray:
    """Return walls, side marks and the player's number, float32 (84, 64, 3)."""
    screen = np.zeros((210, 160, 3), np.float32)
    screen[17:CEILING] = GREY
    screen[CEILING:PADDLE_TOP, :LEFT_WALL] = GREY
    screen[CEILING:PADDLE_TOP, RIGHT_WALL:] = GREY
    screen[PADDLE_TOP:196, :LEFT_WALL] = TEAL
    screen[PADDLE_TOP:195, RIGHT_WALL:] = RED
    screen[DIGIT_TOP : DIGIT_TOP + 10, PLAYER_LEFT : PLAYER_LEFT + 4] = GREY
    return np.einsum("ay,bx,yxc->abc", _ROWS, _COLUMNS, screen, optimize=True)


def _ball_filter() -> np.ndarray:
    """Return for every pixel row what turns a residual colour into a share of ball, (84, 3)."""
    colours = np.tile(np.array(RED, np.float32), (210, 1))
    colours[:BRICK_TOP] = GREY
    colours[BRICK_TOP : BRICK_TOP + 36] = BRICK_COLOURS.repeat(BRICK_HEIGHT, 0)
    colours = _ROWS @ colours
    return colours / (colours**2).sum(1, keepdims=True)


_BACKGROUND = _draw_background()
_BALL_FILTER = _ball_filter()
_BRICK_ROWS = slice(22, 38)  # native 55 to 95
_FIELD_COLUMNS = slice(3, 61)
_PADDLE_ROWS = slice(75, 78)
_BALL_ROWS = slice(12, 79)

_brick_x = _COLUMNS[:, LEFT_WALL:RIGHT_WALL].reshape(64, 18, BRICK_WIDTH).sum(2)  # (64, 18)
_brick_y = _ROWS[_BRICK_ROWS, BRICK_TOP : BRICK_TOP + 36].reshape(16, 6, BRICK_HEIGHT).sum(2)
_brick_y = _brick_y[:, None] * BRICK_COLOURS.T[None]  # (16, 3, 6)
_BRICK_X, _BRICK_X_INVERSE = _brick_x, np.linalg.pinv(_brick_x).astype(np.float32)
_BRICK_Y = _brick_y.reshape(48, 6)
_BRICK_Y_INVERSE = np.linalg.pinv(_BRICK_Y).astype(np.float32)


def _brick_amounts(residual: np.ndarray) -> np.ndarray:
    """Return how much of each brick is there, by least squares, float32 (N, 6, 18)."""
    band = residual[:, _BRICK_ROWS].transpose(0, 1, 3, 2) @ _BRICK_X_INVERSE.T  # (N, 16, 3, 18)
    return _BRICK_Y_INVERSE @ band.reshape(len(band), 48, 18)


def _paint_bricks(amounts: np.ndarray) -> np.ndarray:
    """Return what the bricks add to their rows, float32 (N, 16, 64, 3)."""
    columns = _BRICK_Y @ amounts @ _BRICK_X.T  # (N, 48, 64)
    return columns.reshape(-1, 16, 3, 64).transpose(0, 1, 3, 2)


def _paddle_templates() -> tuple[np.ndarray, np.ndarray]:
    """Return the coverage of every possible paddle (P, 64) and its visible middle (P,)."""
    rows, middles = [], []
    for width in PADDLE_WIDTHS:
        for left in range(LEFT_WALL - width + 4, RIGHT_WALL - 3):
            start, stop = max(left, LEFT_WALL), min(left + width, RIGHT_WALL)
            rows.append(_COLUMNS[:, start:stop].sum(1))
            middles.append((start + stop) / 2 / NATIVE_PIXELS)
    return np.array(rows, np.float32), np.array(middles, np.float32)


_PADDLES, _PADDLE_MIDDLES = _paddle_templates()
_PADDLE_ENERGY = (_PADDLES**2).sum(1)


def _find_paddle(residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel columns it covers and touches, bool (N, 64), and its middle (N,)."""
    coverage = residual[:, 76] @ _BALL_FILTER[76]  # (N, 64)
    match = coverage @ _PADDLES.T  # (N, P)
    best = (2 * match - _PADDLE_ENERGY).argmax(1)
    amount = match[np.arange(len(best)), best] / _PADDLE_ENERGY[best]
    is_there = amount >= MIN_PADDLE
    touched = _PADDLES[best] > 0
    touched[:, 1:] |= _PADDLES[best][:, :-1] > 0
    touched[:, :-1] |= _PADDLES[best][:, 1:] > 0
    middle = np.where(is_there, _PADDLE_MIDDLES[best], np.nan)
    return touched & is_there[:, None], middle.astype(np.float32)


def _find_balls(coverage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the strongest ball (N, 2) and the number of balls (N,): strongest first, repeatedly.

    A ball lies in 2 x 3 pixels wherever it is, and its centre is taken over 4 x 5.
    """
    field = coverage[:, _BALL_ROWS, _FIELD_COLUMNS]
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
        rows, columns = y[:, None] + np.arange(-1, 4), x[:, None] + np.arange(-1, 3)
        index = (active[:, None, None], rows[:, :, None], columns[:, None, :])
        patch = field[index]  # (n, 5, 4)
        inner = patch[:, 1:4, 1:3]
        total = patch.sum((1, 2))
        is_ball = (inner.max((1, 2)) >= MIN_BALL_PEAK) & (
            inner.sum((1, 2)) >= MIN_BALL_SHARE * whole[index].sum((1, 2))
        )
        centre_x = (patch.sum(1) * (columns + 0.5)).sum(1) / total + _FIELD_COLUMNS.start - 2
        centre_y = (patch.sum(2) * (rows + 0.5)).sum(1) / total + _BALL_ROWS.start - 2
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


def _glyph_templates(left: int) -> np.ndarray:
    """Return the ten digits as they fall on the pixels at this place, float32 (10, 4, w)."""
    cells = np.array([list(glyph) for glyph in GLYPHS], np.float32).reshape(10, 5, 3)
    native = cells.repeat(2, 1).repeat(4, 2)  # (10, 10, 12)
    rows = _ROWS[2:6, DIGIT_TOP : DIGIT_TOP + 10]
    columns = _COLUMNS[_digit_columns(left), left : left + 12]
    return rows @ native @ columns.T


def _digit_columns(left: int) -> slice:
    return slice(int(left / NATIVE_PIXELS), int(np.ceil((left + 12) / NATIVE_PIXELS)))


_DIGITS = {left: _glyph_templates(left).reshape(10, -1) for left in (*SCORE_LEFT, LIVES_LEFT)}


def _read_digit(residual: np.ndarray, left: int) -> np.ndarray:
    """Return the digit at this place, -1 where no glyph explains it."""
    shade = residual[:, 2:6, _digit_columns(left)].mean(-1).reshape(len(residual), -1) / GREY[0]
    glyphs = _DIGITS[left]
    errors = ((shade[:, None] - glyphs) ** 2).sum(-1)  # (N, 10)
    best = errors.argmin(1)
    energy = (glyphs**2).sum(1)[best]
    return np.where(errors.min(1) <= MAX_GLYPH_ERROR * energy, best, -1)


def _read_score(residual: np.ndarray) -> np.ndarray:
    hundreds, tens, ones = (_read_digit(residual, left) for left in SCORE_LEFT)
    readable = (hundreds >= 0) & (tens >= 0) & (ones >= 0)
    return np.where(readable, hundreds * 100 + tens * 10 + ones, -1)


def _read_lives(residual: np.ndarray) -> np.ndarray:
    return _read_digit(residual, LIVES_LEFT)
