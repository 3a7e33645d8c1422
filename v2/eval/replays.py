"""Branches of the emulator's states, and recorded games played again for theirs.

Contract: a game counts only while it shows, at every state that is branched, the frame that was
recorded; so what is branched is what was recorded. Knows nothing of models.
"""

import contextlib

import numpy as np
from tqdm import tqdm

from v2.data.atari_dataset import GameData, spread
from v2.data.emulator import AtariFrameEnv, make_atari_env
from v2.data.environments import NoWayBackError
from v2.data.games import EmulatorConfig
from v2.eval.branches import BRANCH_STEPS, Branches
from v2.eval.starts import HISTORY


class Recorder:
    """Branches of the states that an emulator comes to, gathered one by one."""

    def __init__(self, env: AtariFrameEnv):
        self.env = env
        self.states: list[tuple] = []  # in the order of Branches

    def add(self, history: np.ndarray, past_actions: np.ndarray, seed: int) -> None:
        """Branch the state of this moment; `history` are the last four frames."""
        steps = self.env.branch(range(int(self.env.action_space.n)), BRANCH_STEPS)
        frames, ram = (np.stack(part, 1) for part in zip(*steps, strict=True))
        self.states.append((history, past_actions, frames, ram, np.int64(seed)))

    def branches(self) -> Branches:
        """Return them all, at least one."""
        return Branches(self.env.config.game, *map(np.stack, zip(*self.states, strict=True)))


def recorded_branches(data: GameData, num_states: int) -> Branches | None:
    """Continue evenly spread states of recorded games; None where none can be played again."""
    firsts: dict[int, np.ndarray] = {}  # an episode after a rewind begins elsewhere
    for episode in data.meta["episodes"]:
        rows = np.flatnonzero(data.episode_ids == episode["id"])
        if len(rows):
            firsts.setdefault(episode["seed"], rows)
    places = [(seed, t) for seed, rows in firsts.items() for t in range(HISTORY - 1, len(rows) - 1)]
    if not places or not num_states or not isinstance(data.emulator, EmulatorConfig):
        return None
    chosen: dict[int, set[int]] = {}
    for seed, t in (places[k] for k in spread(np.arange(len(places)), num_states)):
        chosen.setdefault(seed, set()).add(t)
    try:
        recorder = Recorder(make_atari_env(config=data.emulator))
    except (ValueError, FileNotFoundError):  # of an emulator that is not here
        return None
    for seed, times in tqdm(chosen.items(), unit="game", disable=None, desc="branches"):
        rows = firsts[seed]
        with contextlib.suppress(NoWayBackError):
            _add_game(recorder, seed, data.frames[rows], data.actions[rows], times)
    return recorder.branches() if recorder.states else None


def _add_game(
    recorder: Recorder, seed: int, frames: np.ndarray, actions: np.ndarray, times: set[int]
) -> None:
    """Play a game again from its start and branch it at some steps, until it differs."""
    env = recorder.env
    frame, _ = env.reset(seed=seed if env.config.has_luck else None)
    for t in range(max(times) + 1):
        if t in times:
            if not np.array_equal(frame, frames[t]):
                return
            recorder.add(frames[t - HISTORY + 1 : t + 1], actions[t - HISTORY + 1 : t], seed)
        frame, *_ = env.step(int(actions[t]))
