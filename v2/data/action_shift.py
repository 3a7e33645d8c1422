"""Whether actions lie beside the frames they were taken at: the shift that explains motion best.

Contract: pixels and actions alone; no game is known. What an action does is seen in the next frame
and not before, so the actions at the right place say most about how that step moves, or about how
its motion differs from the step before. Knows nothing of files.
"""

from dataclasses import dataclass

import numpy as np

SHIFTS = range(-3, 4)
NUM_BANDS = 4  # of the picture, from top to bottom: a paddle apart from a ball
MAX_STEPS = 6000
NUM_PARTS = 5  # of the recording: all but one must say so before another shift is named
MIN_EXPLAINED = 0.02  # share of the motion; less is chance


@dataclass(frozen=True)
class ShiftCheck:
    """What each shift of the actions explains of the motion."""

    explained: dict[int, float]  # shift -> share of the variance, of the feature that has most
    parts: tuple[dict[int, float], ...]  # the same of each part of the recording

    @property
    def best(self) -> int:
        """The shift that explains most; 0 unless another one does so almost everywhere."""
        found = max(self.explained, key=lambda shift: self.explained[shift])
        is_clear = sum(part[found] > part[0] for part in self.parts) >= NUM_PARTS - 1
        return found if is_clear and self.explained[found] >= MIN_EXPLAINED else 0

    def told(self, shift: int = 0, every: int = 1) -> str:
        """Say it to the person who imports; `shift` and `every` are the flags that were given."""
        now, best = self.explained[0], self.best
        if max(self.explained.values()) < MIN_EXPLAINED:
            return "actions: they explain nothing of the motion, whatever their shift"
        if not best:
            return f"actions: they explain {now:.0%} of the motion, and no shift does clearly more"
        rows = shift + best * every  # of the source
        advice = f"give --shift {rows}" if rows in SHIFTS else f"move them by {rows} rows"
        return (
            f"actions: shifted by {best:+d} they explain {self.explained[best]:.0%} of the "
            f"motion, as they are {now:.0%}. If they are off by that, {advice}; if an action "
            "pushes, so that the motion follows later, they are right"
        )


def check_shift(frames: np.ndarray, actions: np.ndarray, episode_ids: np.ndarray) -> ShiftCheck:
    """Compare shifts s: actions[t + s] taken for what was done at frames[t].

    Args:
        frames: uint8 (M, H, W, 3); actions: (M,); episode_ids: (M,), ascending.
    """
    reach = max(SHIFTS)
    rows = np.arange(reach, len(frames) - reach - 2)
    rows = rows[episode_ids[rows - reach] == episode_ids[rows + reach + 2]][:MAX_STEPS]
    if len(rows) < 2 * NUM_PARTS * len(np.unique(actions)):
        return ShiftCheck(dict.fromkeys(SHIFTS, 0.0), ())
    steps = np.unique(np.concatenate([rows - 1, rows]))
    motion = np.stack([_motion(frames[t], frames[t + 1]) for t in steps])
    now, before = np.searchsorted(steps, rows), np.searchsorted(steps, rows - 1)
    features = np.concatenate([motion[now], motion[now] - motion[before]], 1)

    def explained(part: np.ndarray) -> dict[int, float]:
        return {s: _explained(features[part], actions[rows[part] + s]) for s in SHIFTS}

    every = np.arange(len(rows))
    return ShiftCheck(explained(every), tuple(map(explained, np.array_split(every, NUM_PARTS))))


def _motion(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how much each band moves to the right, downwards, and at all.

    By brightness constancy, I_t = -(u I_x + v I_y): the sum of -I_t I_x has the sign of u.
    """
    one, two = first.astype(np.float32).mean(-1), second.astype(np.float32).mean(-1)
    change, (down, right) = two - one, np.gradient((one + two) / 2)
    fields = np.stack([-change * right, -change * down, np.abs(change)])  # (3, H, W)
    bands = [part.sum((1, 2)) for part in np.array_split(fields, NUM_BANDS, axis=1)]
    sums = np.concatenate([*bands, np.sum(bands, 0)])
    return (np.sign(sums) * np.sqrt(np.abs(sums))).astype(np.float64)


def _explained(features: np.ndarray, actions: np.ndarray) -> float:
    """Return the share of the variance between actions, adjusted, of the feature with most."""
    kinds, index = np.unique(actions, return_inverse=True)
    counts = np.bincount(index)[:, None]
    means = np.stack([np.bincount(index, f, len(kinds)) for f in features.T], 1) / counts
    total = features.var(0)
    between = (counts * (means - features.mean(0)) ** 2).sum(0) / len(actions)
    is_moving = total > 1e-6 * (features**2).mean(0)  # else rounding
    share = np.divide(between, total, out=np.zeros_like(total), where=is_moving)
    spare = len(actions) - len(kinds)
    return float(max(0.0, (1 - (1 - share) * (len(actions) - 1) / max(spare, 1)).max()))
