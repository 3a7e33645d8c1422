"""Recorded episodes to browse: found by their number, read one file at a time.

Contract: an episode has more frames than the dream starts from, and belongs to the game, settings
and actions that were checked. Knows no models.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2.data.atari_dataset import GameData, load_game_data, recorded_emulator, split_of
from v2.data.games import EmulatorConfig, RecordedConfig, differing_settings, emulator_dict
from v2.data.npz import read_meta
from v2.data.recordings import META_FIELDS, data_paths
from v2.data.validation import check_episodes
from v2.play.session import HISTORY_FRAMES


@dataclass
class Episode:
    """One recorded episode; see `v2.data.atari_dataset` for the time convention."""

    id: int
    policy: str
    score: float
    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray


class EpisodeFile:
    """The episodes of a data file, or of its shards, of which one is in memory at a time."""

    def __init__(self, path: Path):
        """Read the list of episodes.

        Raises:
            ValueError: a damaged list, or no episode of more than four frames.
        """
        self.parts = data_paths(path)
        self.metas = [read_meta(part, META_FIELDS) for part in self.parts]
        for part, meta in zip(self.parts, self.metas, strict=True):
            check_episodes(part, meta)
        self._places = [
            (part, entry) for part, meta in zip(self.parts, self.metas, strict=True)
            for entry in meta["episodes"] if entry["frames"] > HISTORY_FRAMES
        ]  # fmt: skip
        if not self._places:
            raise ValueError(f"{path} has no episode of more than {HISTORY_FRAMES} frames")
        self._part: Path | None = None
        self._data: GameData | None = None

    @property
    def action_meanings(self) -> list[str]:
        return self.metas[0]["action_meanings"]

    @property
    def splits(self) -> list[str]:
        """The split of each episode."""
        return [split_of(entry) for _, entry in self._places]

    def check_fits(self, emulator: EmulatorConfig | RecordedConfig, num_actions: int) -> None:
        """Check that a model knows the game as it was recorded.

        Raises:
            ValueError: another game, emulator or number of actions; with the path.
        """
        for part, meta in zip(self.parts, self.metas, strict=True):
            _check_fits(part, meta, emulator, num_actions)

    def __len__(self) -> int:
        return len(self._places)

    def index_of(self, episode_id: int) -> int:
        ids = [entry["id"] for _, entry in self._places]
        if episode_id not in ids:
            raise ValueError(f"no episode {episode_id}: there are {ids[0]} to {ids[-1]}")
        return ids.index(episode_id)

    def __getitem__(self, index: int) -> Episode:
        part, entry = self._places[index]
        if part != self._part:
            self._data, self._part = load_game_data(part), part
        assert self._data is not None
        rows = np.flatnonzero(self._data.episode_ids == entry["id"])
        if len(rows) != entry["frames"]:
            raise ValueError(f"{part}: its list of episodes is damaged; make the file again")
        first, last = rows[0], rows[-1] + 1
        rewards = self._data.rewards[first:last]
        return Episode(
            entry["id"], str(entry.get("policy", "?")), float(rewards.sum()),
            self._data.frames[first:last], self._data.actions[first:last], rewards,
        )  # fmt: skip


def _check_fits(
    path: Path, meta: dict, emulator: EmulatorConfig | RecordedConfig, num_actions: int
) -> None:
    recorded = recorded_emulator(path, meta)
    if recorded.game != emulator.game:
        raise ValueError(f"{path} holds {recorded.game}: add --game {recorded.game}")
    if differing := differing_settings(emulator_dict(recorded), emulator_dict(emulator)):
        raise ValueError(
            f"{path} was recorded with {'; '.join(differing)} as the model knows: load other "
            "weights"
        )
    names = meta["action_meanings"]
    if len(names) != num_actions or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} has other actions than the model knows: load other weights")
