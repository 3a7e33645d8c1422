"""Breakout's objects, from pixels by synthesis and from memory by known addresses; its events.

Contract: in pixels it infers walls, bricks, paddle and digits, subtracts what they explain, and
calls a ball what is left, has a ball's colour at that height and about a ball's mass. The ball
takes the colour of the row it crosses: grey above the bricks, the bricks' own colour among them,
red below. Vectorised over frames; knows nothing of models.
"""

import numpy as np

from v2.data.frames import FRAME_SHAPE
from v2.eval.objects.base import MAX_JITTER, NATIVE_PIXELS, Objects
from v2.eval.objects.synthesis import (
    BALL_HEIGHT,
    BALL_LIMITS,
    BALL_WIDTH,
    COLUMNS,
    DIGITS,
    ROWS,
    ahead,
    best_template,
    edges,
    find_balls,
    read_glyphs,
    shrink,
)

STRATA = ("flight", "wall", "paddle", "brick", "serve", "life_lost")
KEPT_STEPS = None
SERVE_STEPS = 15  # a player who presses FIRE in half of the steps has the next ball

GREY, RED, TEAL = (142, 142, 142), (200, 72, 72), (66, 158, 130)
BRICK_COLOURS = np.array(
    [(200, 72, 72), (198, 108, 58), (180, 122, 48), (162, 162, 42), (72, 160, 72), (66, 72, 200)],
    np.float32,
)
LEFT_WALL, RIGHT_WALL, CEILING, FLOOR = 8, 152, 32, 196  # the field's edges, in native pixels
BRICK_TOP, BRICK_HEIGHT, BRICK_WIDTH = 57, 6, 8
PADDLE_TOP, PADDLE_WIDTHS = 189, (16, 12)
MIN_BRICK, SURE_BRICK = 0.3, 0.7  # between them a brick is half dreamed and subtracted as it is
MIN_PADDLE = 0.5
TOP_PX, WALL_PX = 18.0, 8.0  # a ball turns at the top above this; within it lies beside a wall
FLOOR_PX = 66.0  # a ball last seen below this may have been lost by the player

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
        opponent=np.full(len(ram), np.nan, np.float32),
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


def write_ram(objects: Objects) -> np.ndarray:
    """Return memory in which the scripted player finds the ball and the paddle."""
    ram = np.zeros((len(objects), 128), np.uint8)
    x, y = objects.ball.T * NATIVE_PIXELS
    in_play = ~np.isnan(x)
    ram[in_play, 99] = (np.rint(x - BALL_WIDTH / 2) + 49)[in_play].clip(1, 255)
    ram[in_play, 101] = (np.rint(y - BALL_HEIGHT / 2) - 9)[in_play].clip(1, 255)
    paddle = np.rint(objects.paddle * NATIVE_PIXELS - PADDLE_WIDTHS[0] / 2) + 47
    ram[:, 72] = np.where(np.isnan(paddle), 125, paddle.clip(0, 255))
    return ram


def events(objects: Objects) -> dict[str, np.ndarray]:
    """Return, for each row, whether something happens to the ball between it and the next."""
    x, y = np.nan_to_num(objects.ball, nan=0).T
    in_play = ~np.isnan(objects.ball[:, 0])
    step_x, step_y = np.diff(x, prepend=x[0]), np.diff(y, prepend=y[0])
    bricks = objects.bricks.sum((1, 2))
    keeps = in_play & ahead(in_play)
    brick = keeps & (ahead(bricks) < bricks)
    paddle = keeps & (step_y > 0) & (ahead(step_y) <= 0) & (y > 60)  # 0: it turned half way
    turns_x = (step_x * ahead(step_x) <= 0) & (step_x != 0)
    wall = keeps & turns_x & ~brick & (y < 60) & ((x < 12) | (x > 52))
    return {"wall": wall, "paddle": paddle, "brick": brick, "serve": ~in_play & ahead(in_play)}


def turns(objects: Objects) -> dict[str, np.ndarray]:
    """Return, for each row, what happens to the ball in the next step: kind -> bool (M,)."""
    found = events(objects)
    y, in_play = objects.ball[:, 1], ~np.isnan(objects.ball[:, 0])
    step = np.diff(objects.ball, axis=0, prepend=objects.ball[:1])
    with np.errstate(invalid="ignore"):
        turns_down = (step[:, 1] < 0) & (ahead(step[:, 1]) >= 0)
        is_same = np.linalg.norm(ahead(step) - step, axis=1) <= MAX_JITTER
        top = turns_down & (y < TOP_PX) & ~found["brick"]
        some = np.logical_or.reduce([*found.values(), top])
    return {
        "flight": is_same & ~some,
        "side wall": found["wall"], "top wall": top, "paddle": found["paddle"],
        "brick": found["brick"], "serve": found["serve"], "lost": in_play & ~ahead(in_play),
    }  # fmt: skip


def places(objects: Objects) -> dict[str, np.ndarray]:
    """Return where the balls are: place -> bool (N,)."""
    x, y = np.nan_to_num(objects.ball, nan=-1).T
    beside, below = (x < WALL_PX) | (x > 64 - WALL_PX), (y > 38) & (y < 46)
    field = {"open field": y >= 46, "below bricks": below}
    return {"beside walls": beside} | {name: rows & ~beside for name, rows in field.items()}


def losses(objects: Objects) -> np.ndarray:
    """Count the lives lost up to each row."""
    return np.concatenate([[0], np.cumsum(np.diff(objects.lives) < 0)])


def may_leave(ball: np.ndarray) -> np.ndarray:
    """Tell whether a ball last seen at these places, (N, 2), may have been lost."""
    return ball[:, 1] > FLOOR_PX


def read_frames(frames: np.ndarray) -> Objects:
    """Return the objects that the pixels show; frames is uint8 (N, 84, 64, 3)."""
    residual = frames.astype(np.float32) - _BACKGROUND
    amounts = _brick_amounts(residual)
    paddle_mask, paddle = _find_paddle(residual)
    explained = np.where(amounts < MIN_BRICK, 0, np.where(amounts > SURE_BRICK, 1, amounts))
    residual[:, _BRICK_ROWS] -= _paint_bricks(explained.astype(np.float32))
    coverage = np.einsum("nyxc,yc->nyx", residual, _BALL_FILTER)
    coverage[:, _PADDLE_ROWS][paddle_mask[:, None].repeat(3, 1)] = 0
    ball, num_balls = find_balls(coverage, _BALL_ROWS, _FIELD_COLUMNS)
    return Objects(
        ball, num_balls, paddle, np.full(len(frames), np.nan, np.float32), amounts > 0.5,
        _read_score(residual), _read_digit(residual, LIVES_LEFT),
    )  # fmt: skip


def ball_tables() -> dict[str, np.ndarray]:
    """Return the tables by which web/src/ball.js sees the same ball."""
    return {
        "background": _BACKGROUND,
        "filter": _BALL_FILTER[:, None].repeat(FRAME_SHAPE[1], 1),
        "field": edges(_BALL_ROWS, _FIELD_COLUMNS), "ball": BALL_LIMITS,
        "brickX": _BRICK_X, "brickXInverse": _BRICK_X_INVERSE,
        "brickY": _BRICK_Y, "brickYInverse": _BRICK_Y_INVERSE,
        "paddles": _PADDLES, "touched": _TOUCHED.astype(np.uint8),
        "bands": edges(_BRICK_ROWS, _PADDLE_ROWS),
        "limits": np.array([MIN_BRICK, SURE_BRICK, MIN_PADDLE], np.float32),
    }  # fmt: skip


def read_lives(frames: np.ndarray) -> np.ndarray:
    """Return the lives that the pixels show alone, (N,), -1 where unreadable."""
    return _read_digit(frames.astype(np.float32) - _BACKGROUND, LIVES_LEFT)


def _draw_background() -> np.ndarray:
    """Return walls, side marks and the player's number, float32 (84, 64, 3)."""
    screen = np.zeros((210, 160, 3), np.float32)
    screen[17:CEILING] = GREY
    screen[CEILING:PADDLE_TOP, :LEFT_WALL] = GREY
    screen[CEILING:PADDLE_TOP, RIGHT_WALL:] = GREY
    screen[PADDLE_TOP:196, :LEFT_WALL] = TEAL
    screen[PADDLE_TOP:195, RIGHT_WALL:] = RED
    screen[DIGIT_TOP : DIGIT_TOP + 10, PLAYER_LEFT : PLAYER_LEFT + 4] = GREY
    return shrink(screen)


def _ball_filter() -> np.ndarray:
    """Return for every pixel row what turns a residual colour into a share of ball, (84, 3)."""
    colours = np.tile(np.array(RED, np.float32), (210, 1))
    colours[:BRICK_TOP] = GREY
    colours[BRICK_TOP : BRICK_TOP + 36] = BRICK_COLOURS.repeat(BRICK_HEIGHT, 0)
    colours = ROWS @ colours
    return colours / (colours**2).sum(1, keepdims=True)


_BACKGROUND = _draw_background()
_BALL_FILTER = _ball_filter()
_BRICK_ROWS = slice(22, 38)  # native 55 to 95
_FIELD_COLUMNS = slice(3, 61)
_PADDLE_ROWS = slice(75, 78)
_BALL_ROWS = slice(12, 79)

_brick_x = COLUMNS[:, LEFT_WALL:RIGHT_WALL].reshape(64, 18, BRICK_WIDTH).sum(2)  # (64, 18)
_brick_y = ROWS[_BRICK_ROWS, BRICK_TOP : BRICK_TOP + 36].reshape(16, 6, BRICK_HEIGHT).sum(2)
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
            rows.append(COLUMNS[:, start:stop].sum(1))
            middles.append((start + stop) / 2 / NATIVE_PIXELS)
    return np.array(rows, np.float32), np.array(middles, np.float32)


def _touched(paddles: np.ndarray) -> np.ndarray:
    """Return the pixel columns that each paddle covers or touches, bool (P, 64)."""
    touched = paddles > 0
    touched[:, 1:] |= paddles[:, :-1] > 0
    touched[:, :-1] |= paddles[:, 1:] > 0
    return touched


_PADDLES, _PADDLE_MIDDLES = _paddle_templates()
_TOUCHED = _touched(_PADDLES)


def _find_paddle(residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel columns it covers and touches, bool (N, 64), and its middle (N,)."""
    coverage = residual[:, 76] @ _BALL_FILTER[76]  # (N, 64)
    best, amount = best_template(coverage, _PADDLES)
    is_there = amount >= MIN_PADDLE
    middle = np.where(is_there, _PADDLE_MIDDLES[best], np.nan)
    return _TOUCHED[best] & is_there[:, None], middle.astype(np.float32)


def _glyph_templates(left: int) -> np.ndarray:
    """Return the ten digits as they fall on the pixels at this place, float32 (10, 4, w)."""
    native = DIGITS.repeat(2, 1).repeat(4, 2)  # (10, 10, 12)
    rows = ROWS[2:6, DIGIT_TOP : DIGIT_TOP + 10]
    columns = COLUMNS[_digit_columns(left), left : left + 12]
    return rows @ native @ columns.T


def _digit_columns(left: int) -> slice:
    return slice(int(left / NATIVE_PIXELS), int(np.ceil((left + 12) / NATIVE_PIXELS)))


_DIGITS = {left: _glyph_templates(left).reshape(10, -1) for left in (*SCORE_LEFT, LIVES_LEFT)}


def _read_digit(residual: np.ndarray, left: int) -> np.ndarray:
    """Return the digit at this place, -1 where no glyph explains it."""
    shade = residual[:, 2:6, _digit_columns(left)].mean(-1).reshape(len(residual), -1) / GREY[0]
    return read_glyphs(shade, _DIGITS[left])


def _read_score(residual: np.ndarray) -> np.ndarray:
    hundreds, tens, ones = (_read_digit(residual, left) for left in SCORE_LEFT)
    readable = (hundreds >= 0) & (tens >= 0) & (ones >= 0)
    return np.where(readable, hundreds * 100 + tens * 10 + ones, -1)
