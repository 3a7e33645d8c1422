"""Recorded games played again by the emulator, and branches of the states that they pass through.

Contract: a game counts only while it shows, at every state that is branched, the frame that was
recorded; so what is branched is what was recorded. Knows nothing of models.
"""

import numpy as np
from tqdm import tqdm

from v2.data.atari_dataset import GameData
from v2.data.emulator import AtariFrameEnv, make_atari_env
from v2.data.games import EmulatorConfig
from v2.eval.branches import BRANCH_STEPS, Branches
from v2.eval.starts import HISTORY


class Recorder:
    """Branches of states, gathered game by game."""

    def __init__(self, env: AtariFrameEnv):
        self.env = env
        self.parts: dict[str, list] = {
            name: [] for name in ("history", "past", "frames", "ram", "seed")
        }

    def add_game(
        self, seed: int, frames: np.ndarray, actions: np.ndarray, times: set[int]
    ) -> bool:
        """Play a game again from its start and branch it at some steps; False if it differs."""
        env = self.env
        frame, _ = env.reset(seed=seed if env.config.has_luck else None)
        for t in range(max(times) + 1):
            if t in times:
                if not np.array_equal(frame, frames[t]):
                    return False
                steps = list(env.branch(range(int(env.action_space.n)), BRANCH_STEPS))
                self.parts["history"].append(frames[t - HISTORY + 1 : t + 1])
                self.parts["past"].append(actions[t - HISTORY + 1 : t])
                self.parts["frames"].append(np.stack([step.frames for step in steps], 1))
                self.parts["ram"].append(np.stack([step.ram for step in steps], 1))
                self.parts["seed"].append(seed)
            frame, *_ = env.step(int(actions[t]))
        return True

    def branches(self) -> Branches:
        parts = self.parts
        return Branches(
            self.env.config.game, np.stack(parts["history"]), np.stack(parts["past"]),
            np.stack(parts["frames"]), np.stack(parts["ram"]), np.array(parts["seed"], np.int64),
        )  # fmt: skip


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
    spread = np.unique(np.linspace(0, len(places) - 1, num_states).astype(int))
    chosen: dict[int, set[int]] = {}
    for seed, t in (places[k] for k in spread):
        chosen.setdefault(seed, set()).add(t)
    try:
        recorder = Recorder(make_atari_env(config=data.emulator))
    except (ValueError, FileNotFoundError):  # of an emulator that is not here
        return None
    for seed, times in tqdm(chosen.items(), unit="game", disable=None, desc="branches"):
        rows = firsts[seed]
        recorder.add_game(seed, data.frames[rows], data.actions[rows], times)
    return recorder.branches() if recorder.parts["seed"] else None
