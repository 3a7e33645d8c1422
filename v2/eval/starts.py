"""Clips: recorded windows that a model continues from their first four frames.

Contract: a clip never crosses an episode, nor the loss of a ball (in Pong: within 20 steps) except
in the last stratum and in the history of `serve`; horizons count steps after its last history
frame, so that `frames[:, 3 + h]` is the truth at horizon h and `actions[:, 2 + h]` the action that
leads to it. Knows nothing of models or files.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from v2.data.ages import cut_ages, episode_steps
from v2.data.atari_dataset import GameData, seeds_of, spread, window_starts
from v2.eval.objects import detector
from v2.eval.objects.base import MAX_JITTER, Objects
from v2.eval.objects.synthesis import ahead
from v2.models.temporal_world_model import WorldModelConfig

HISTORY = WorldModelConfig.history
ANY = "any"  # the stratum of a game whose memory is not read
EVENT_STEPS = 3  # a stratum's event follows the start within so many steps
FLIGHT_STEPS = 8  # free flight: no event in so many steps
LOSS_STEPS = (5, 15)
AGE_BRICKS = (20, 80)  # of 108; a board with fewer is a last, or a late one


@dataclass
class Clips:
    """B recorded windows of 4 + H frames."""

    game: str
    frames: np.ndarray  # uint8 (B, 4 + H, 84, 64, 3)
    actions: np.ndarray  # uint8 (B, 3 + H)
    rewards: np.ndarray  # float32 (B, 3 + H)
    terminated: np.ndarray  # bool (B, 3 + H)
    ram: np.ndarray  # uint8 (B, 4 + H, 128); (B, 4 + H, 0) of a game without an emulator
    episodes: np.ndarray  # int (B,): seeds or ids, what the intervals are resampled over
    strata: np.ndarray  # str (B,)
    ages: np.ndarray | None = None  # int (B, N), of the last history frame; None: by four frames

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def horizon(self) -> int:
        return self.frames.shape[1] - HISTORY

    @property
    def history(self) -> np.ndarray:
        return self.frames[:, :HISTORY]

    @property
    def past_actions(self) -> np.ndarray:
        return self.actions[:, : HISTORY - 1]

    def frames_at(self, horizon: int) -> np.ndarray:
        return self.frames[:, HISTORY - 1 + horizon]

    def actions_to(self, horizon: int) -> np.ndarray:
        """Return the actions that lead to this horizon from the one before, (B,)."""
        return self.actions[:, HISTORY - 2 + horizon]

    def objects_at(self, horizon: int) -> Objects:
        """Return the true objects; digits as the frame shows them, which may lag by a step."""
        objects = detector.read_ram(self.game, self.ram[:, HISTORY - 1 + horizon])
        shown = detector.read_frames(self.game, self.frames_at(horizon))
        objects.score, objects.lives = shown.score, shown.lives
        return objects


def strata_of(game: str) -> tuple[str, ...]:
    """Return what may happen to the ball in a game: free flight first, its loss last."""
    return detector.of_game(game).STRATA if detector.has_truth(game) else (ANY,)


def cut_clips(data: GameData, starts: np.ndarray, horizon: int, strata=None) -> Clips:
    """Cut windows whose last history frame is at rows `starts`."""
    starts = np.asarray(starts)
    rows = starts[:, None] + np.arange(1 - HISTORY, horizon + 1)  # (B, 4 + H)
    ages = data.ages
    if ages is not None:
        ages = cut_ages(ages[starts], episode_steps(data.episode_ids)[starts])
    if not (data.episode_ids[rows] == data.episode_ids[starts][:, None]).all():
        raise ValueError(f"a clip of {horizon} steps crosses an episode")
    return Clips(
        game=data.meta["game"],
        frames=data.frames[rows],
        actions=data.actions[rows[:, :-1]],
        rewards=data.rewards[rows[:, :-1]],
        terminated=data.terminated[rows[:, :-1]],
        ram=data.ram[rows],
        episodes=seeds_of(data.meta["episodes"], data.episode_ids[starts]),
        strata=np.array([ANY] * len(starts) if strata is None else strata),
        ages=ages,
    )


def random_starts(
    data: GameData, num_starts: int, horizon: int, rng: np.random.Generator
) -> np.ndarray:
    """Return ascending rows with a whole window around them, drawn without repetition."""
    firsts = window_starts(data.episode_ids, HISTORY + horizon)
    chosen = rng.choice(firsts, min(num_starts, len(firsts)), replace=False)
    return np.sort(chosen) + HISTORY - 1


def even_starts(data: GameData, num_starts: int, horizon: int) -> np.ndarray:
    """Return evenly spread rows with a whole window around them."""
    firsts = window_starts(data.episode_ids, HISTORY + horizon)
    return spread(firsts, num_starts) + HISTORY - 1


def stratified_starts(
    data: GameData, per_stratum: int, horizon: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """Return rows and strata: in each stratum early, late and last boards, and games, take turns.

    Raises:
        ValueError: no clip of this length in the data.
    """
    game = data.meta["game"]
    if not detector.has_truth(game):
        drawn = random_starts(data, per_stratum, horizon, rng)
        return drawn, [ANY] * len(drawn)
    candidates = _candidates(data, horizon)
    ages = np.digitize(detector.read_ram(game, data.ram).bricks.sum((1, 2)), AGE_BRICKS)
    seeds = seeds_of(data.meta["episodes"], data.episode_ids)
    starts, strata = [], []
    for stratum, generator in zip(candidates, rng.spawn(len(candidates)), strict=True):
        parts: dict[tuple[int, int], list[int]] = {}
        for row in generator.permutation(candidates[stratum]):
            part = int(ages[row]), int(seeds[row])
            parts.setdefault(part, []).append(int(row))
        queues = _alternately(parts)
        turns = (rows[k] for k in range(per_stratum) for rows in queues if k < len(rows))
        chosen = [row for _, row in zip(range(per_stratum), turns, strict=False)]
        starts += chosen
        strata += [stratum] * len(chosen)
    if not starts:
        raise ValueError(f"no clip of {horizon} steps shows {', '.join(candidates)}")
    return np.array(starts, np.int64), strata


def _alternately(parts: dict[tuple[int, int], list[int]]) -> list[list[int]]:
    """Put an early board, a late one, a last one, an early one and so on, each of another game."""
    by_age = [[rows for (a, _), rows in parts.items() if a == age] for age in (2, 1, 0)]
    return [rows for turn in itertools.zip_longest(*by_age) for rows in turn if rows is not None]


def _candidates(data: GameData, horizon: int) -> dict[str, np.ndarray]:
    """Return the rows that may start a clip of each of the game's strata, in their order."""
    objects = detector.read_ram(data.meta["game"], data.ram)
    rules = detector.of_game(data.meta["game"])
    events = rules.events(objects)
    rows = window_starts(data.episode_ids, HISTORY + horizon) + HISTORY - 1
    first = rows + 1 - HISTORY
    in_play = ~np.isnan(objects.ball[:, 0])
    lost = rules.losses(objects)
    kept = rows + min(horizon, rules.KEPT_STEPS or horizon)
    keeps_ball = lost[kept] == lost[first]
    flies = _count(in_play, first, rows) == HISTORY
    some = np.logical_or.reduce(list(events.values()))
    disturbed = some | _turns(objects)
    found = {}
    for stratum, event in events.items():
        soon = _count(event, rows, rows + EVENT_STEPS - 1) > 0
        is_next = _count(some & ~event, rows, rows + EVENT_STEPS - 1) == 0
        ready = keeps_ball & flies
        if stratum == "serve":  # the ball before may have been lost in the history
            ready = ~in_play[rows] & (lost[kept] == lost[rows])
        found[stratum] = rows[ready & soon & is_next]
    is_calm = _count(disturbed, first + 1, rows + FLIGHT_STEPS - 1) == 0
    found[rules.STRATA[0]] = rows[keeps_ball & flies & is_calm]
    early, late = (min(steps, horizon) for steps in LOSS_STEPS)
    found[rules.STRATA[-1]] = rows[
        flies & (lost[rows + early] == lost[first]) & (lost[rows + late] > lost[first])
    ]
    return {stratum: found[stratum] for stratum in rules.STRATA}


def _turns(objects: Objects) -> np.ndarray:
    """Tell, for each row, whether the ball goes on by another step than it came by."""
    step = np.diff(objects.ball, axis=0, prepend=objects.ball[:1])
    return np.linalg.norm(ahead(step) - step, axis=1) > MAX_JITTER  # nan: false


def _count(flags: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Count the flags in rows first .. last."""
    total = np.concatenate([[0], np.cumsum(flags)])
    return total[np.minimum(last + 1, len(flags))] - total[first]
