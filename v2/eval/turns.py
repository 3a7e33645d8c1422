"""One step at turns: after four real frames, is the ball right where it turns?

Contract: this tells two recipes apart, which hits of long rollouts over few clips cannot. Every
window has steady flight for three steps before; the dream takes one step from the true history.
Exact are all tokens in the 3x3 cells around the true ball (for `lost`: around its last place).
Baselines: copy-last, and for the place constant velocity. Knows nothing of files.
"""

import numpy as np

from v2.data.atari_dataset import window_starts
from v2.eval.engine import Engine, Progress, Scores, begin_clips, chunks, encode, flat
from v2.eval.intervals import mean_metric
from v2.eval.objects import detector
from v2.eval.objects.base import MAX_JITTER, NATIVE_PIXELS, Objects
from v2.eval.starts import HISTORY, Clips

STEADY_STEPS = 3
MAX_ERROR_PX = 1.0
MIN_PART_WINDOWS = 20  # of one speed or place, to have a row of its own
MORE_FLIGHT = "more flight"  # windows of rare speeds and places: in their rows, not in flight's own
PATCH_PX = 4  # pixels of a cell


def turn_starts(
    game: str, ram: np.ndarray, episode_ids: np.ndarray, rows: np.ndarray | None = None,
    per_kind: int = 240,
) -> tuple[np.ndarray, list[str]]:  # fmt: skip
    """Return rows after which something happens to a ball in steady flight, and their kinds.

    Args:
        ram: uint8 (M, 128); episode_ids: (M,).
        rows: of the split to choose from (whole episodes); None: all.
        per_kind: at most so many windows of each kind, spread over the games; of flight, a sixth
            of that for every speed and place, as `MORE_FLIGHT` where chance drew fewer (and a
            sixth is enough for a row).
    """
    objects = detector.read_ram(game, ram)
    ready = window_starts(episode_ids, HISTORY + 1, rows) + HISTORY - 1
    is_steady, rng = _is_steady(objects), np.random.default_rng(0)
    starts, kinds = [], []
    for kind, happens in detector.of_game(game).turns(objects).items():
        found = ready[happens[ready] & (is_steady[ready] | (kind == "serve"))]
        order = rng.permutation(found)
        starts.append(np.sort(order[:per_kind]))
        kinds += [kind] * len(starts[-1])
        if kind == "flight":
            more = _more_flight(game, objects, order, per_kind)
            starts.append(more)
            kinds += [MORE_FLIGHT] * len(more)
    return np.concatenate(starts).astype(np.int64), kinds


def _more_flight(game: str, objects: Objects, order: np.ndarray, drawn: int) -> np.ndarray:
    """Return rows that fill every part of flight up to a sixth of what was drawn of all.

    Args:
        order: rows of flight in the order in which they are drawn.
    """
    goal = drawn // 6
    if goal < MIN_PART_WINDOWS:
        return order[:0]
    parts = _parts_of_flight(game, np.ones(len(order), bool), objects[order], objects[order - 1])
    taken = np.arange(len(order)) < drawn
    for is_part in parts.values():
        missing = goal - np.count_nonzero(taken & is_part)
        taken[np.flatnonzero(is_part & ~taken)[: max(0, missing)]] = True
    return np.sort(order[drawn:][taken[drawn:]])


def _is_steady(objects: Objects) -> np.ndarray:
    """Tell at which rows the ball came by the same step three times, bool (M,)."""
    step = np.diff(objects.ball, axis=0, prepend=objects.ball[:1])
    steady = np.ones(len(step), bool)
    for back in range(STEADY_STEPS - 1):
        now, before = np.roll(step, back, 0), np.roll(step, back + 1, 0)
        with np.errstate(invalid="ignore"):
            steady &= np.linalg.norm(now - before, axis=1) <= MAX_JITTER  # nan: false
    return steady


def turn_scores(engine: Engine, clips: Clips, progress: Progress = None) -> Scores:
    """Score one step at each kind of turn; flight also by the ball's speed and by place.

    Args:
        clips: of one step, from `turn_starts`, their kinds as strata.
    Returns:
        `turns/exact KIND`, `turns/within_1px KIND` and `turns/no_ball KIND`.
    """
    game, kinds = clips.game, np.asarray(clips.strata)
    before, here, after = (
        detector.read_ram(game, clips.ram[:, HISTORY - 1 + k]) for k in (-1, 0, 1)
    )
    last, target = encode(engine, clips.frames_at(0)), encode(engine, clips.frames_at(1))
    predicted, frames = [], []
    for chunk in chunks(len(clips)):
        begin_clips(engine, clips, chunk)
        frames.append(engine.step(clips.actions_to(1)[chunk].astype(np.int64)))
        predicted.append(flat(engine.tokens))
        if progress:
            progress(len(frames[-1]))
    seen = detector.read_frames(game, np.concatenate(frames))
    is_there = ~np.isnan(after.ball[:, 0])
    place = np.where(is_there[:, None], after.ball, here.ball)
    near = _cells_around(place, engine.grid)
    exact, copied = (
        (~near | (tokens == target)).all(1) for tokens in (np.concatenate(predicted), last)
    )
    with np.errstate(invalid="ignore"):
        error = np.linalg.norm(seen.ball - after.ball, axis=1)
        guess = np.linalg.norm(2 * here.ball - before.ball - after.ball, axis=1)
        is_near, is_guessed = error <= MAX_ERROR_PX, guess <= MAX_ERROR_PX
    groups = {kind: kinds == kind for kind in dict.fromkeys(kinds) if kind != MORE_FLIGHT}
    groups |= _parts_of_flight(game, np.isin(kinds, ("flight", MORE_FLIGHT)), here, before)
    scores = {}
    for name, rows in groups.items():
        episodes = clips.episodes[rows]
        row = scores[f"turns/exact {name}"] = mean_metric(exact[rows], episodes)
        row.baselines["copy_last"] = mean_metric(copied[rows], episodes)
        has_ball = rows & is_there
        if has_ball.any():
            episodes = clips.episodes[has_ball]
            row = mean_metric(is_near[has_ball] & (seen.num_balls[has_ball] == 1), episodes)
            row.baselines["constant_velocity"] = mean_metric(is_guessed[has_ball], episodes)
            scores[f"turns/within_1px {name}"] = row
            lost = mean_metric(seen.num_balls[has_ball] == 0, episodes)
            is_hidden = detector.read_frames(game, clips.frames_at(0)[has_ball]).num_balls == 0
            lost.baselines["copy_last"] = mean_metric(is_hidden, episodes)
            scores[f"turns/no_ball {name}"] = lost
    return scores


def _cells_around(places: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Tell which cells lie within one of the places (B, 2) in pixels, bool (B, N)."""
    column, row = (np.nan_to_num(places) // PATCH_PX).astype(int).T
    rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1)
    near = abs(rows - row[:, None]) <= 1
    return near & (abs(columns - column[:, None]) <= 1)


def _parts_of_flight(game: str, is_flight, here: Objects, before: Objects) -> dict:
    """Return flight by speed, in native pixels a step, and by place: name -> bool (B,)."""
    with np.errstate(invalid="ignore"):
        speed = np.rint(abs(here.ball - before.ball) * NATIVE_PIXELS)
    parts = {}
    for pair in np.unique(speed[is_flight], axis=0):
        rows = is_flight & (speed == pair).all(1)
        if rows.sum() >= MIN_PART_WINDOWS:
            parts[f"flight, speed {pair[0]:.0f} {pair[1]:.0f}"] = rows
    for name, rows in detector.of_game(game).places(here).items():
        if (is_flight & rows).sum() >= MIN_PART_WINDOWS:
            parts[f"flight, {name}"] = is_flight & rows
    return parts
