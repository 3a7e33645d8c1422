"""A ball in a box, whose physics is known: a world that nobody tuned this program to.

The ball flies 3 px a step along both axes and is reflected by the walls; UP, DOWN, LEFT and RIGHT
turn it. It is filmed four times as large as a frame, with the losses of H.264.
"""

import csv
from pathlib import Path

import numpy as np

from v2.play.video import Mp4Video

ACTIONS = ("NOOP", "UP", "RIGHT", "LEFT", "DOWN")
TURNS = {1: (1, -1), 2: (0, 1), 3: (0, -1), 4: (1, 1)}  # action -> axis (x, y) and sign
SIZE, WALL, BALL, SPEED, FPS = (64, 84), 2, 6, 3, 15
ENLARGED, PRESS_PROB = 4, 0.15
GROUND, BOX, PAINT = (20, 24, 40), (120, 120, 120), (240, 200, 60)


def step(place: np.ndarray, velocity: np.ndarray, action: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the ball's left top corner is next, and its velocity."""
    velocity = velocity.copy()
    if action in TURNS:
        axis, sign = TURNS[action]
        velocity[axis] = sign * SPEED
    there = place + velocity
    is_out = (there < WALL) | (there > np.array(SIZE) - WALL - BALL)
    velocity[is_out] *= -1
    return place + velocity, velocity


def draw(place: np.ndarray) -> np.ndarray:
    """Return the frame, uint8 (84, 64, 3)."""
    frame = np.full((SIZE[1], SIZE[0], 3), BOX, np.uint8)
    frame[WALL:-WALL, WALL:-WALL] = GROUND
    y, x = np.mgrid[:BALL, :BALL] - (BALL - 1) / 2
    frame[place[1] : place[1] + BALL, place[0] : place[0] + BALL][y**2 + x**2 <= 9.1] = PAINT
    return frame


def play(rng: np.random.Generator, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frames (T, 84, 64, 3), actions (T,) and the ball's corners (T, 2)."""
    place = WALL + SPEED * rng.integers((19, 25))
    velocity = SPEED * rng.choice((-1, 1), 2)
    actions = np.where(rng.random(num_frames) < PRESS_PROB, rng.integers(1, 5, num_frames), 0)
    places = []
    for action in actions:
        places.append(place)
        place, velocity = step(place, velocity, action)
    return np.stack([draw(place) for place in places]), actions, np.stack(places)


def film(folder: Path, num_games: int, num_frames: int, seed: int = 0) -> list[tuple]:
    """Write `game00.mp4` with `game00.csv` and so on; return what `play` returned of each."""
    folder.mkdir(parents=True)
    rng, games = np.random.default_rng(seed), []
    for k in range(num_games):
        games.append(play(rng, num_frames))
        frames, actions, _ = games[-1]
        with Mp4Video(folder / f"game{k:02d}.mp4", FPS) as video:
            for frame in frames:
                video.write(frame.repeat(ENLARGED, 0).repeat(ENLARGED, 1))
        with open(folder / f"game{k:02d}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["action"], *([ACTIONS[action]] for action in actions)])
    return games


def ball_of(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of what is painted as the ball, (B, 2), and its share of a whole ball."""
    half_way = np.abs(np.subtract(PAINT, GROUND)).sum() / 2
    is_ball = np.abs(frames.astype(int) - PAINT).sum(-1) < half_way
    count = is_ball.sum((1, 2))
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    sums = np.stack([(is_ball * x).sum((1, 2)), (is_ball * y).sum((1, 2))], 1)
    whole = (np.abs(draw(np.array([30, 30])).astype(int) - PAINT).sum(-1) == 0).sum()
    return sums / np.maximum(count, 1)[:, None], count / whole
