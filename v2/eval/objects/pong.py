"""Pong's objects, from pixels by least squares and from memory by known addresses; its events.

Contract: what differs from the empty court is ball, or beside a paddle's columns ball and paddle,
mixed; each pixel column knows which colours it may hold. `paddle` is the right, green one, which
the player moves along y, `opponent` the left, orange one. From memory the ball is a native pixel
too low in one frame of twenty. The first frame after a reset has other colours: no paddle is found
in it, and a wrong score. Vectorised over frames; knows nothing of models.
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

STRATA = ("flight", "wall", "paddle", "serve", "point")  # paddle: either; point: of either
KEPT_STEPS = 20  # few rallies last longer than 100 steps, and play goes on by itself
SERVE_STEPS = 17  # the next ball comes 16 steps after the last, whatever is pressed

COURT = np.array((144, 72, 17), np.float32)
WHITE, GREEN, ORANGE = np.array([(236, 236, 236), (92, 186, 92), (213, 130, 74)], np.float32)
TOP, BOTTOM = 34, 194  # the court's edges, in native pixels
PADDLE_HEIGHT, PADDLE_LEFT, OPPONENT_LEFT = 16, 140, 16
MIN_HEIGHT = 4  # a paddle of which less can be seen counts as none
MIN_PADDLE = 0.5
MIN_PADDLE_SHARE = 0.3  # of its colour in its columns: elsewhere the court shows
DIGIT_TOP, OPPONENT_SCORE_LEFT, SCORE_LEFT, MAX_SCORE = 1, 20, 100, 21
WALL_PX, EXIT_PX = 7, 8  # from the court's edges along y, from the screen's along x


def read_ram(ram: np.ndarray) -> Objects:
    """Return the objects that the memory holds; ram is uint8 (N, 128)."""
    ram = ram.astype(np.int32)
    left, top = ram[:, 49] - 49, ram[:, 54] - 14
    in_play = (ram[:, 49] > 0) & (ram[:, 54] > 0)
    ball = np.stack([left + BALL_WIDTH / 2, top + BALL_HEIGHT / 2], 1)
    height = (top + BALL_HEIGHT).clip(max=BOTTOM) - top.clip(TOP)  # what no wall hides
    return Objects(
        ball=np.where(in_play[:, None], ball / NATIVE_PIXELS, np.nan).astype(np.float32),
        num_balls=(in_play & (height > BALL_HEIGHT / 2)).astype(int),
        paddle=_middle((ram[:, 51] + 1) // 2 * 2 - 14),  # drawn two rows at a time
        opponent=_middle(ram[:, 50] - 15),
        bricks=np.zeros((len(ram), 0, 0), bool),
        score=ram[:, 13] * 100 + ram[:, 14],
        lives=np.full(len(ram), -1),
    )


def _middle(top: np.ndarray) -> np.ndarray:
    """Return the middle of what can be seen of a paddle."""
    start, stop = top.clip(TOP), (top + PADDLE_HEIGHT).clip(max=BOTTOM)
    middle = np.where(stop - start >= MIN_HEIGHT, (start + stop) / 2 / NATIVE_PIXELS, np.nan)
    return middle.astype(np.float32)


def write_ram(objects: Objects) -> np.ndarray:
    """Return memory in which the scripted player finds the ball and the paddle."""
    ram = np.zeros((len(objects), 128), np.uint8)
    x, y = objects.ball.T * NATIVE_PIXELS
    in_play = ~np.isnan(x)
    ram[in_play, 49] = (np.rint(x - BALL_WIDTH / 2) + 49)[in_play].clip(1, 255)
    ram[in_play, 54] = (np.rint(y - BALL_HEIGHT / 2) + 14)[in_play].clip(1, 255)
    paddle = np.rint(objects.paddle * NATIVE_PIXELS - PADDLE_HEIGHT / 2) + 13
    ram[:, 51] = np.where(np.isnan(paddle), 119, paddle.clip(0, 255))
    return ram


def events(objects: Objects) -> dict[str, np.ndarray]:
    """Return, for each row, whether something happens to the ball between it and the next."""
    x, y = np.nan_to_num(objects.ball, nan=0).T
    in_play = ~np.isnan(objects.ball[:, 0])
    keeps = in_play & ahead(in_play) & np.concatenate([in_play[:1], in_play[:-1]])
    step_x, step_y = np.diff(x, prepend=x[0]), np.diff(y, prepend=y[0])
    paddle = keeps & (step_x != 0) & (step_x * ahead(step_x) <= 0)  # 0: it turned half way
    turns_y = (step_y != 0) & (step_y * ahead(step_y) <= 0)
    top, bottom = TOP / NATIVE_PIXELS + WALL_PX, BOTTOM / NATIVE_PIXELS - WALL_PX
    wall = keeps & turns_y & ~paddle & ((y < top) | (y > bottom))
    return {"wall": wall, "paddle": paddle, "serve": ~in_play & ahead(in_play)}


def turns(objects: Objects) -> dict[str, np.ndarray]:
    """Return, for each row, what happens to the ball in the next step: kind -> bool (M,)."""
    found, in_play = events(objects), ~np.isnan(objects.ball[:, 0])
    step = np.diff(objects.ball, axis=0, prepend=objects.ball[:1])
    with np.errstate(invalid="ignore"):
        is_same = np.linalg.norm(ahead(step) - step, axis=1) <= MAX_JITTER
    some = np.logical_or.reduce(list(found.values()))
    return {"flight": is_same & ~some, **found, "lost": in_play & ~ahead(in_play)}


def places(objects: Objects) -> dict[str, np.ndarray]:
    """Return where the balls are: place -> bool (N,)."""
    y = np.nan_to_num(objects.ball[:, 1], nan=-1)
    beside = (y < TOP / NATIVE_PIXELS + 8) | (y > BOTTOM / NATIVE_PIXELS - 8)
    return {"open field": ~beside, "beside walls": beside}


def losses(objects: Objects) -> np.ndarray:
    """Count the points made by either up to each row."""
    return np.concatenate([[0], np.cumsum(np.diff(objects.score) > 0)])


def may_leave(ball: np.ndarray) -> np.ndarray:
    """Tell whether a ball last seen at these places, (N, 2), may have been lost."""
    return (ball[:, 0] < EXIT_PX) | (ball[:, 0] > 64 - EXIT_PX)


def read_frames(frames: np.ndarray) -> Objects:
    """Return the objects that the pixels show; frames is uint8 (N, 84, 64, 3)."""
    residual = frames.astype(np.float32) - _BACKGROUND
    ball, num_balls = find_balls(
        np.einsum("nyxc,xc->nyx", residual, _BALL_FILTER), _COURT_ROWS, _COURT_COLUMNS
    )
    ours, theirs = (_read_score(residual, *place) for place in _SCORES)
    return Objects(
        ball=ball,
        num_balls=num_balls,
        paddle=_find_paddle(residual, GREEN, PADDLE_LEFT),
        opponent=_find_paddle(residual, ORANGE, OPPONENT_LEFT),
        bricks=np.zeros((len(frames), 0, 0), bool),
        score=np.where((ours >= 0) & (theirs >= 0), theirs * 100 + ours, -1),
        lives=np.full(len(frames), -1),
    )


def ball_tables() -> dict[str, np.ndarray]:
    """Return the tables by which web/src/ball.js sees the same ball."""
    return {
        "background": _BACKGROUND,
        "filter": _BALL_FILTER[None].repeat(FRAME_SHAPE[0], 0),
        "field": edges(_COURT_ROWS, _COURT_COLUMNS), "ball": BALL_LIMITS,
    }  # fmt: skip


def _draw_background() -> np.ndarray:
    screen = np.tile(COURT, (210, 160, 1))
    screen[24:TOP] = screen[BOTTOM:] = WHITE
    return shrink(screen)


def _unmix(*colours: np.ndarray) -> np.ndarray:
    """Return what turns a residual into shares of these colours on the court, (colours, 3)."""
    return np.linalg.pinv(np.stack(colours, 1) - COURT[:, None])


def _ball_filter() -> np.ndarray:
    """Return for every pixel column what turns a residual into a share of ball, (64, 3)."""
    filters = np.tile(_unmix(WHITE)[0], (64, 1))
    for colour, left in ((GREEN, PADDLE_LEFT), (ORANGE, OPPONENT_LEFT)):
        first, last = _paddle_columns(left)
        filters[first - 1 : last + 1] = _unmix(WHITE, colour)[0]  # a blurred one is wider
    return filters.astype(np.float32)


def _paddle_columns(left: int) -> tuple[int, int]:
    """Return the first of a paddle's pixel columns and the one after the last."""
    columns = np.flatnonzero(COLUMNS[:, left : left + 4].any(1))
    return columns[0], columns[-1] + 1


def _paddle_templates() -> tuple[np.ndarray, np.ndarray]:
    """Return the rows' coverage by every possible paddle (P, 84) and its visible middle (P,)."""
    tops = np.arange(TOP + MIN_HEIGHT - PADDLE_HEIGHT, BOTTOM - MIN_HEIGHT + 1)
    rows = [ROWS[:, max(top, TOP) : min(top + PADDLE_HEIGHT, BOTTOM)].sum(1) for top in tops]
    return np.array(rows, np.float32), _middle(tops)


_BACKGROUND = _draw_background()
_BALL_FILTER = _ball_filter()
_COURT_ROWS, _COURT_COLUMNS = slice(13, 78), slice(0, FRAME_SHAPE[1])
_PADDLES, _PADDLE_MIDDLES = _paddle_templates()


def _find_paddle(residual: np.ndarray, colour: np.ndarray, left: int) -> np.ndarray:
    """Return the middle of the paddle of this colour at these columns, NaN where there is none."""
    first, last = _paddle_columns(left)
    coverage = residual[:, :, first:last].sum(2) @ _unmix(WHITE, colour)[1].astype(np.float32)
    coverage[:, : _COURT_ROWS.start] = coverage[:, _COURT_ROWS.stop :] = 0
    coverage *= NATIVE_PIXELS / 4  # a paddle is 4 wide
    best, amount = best_template(coverage, _PADDLES)
    inside = (coverage * (_PADDLES[best] > 0)).sum(1)
    is_there = (amount >= MIN_PADDLE) & (inside >= MIN_PADDLE_SHARE * coverage.clip(0).sum(1))
    return np.where(is_there, _PADDLE_MIDDLES[best], np.nan).astype(np.float32)


def _score_templates(left: int) -> np.ndarray:
    """Return all scores, without leading zeros, as they fall on the pixels, (22, K)."""
    native = np.zeros((MAX_SCORE + 1, 20, 28), np.float32)
    cells = DIGITS.repeat(4, 1).repeat(4, 2)  # (10, 20, 12)
    for score, drawn in enumerate(native):
        drawn[:, 16:] = cells[score % 10]
        if score >= 10:
            drawn[:, :12] = cells[score // 10]
    rows, columns = ROWS[:9, DIGIT_TOP : DIGIT_TOP + 20], COLUMNS[:, left : left + 28]
    return (rows @ native @ columns.T).reshape(MAX_SCORE + 1, -1)


_SCORES = (
    (GREEN, _score_templates(SCORE_LEFT)), (ORANGE, _score_templates(OPPONENT_SCORE_LEFT)),
)  # fmt: skip


def _read_score(residual: np.ndarray, colour: np.ndarray, scores: np.ndarray) -> np.ndarray:
    shade = residual[:, :9] @ _unmix(colour)[0].astype(np.float32)  # (N, 9, 64)
    used = scores.any(0)  # the other player's digits lie elsewhere
    return read_glyphs(shade.reshape(len(shade), -1)[:, used], scores[:, used])
