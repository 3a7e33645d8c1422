"""The world model's loss: weighted cross-entropy over one step or a rollout of K.

Contract: loss = sum_k g^k L_k / sum_k g^k, so its scale does not depend on K; every step is
back-propagated as it comes, so memory does not grow with K. A step is `decoding.predict_next`, as
in a dream: the same active cells, and what it returns is what is fed back. Scheduled sampling
(arXiv 1506.03099): the truth is read instead with a small probability. A rollout that has left the
truth behind goes on from it: what follows could not be learnt from what it reads. Knows nothing of
files or optimizers.
"""

import numpy as np
import torch
from torch.nn import functional as F

from v2.data.tokens import TokenData
from v2.decoding import advance, next_age, predict_next
from v2.models.cells import at_cells
from v2.models.temporal_world_model import TemporalWorldModel
from v2.models.vqvae_hires import VQVAE
from v2.runtime.device import autocast, moved
from v2.train.recipe import WorldModelRecipe
from v2.train.sampling import Windows
from v2.train.token_weights import (
    candidate_weights,
    change_rarity,
    code_distances,
    false_change_weights,
    importance_weights,
)

NUM_LOSS_DRAWS = 3  # of a prediction, besides one for each token; see `WorldModelLoss.__call__`


class WorldModelLoss:
    """Computes and back-propagates the loss of a batch of windows."""

    def __init__(
        self, recipe: WorldModelRecipe, codebook: torch.Tensor, rarity: torch.Tensor,
        grid: tuple[int, int], device: torch.device,
    ):  # fmt: skip
        self.recipe, self.device, self.grid = recipe, device, grid
        self.distances = code_distances(codebook).to(device)  # (K, K)
        self.rarity = rarity.to(device)  # (N,)

    @classmethod
    def of(
        cls, recipe: WorldModelRecipe, vqvae: VQVAE, data: TokenData, device: torch.device
    ) -> "WorldModelLoss":
        """Take codes from the VQ-VAE and the rarity of changes from the training episodes."""
        is_step, rows = np.zeros(len(data), bool), data.rows_of("train")
        is_step[rows] = data.has_action[rows]
        rarity = change_rarity(torch.from_numpy(data.tokens), torch.from_numpy(is_step))
        return cls(recipe, vqvae.quantizer.codebook, rarity, vqvae.config.grid, device)

    def __call__(
        self, model: TemporalWorldModel, windows: Windows, is_forced: torch.Tensor,
        draws: torch.Tensor | None = None, num_cells: int = 0, num_layers: int = 0,
    ) -> tuple[torch.Tensor, dict]:  # fmt: skip
        """Leave the gradients in the model; return the loss, detached, and metrics.

        What is fed back is what was just predicted, so that K steps cost no more than K single
        ones; no gradient would pass the argmax.

        Args:
            is_forced: bool (B, K): the model reads the true frame after this step.
            draws: uniform in [0, 1), (B, K, NUM_LOSS_DRAWS + N): whether next tokens are revealed,
                how many, whether the table of patches is read, and which tokens; None: no token is
                revealed, and the table always read.
            num_cells, num_layers: see `predict_next`.
        """
        T = model.config.history
        truth, is_forced = windows.tokens[:, T:], is_forced.to(self.device)
        total, factors = torch.zeros((), device=self.device), self._factors(truth.shape[1])
        history, age, read = windows.read_history(T), windows.age, []
        if draws is not None:
            draws = moved(draws, self.device)
        for k, factor in enumerate(factors):
            revealed, fold = None, windows.fold
            if draws is not None:
                is_last = k + 1 == len(factors)  # elsewhere what is fed back would hold the truth
                revealed = self._reveal(truth[:, k], draws[:, k]) if is_last else None
                if fold is not None:
                    fold = torch.where(draws[:, k, 2] >= self.recipe.table_dropout, fold, -1)
            with autocast(self.device):
                step = predict_next(
                    model, history, windows.actions[:, k : k + T], age=age, revealed=revealed,
                    num_decided=None if k + 1 < len(factors) else 0,  # only what is fed back
                    num_cells=num_cells, num_layers=num_layers, fold=fold,
                )  # fmt: skip
            loss, metrics = self.step_loss(step, windows, k, T, revealed)
            (factor * loss).backward()
            total = total + factor * loss.detach()
            if k + 1 < len(factors):
                is_real = is_forced[:, k] | (
                    (step.tokens != truth[:, k]).sum(1) > self.recipe.max_wrong
                )
                read.append(torch.where(is_real[:, None], truth[:, k], step.tokens))
                age = next_age(age, history[:, -1], read[-1])
                history = advance(history, read[-1])
        is_right, is_hidden = step.tokens == truth[:, -1], torch.ones_like(step.tokens)
        if revealed is not None:
            is_hidden = revealed == len(self.distances)
        metrics |= {"loss": total, "accuracy": (is_right * is_hidden).sum() / is_hidden.sum()}
        if read:  # how much of the rollout was the model's own
            own = torch.stack(read, 1) != truth[:, :-1]
            metrics["read_unlike_truth"] = own.any(2).float().mean()
        return total, metrics

    def _reveal(self, truth: torch.Tensor, draws: torch.Tensor) -> torch.Tensor | None:
        """Reveal a random share of the next tokens in a share of the samples (arXiv 2202.04200).

        Returns:
            int64 (B, N): the true token where it is revealed, `num_codes` everywhere else; None
            where the recipe reveals none.
        """
        if not self.recipe.revealed_share:
            return None
        share = torch.where(draws[:, :1] < self.recipe.revealed_share, draws[:, 1:2], 0.0)
        return torch.where(draws[:, NUM_LOSS_DRAWS:] < share, truth, len(self.distances))

    def _factors(self, steps: int) -> list[float]:
        factors = self.recipe.discount ** torch.arange(steps, dtype=torch.float32)
        return (factors / factors.sum()).tolist()

    def step_loss(
        self, step, windows: Windows, k: int, history: int, revealed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict]:
        """Return the loss of step k, over its active cells that were not revealed, and metrics.

        Args:
            step: what `predict_next` returned; history: T.
            revealed: see `_reveal`.
        """
        recipe, logits = self.recipe, step.prediction.logits  # (B, M, K)
        seen = windows.tokens[:, k : history + k + 1]  # four frames and the target
        target, last = seen[:, -1], seen[:, -2]
        num_tokens, is_hidden = target.numel(), torch.ones_like(target, dtype=torch.bool)
        if revealed is not None:
            is_hidden = revealed == len(self.distances)
        if recipe.is_calibrated:
            weights = candidate_weights(seen, recipe, self.distances, self.rarity, self.grid)
            weights = at_cells(weights, step.cells)  # (B, M, K)
            logits = logits + weights.log()
            goal = at_cells(target, step.cells)
            weights = weights.gather(2, goal.unsqueeze(2)).squeeze(2)
            entropy = F.cross_entropy(logits.transpose(1, 2), goal, reduction="none")
        else:
            weights = importance_weights(seen, recipe, self.distances, self.rarity, self.grid)
            goal, weights = at_cells(target, step.cells), at_cells(weights, step.cells)
            entropy = F.cross_entropy(logits.transpose(1, 2), goal, reduction="none")
            is_changed = goal != at_cells(last, step.cells)
            weights = weights * false_change_weights(
                entropy, is_changed, recipe.false_change_scale
            )
        weights = weights * at_cells(is_hidden, step.cells)
        tokens = (entropy * weights).sum() / num_tokens
        prediction = step.prediction
        reward = F.cross_entropy(prediction.reward_logits, windows.reward_signs[:, k])
        ended = F.binary_cross_entropy_with_logits(
            prediction.terminated_logits, windows.terminated[:, k]
        )
        metrics = {"reward_loss": reward.detach(), "terminated_loss": ended.detach()}
        return tokens + recipe.outcome_weight * (reward + ended), metrics
