"""Figures of a world model on held-out episodes while it trains, copy-last beside each.

Contract: the same windows every time, from the validation split, never from gold; greedy, with
recorded actions. Teacher-forced is one step from real frames, open-loop feeds itself.
"""

from pathlib import Path

import numpy as np
import torch

from v2.data.atari_dataset import ARRAY_FIELDS, data_paths, window_starts
from v2.data.npz import read_npz
from v2.data.tokens import TokenData
from v2.dream import DreamEngine
from v2.eval.metrics import ball_scores
from v2.eval.truth import has_truth, read_frames, read_ram
from v2.models.temporal_world_model import TemporalWorldModel
from v2.models.vqvae_hires import VQVAE
from v2.pictures import save_grid
from v2.train.wm_loss import read_windows

NUM_WINDOWS = 40
NUM_STEPS = 10
HIT_PX = 2.0


class Evaluation:
    """Held-out windows, read once."""

    def __init__(self, vqvae: VQVAE, tokens: TokenData, data: Path, device: torch.device):
        self.vqvae, self.device, self.game = vqvae, device, tokens.emulator.game
        starts = window_starts(tokens.episode_ids, 4 + NUM_STEPS, tokens.rows_of("val"))
        spread = np.linspace(0, len(starts) - 1, min(NUM_WINDOWS, len(starts))).astype(int)
        self.starts = starts[spread]
        self.windows = read_windows(tokens, self.starts, 4, NUM_STEPS)
        self.objects = None
        if has_truth(self.game):
            fields = {"ram": ARRAY_FIELDS["ram"]}
            ram = np.concatenate([read_npz(p, fields)[0]["ram"] for p in data_paths(data)])
            rows = self.starts[:, None] + np.arange(4, 4 + NUM_STEPS)
            self.objects = [read_ram(self.game, ram[rows[:, k]]) for k in range(NUM_STEPS)]

    def __call__(self, model: TemporalWorldModel, picture: Path) -> tuple[dict, float]:
        """Return figures and one score, and draw the first window, real over dream."""
        engine = DreamEngine(self.vqvae, model, self.device)
        truth, actions = self.windows.tokens, self.windows.actions.numpy()
        engine.reset_tokens(truth[:, :4], actions[:, :3])
        last = truth[:, 3]
        figures, strip = {}, []
        for k in range(NUM_STEPS):
            engine.step_tokens(actions[:, 3 + k])
            dreamed = torch.from_numpy(engine.tokens).flatten(1)
            true = truth[:, 4 + k]
            strip.append(dreamed[0])
            if k == 0:
                figures |= self._one_step(engine.logits.cpu(), dreamed, true, last)
            if k + 1 in (5, 10):
                figures[f"rollout@{k + 1}"] = _mean(dreamed == true)
                figures[f"copy_last@{k + 1}"] = _mean(last == true)
            if self.objects and k + 1 in (1, 5, 10):
                seen = read_frames(self.game, engine.frame())
                hits = ball_scores(self.objects[k], seen, HIT_PX)
                figures[f"ball_hit@{k + 1}"] = hits["recall"]
        strips = (truth[0, 4:], torch.stack(strip))
        save_grid(picture, [engine.decode(s.unflatten(1, engine.grid).numpy()) for s in strips])
        score = figures["changed_accuracy"] + figures["rollout@10"] - figures["false_changes"]
        return figures, score + sum(v for k, v in figures.items() if k.startswith("ball_hit"))

    def _one_step(self, logits, dreamed, true, last) -> dict:
        entropy = torch.nn.functional.cross_entropy(logits.transpose(1, 2), true)
        is_changed = true != last
        return {
            "token_accuracy": _mean(dreamed == true),
            "copy_last_accuracy": _mean(~is_changed),
            "changed_accuracy": _mean((dreamed == true)[is_changed]),
            "false_changes": _mean((dreamed != true)[~is_changed]),
            "cross_entropy": float(entropy),
        }


def _mean(values: torch.Tensor) -> float:
    return float(values.float().mean())
