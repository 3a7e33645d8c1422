"""A recording in the place of an emulator, for games that have none.

Contract: what `PlaySession` asks of an environment, over the episodes of a data file, the held-out
ones first. The recording goes its own way: each step takes `next_action`, whatever is pressed.
Knows no models.
"""

from pathlib import Path
from typing import Any

import numpy as np

from v2.data.games import RecordedConfig
from v2.play.episodes import EpisodeFile


class RecordedEnv:
    """Episodes one after another, as steps.

    Args:
        path: a data file of `config`'s game, or shards.
    Raises:
        ValueError: of another game, or another frame rate.
    """

    action_meanings: list[str]
    ram = np.zeros(0, np.uint8)
    lives, noop = 0, None

    def __init__(self, path: Path, config: RecordedConfig):
        self.config, self._file = config, EpisodeFile(path)
        self.action_meanings = self._file.action_meanings
        self._file.check_fits(config, len(self.action_meanings))
        splits = self._file.splits
        self._order = sorted(range(len(splits)), key=lambda k: splits[k] != "val")
        self._open(0, 0)

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode, the next one with the next seed."""
        self._open((seed or 0) % len(self._order), 0)
        return self._episode.frames[0], {}

    @property
    def next_action(self) -> int:
        """The action that was taken at this moment of the recording."""
        return int(self._episode.actions[self._time])

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Go on by one recorded frame."""
        reward = float(self._episode.rewards[self._time])
        self._time += 1
        is_last = self._time == len(self._episode.frames) - 1
        return self._episode.frames[self._time], reward, False, is_last, {}

    def clone_state(self) -> Any:
        return self._index, self._time

    def restore_state(self, state) -> None:
        self._open(*state)

    def _open(self, index: int, time: int) -> None:
        if index != getattr(self, "_index", None):
            self._index, self._episode = index, self._file[self._order[index]]
        self._time = time
