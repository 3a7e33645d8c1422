"""What is played, as episodes to train on.

Contract: the collector's own format; a file is complete or absent. Knows nothing of windows or
models.
"""

from pathlib import Path

import numpy as np

from v2.data.atari_dataset import GOLD_SEED_START, GameData, save_game_data, split_of_game
from v2.data.collector import Segment, is_in_other_split, join_segments
from v2.data.emulator import emulator_version
from v2.data.games import EmulatorConfig, emulator_dict

# Above the seeds of every collect_atari.py --seed, below those of the gold games.
HUMAN_SEED_START = 990_000_000
MAX_PLAY_SEED = 9_999


class EpisodeTape:
    """Record what is played in the collector's format, so that it can be trained on.

    A rewind begins a new episode of the same game, as in the collector.

    Args:
        seed: of the session; every session that is to be trained on needs another.
        controller: who plays; kept up to date by whoever hands over.
    """

    def __init__(self, config: EmulatorConfig, action_meanings: list[str], seed: int,
                 controller: str = "human"):  # fmt: skip
        if not 0 <= seed <= MAX_PLAY_SEED:
            raise ValueError(f"--seed must be 0 to {MAX_PLAY_SEED} with --save-data, got {seed}")
        self.config, self.action_meanings, self.seed = config, action_meanings, seed
        self.controller = controller
        self._segments: list[Segment] = []

    @staticmethod
    def first_game_seed(seed: int) -> int:
        """Return the seed of a session's first game; it decides the split, as for every game."""
        assert HUMAN_SEED_START + (MAX_PLAY_SEED + 1) * 1000 <= GOLD_SEED_START
        return HUMAN_SEED_START + seed * 1000

    def begin(self, seed: int, frame: np.ndarray, ram: np.ndarray) -> None:
        self._segments.append(Segment.begin(seed, self.controller, frame, ram))

    def step(self, action, reward, frame, ram, terminated) -> None:
        now = self._segments[-1]
        now.append(action, reward, frame, ram, terminated)
        if self.controller not in now.policy.split("+"):
            now.policy += f"+{self.controller}"

    @property
    def has_held_out_game(self) -> bool:
        """Whether training finds a game to validate on, as the second one is."""
        return any(split_of_game(segment.seed) == "val" for segment in self._segments)

    def save(self, path: Path) -> tuple[int, int, int]:
        """Write the data file and forget its frames.

        An episode that equals an earlier one of the other split is left out: training refuses both.

        Returns:
            how many frames and episodes the file holds, and how many episodes were left out.
        """
        played = [segment.finish() for segment in self._segments if len(segment) > 1]
        first: dict[bytes, str] = {}
        kept = self._segments = [s for s in played if not is_in_other_split(s, first)]
        if not kept:
            return 0, 0, 0
        shares: dict[str, float] = {}
        for segment in kept:
            shares[segment.policy] = shares.get(segment.policy, 0.0) + len(segment)
        total = sum(shares.values())
        shares = {policy: round(count / total, 4) for policy, count in shares.items()}
        arrays, episodes = join_segments(kept, 0, is_last_use=True)
        meta = {
            "format": 1, "game": self.config.game, "emulator": emulator_dict(self.config),
            "action_meanings": self.action_meanings, "policy": "played",
            "mix": shares, "seed": self.seed, "episodes": episodes,
        } | ({"ale_py": emulator_version()} if self.config.is_atari else {})  # fmt: skip
        save_game_data(path, GameData(**arrays, meta=meta))
        return len(arrays["frames"]), len(episodes), len(played) - len(kept)
