"""Where the objects are: read from frames, real or dreamed, and from the emulator's memory.

Contract: `read_frames` sees pixels only, so that it treats a dream as it treats the game;
`read_ram` is the truth it is validated against. Positions are centres in 84x64 pixels, with pixel
centres at + 0.5 (native / 2.5). For a game without an object detector all of it raises.
Knows nothing of models.

An object detector is a module with `read_ram`, `read_frames`, `write_ram`, and with what may happen
to the ball: `STRATA` (free flight first, its loss last), `KEPT_STEPS` (steps of a clip in which it
may not be lost; None: all), `SERVE_STEPS` (by when a player has the next one), `events`, `turns`,
`places`, `losses` and `may_leave`; with `ball_tables` for the page in the browser, and `read_lives`
where frames show lives.
"""

from types import ModuleType

import numpy as np

from v2.data.frames import FRAME_SHAPE
from v2.eval.objects import breakout, pong
from v2.eval.objects.base import FIELDS, Objects

DETECTORS: dict[str, ModuleType] = {"breakout": breakout, "pong": pong}
CHUNK = 64  # frames read at once: what the processor's cache holds


def has_truth(game: str) -> bool:
    """Tell whether this game's objects can be read."""
    return game in DETECTORS


def read_ram(game: str, ram: np.ndarray) -> Objects:
    """Return the objects that the memory of N steps holds.

    Args:
        ram: uint8 (N, 128).
    Raises:
        ValueError: a game without a detector.
    """
    return of_game(game).read_ram(ram)


def read_frames(game: str, frames: np.ndarray) -> Objects:
    """Return the objects that N frames show.

    Args:
        frames: uint8 (N, 84, 64, 3).
    Raises:
        ValueError: a game without a detector, or other arrays.
    """
    read = of_game(game).read_frames
    if frames.shape[1:] != FRAME_SHAPE or frames.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8 (N, {str(FRAME_SHAPE)[1:]}, got {frames.dtype} {frames.shape}"
        )
    if len(frames) == 0:
        return read_ram(game, np.zeros((0, 128), np.uint8))
    chunks = [read(frames[k : k + CHUNK]) for k in range(0, len(frames), CHUNK)]
    return Objects(*(np.concatenate([getattr(c, name) for c in chunks]) for name in FIELDS))


def shows_lives(game: str) -> bool:
    """Tell whether the lives can be read from this game's frames."""
    return has_truth(game) and hasattr(of_game(game), "read_lives")


def read_lives(game: str, frames: np.ndarray) -> np.ndarray:
    """Return the lives that N frames of a game that `shows_lives` show, (N,), -1 unreadable."""
    return of_game(game).read_lives(frames)


def write_ram(game: str, objects: Objects) -> np.ndarray:
    """Return memory in which a scripted policy finds these objects, uint8 (N, 128)."""
    return of_game(game).write_ram(objects)


def seen_memory(game: str, frames: np.ndarray) -> tuple[Objects, np.ndarray]:
    """Return the objects of N frames and memory that holds them, uint8 (N, 128).

    So a scripted policy, which reads memory, plays from pixels alone, dreamed ones above all.

    Args:
        frames: uint8 (N, 84, 64, 3).
    Raises:
        ValueError: a game without an object detector, or other arrays.
    """
    objects = read_frames(game, frames)
    return objects, write_ram(game, objects)


def of_game(game: str) -> ModuleType:
    """Return the object detector of a game.

    Raises:
        ValueError: a game without one.
    """
    if game not in DETECTORS:
        raise ValueError(f"no object detector for {game}: there is one for {', '.join(DETECTORS)}")
    return DETECTORS[game]
