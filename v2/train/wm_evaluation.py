"""Figures of a world model on held-out episodes while it trains, copy-last beside their tokens.

Contract: the protocol of the evaluation suite at its smallest size; the same clips every time, from
the validation split, never from gold; open loop, greedy, under the recorded actions.
"""

from pathlib import Path

import numpy as np
import torch

from v2.data.atari_dataset import ARRAY_FIELDS, data_paths, window_starts
from v2.data.npz import read_rows
from v2.data.tokens import TokenData
from v2.dream import DreamEngine
from v2.eval.clips import HISTORY, Clips
from v2.eval.dreaming import dream
from v2.eval.protocol import quick_scores
from v2.models.temporal_world_model import TemporalWorldModel
from v2.models.vqvae_hires import VQVAE
from v2.pairs import SeenPairs
from v2.pictures import save_grid

NUM_CLIPS = 40
NUM_STEPS = 10


class Evaluation:
    """Held-out clips, read once."""

    def __init__(self, vqvae: VQVAE, tokens: TokenData, data: Path, device: torch.device):
        self.vqvae, self.device = vqvae, device
        firsts = window_starts(tokens.episode_ids, HISTORY + NUM_STEPS, tokens.rows_of("val"))
        spread = np.linspace(0, len(firsts) - 1, min(NUM_CLIPS, len(firsts))).astype(int)
        rows = firsts[np.unique(spread)][:, None] + np.arange(HISTORY + NUM_STEPS)  # (B, 14)
        self.clips = Clips(
            game=tokens.emulator.game,
            frames=_read("frames", data, rows),
            actions=tokens.actions[rows[:, :-1]],
            rewards=tokens.rewards[rows[:, :-1]],
            terminated=tokens.terminated[rows[:, :-1]],
            ram=_read("ram", data, rows),
            episodes=tokens.episode_ids[rows[:, 0]],
            strata=np.array(["any"] * len(rows)),
        )

    def __call__(
        self, model: TemporalWorldModel, seen: SeenPairs, picture: Path
    ) -> tuple[dict, float]:
        """Return figures and the score that chooses `best.pt`; draw a clip, real over dream."""
        engine = DreamEngine(self.vqvae, model, self.device, seen=seen)
        figures = quick_scores(engine, self.clips)
        clips, one = self.clips, [len(self.clips) // 2]
        dreams = dream(
            engine, clips.history[one], clips.past_actions[one], clips.actions[one, HISTORY - 1 :]
        )
        dreamed = np.stack([dreams.at(h)[0][0] for h in dreams.horizons])
        save_grid(picture, [clips.frames[one[0], HISTORY:], dreamed])
        score = figures.pop("score")
        return figures, score


def _read(name: str, data: Path, rows: np.ndarray) -> np.ndarray:
    """Read rows (B, T) of one array of a data file or its shards, a block at a time."""
    dtype, tail = ARRAY_FIELDS[name]
    wanted, inverse = np.unique(rows, return_inverse=True)
    parts, first = [], 0
    for path in data_paths(data):
        part, length = read_rows(path, name, dtype, tail, wanted, first)
        parts.append(part)
        first += length
    return np.concatenate(parts)[inverse.reshape(rows.shape)]
