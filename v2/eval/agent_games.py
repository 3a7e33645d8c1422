"""Players in the real game, and the same players inside dreams: scores, returns, their ranking.

Contract: a player sees frames alone; a game's luck comes from its seed; intervals are over games,
or over starts. Returns count signs of the score on both sides, scores are the game's own.
Knows nothing of how a player learnt.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from v2.agents.dreams import Dreams
from v2.agents.players import Named, Player
from v2.data.emulator import AtariFrameEnv
from v2.eval.intervals import Metric, episode_draws, interval, mean_metric

MAX_NOOPS = 30  # steps; so many at most begin a game
Progress = Callable[[int], object]


@dataclass
class Ranking:
    """Mean returns of P players from the same S starts."""

    names: list[str]
    inside: np.ndarray  # (P, S)
    outside: np.ndarray  # (P, S)
    starts: np.ndarray  # (S,)

    def metrics(self, side: np.ndarray) -> list[Metric]:
        """Return each player's mean return with its interval over starts."""
        return [mean_metric(row, self.starts, is_share=False) for row in side]

    def correlations(self) -> dict[str, Metric]:
        """Return Pearson's and Spearman's correlation of the means, resampled over starts."""
        found = {}
        draws = episode_draws(len(self.starts)) / len(self.starts)
        for name, measure in (("pearson", pearson), ("spearman", spearman)):
            value = measure(self.inside.mean(1), self.outside.mean(1))
            low = high = np.nan
            if np.isfinite(value):
                resampled = [measure(self.inside @ draw, self.outside @ draw) for draw in draws]
                low, high = interval(np.array(resampled), len(self.starts))
            found[name] = Metric(value, low, high, len(self.names))
        return found


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear correlation, NaN where one side does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return the correlation of the ranks; equal values share their mean rank."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, index, counts = np.unique(np.round(values, 9), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


def play_games(
    env: AtariFrameEnv, player: Player, seeds: list[int], max_steps: int, progress: Progress
) -> list[dict]:
    """Play whole games, one a seed; return the score and the steps of each."""
    games = []
    for seed in seeds:
        frame, _ = env.reset(seed=seed)
        player.begin(1, seed)
        score, step, is_over = 0.0, 0, False
        for _ in range(num_noops(env, seed)):
            frame, reward, terminated, truncated, _ = env.step(env.noop)
            score += reward
            if terminated or truncated:  # before the player did anything
                (frame, _), score = env.reset(seed=seed), 0.0
                break
        while step < max_steps and not is_over:
            action = int(player.act(frame[None])[0])
            frame, reward, is_over, is_cut, _ = env.step(action)
            score, step, is_over = score + reward, step + 1, is_over or is_cut
        games.append({"seed": seed, "score": score, "steps": step, "is_over": bool(is_over)})
        progress(1)
    return games


def num_noops(env: AtariFrameEnv, seed: int) -> int:
    """Return how many no-ops begin the game of a seed; none where the game has no such action.

    Where neither game nor player has luck they are all that tells games apart.
    """
    if env.noop is None:
        return 0
    return int(np.random.default_rng(seed).integers(MAX_NOOPS + 1))


def returns_inside(
    dreams: Dreams, players: list[Named], starts: np.ndarray, num_steps: int, progress: Progress
) -> np.ndarray:
    """Return what each player earns in dreams of at most so many steps, (P, S).

    Args:
        dreams: as many as starts, with the observation `rgb`.
    """
    found = []
    for seed, named in enumerate(players):
        named.player.begin(len(starts), seed)
        dreams.begin(np.arange(len(starts)), starts)
        total, is_over = np.zeros(len(starts)), np.zeros(len(starts), bool)
        for _ in range(num_steps):
            rewards, ends = dreams.step(named.player.act(dreams.frames()))
            total += np.where(is_over, 0, rewards)
            is_over |= ends
            progress(1)
            if is_over.all():
                break
        found.append(total)
    return np.stack(found)


def returns_outside(
    env: AtariFrameEnv, dreams: Dreams, players: list[Named], starts: np.ndarray, num_steps: int,
    progress: Progress,
) -> np.ndarray:  # fmt: skip
    """Return what each player earns in the real game from the same starts, (P, S)."""
    replays = dreams.starts.replays
    if replays is None:
        raise ValueError("a recording's starts cannot be reached again: take the committed ones")
    found = np.zeros((len(players), len(starts)))
    for column, start in enumerate(starts):
        frame, _ = env.reset()
        for action in replays[start]:
            frame, *_ = env.step(int(action))
        here = env.clone_state()
        for row, named in enumerate(players):
            env.restore_state(here)
            named.player.begin(1, len(starts) * row + column)
            found[row, column] = _return(env, named.player, frame, num_steps)
            progress(1)
    return found


def _return(env: AtariFrameEnv, player: Player, frame: np.ndarray, num_steps: int) -> float:
    total = 0.0
    for _ in range(num_steps):
        frame, reward, is_over, is_cut, _ = env.step(int(player.act(frame[None])[0]))
        total += np.sign(reward)
        if is_over or is_cut:
            break
    return total
