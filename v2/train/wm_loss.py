"""The world model's loss: weighted cross-entropy over one step or a rollout of K.

Contract: loss = sum_k g^k L_k / sum_k g^k, so its scale does not depend on K; every step is
back-propagated as it comes, so memory does not grow with K. Scheduled sampling (arXiv 1506.03099):
the model reads its own argmax, except where the truth is revealed with a small probability. A dream
that has left the truth behind goes on from it: what follows could not be learnt from what it reads.
In a share of the predictions one changed token is revealed, the true one, so that the model can
complete what `decoding.predict_next` decides.
Knows nothing of files or optimizers.
"""


import numpy as np
import torch
from torch.nn import functional as F

from v2.data.tokens import TokenData
from v2.decoding import ONE_LOOK, advance, predict_next
from v2.models.cells import draw_positions
from v2.models.temporal_world_model import Prediction, Subset, TemporalWorldModel
from v2.models.vqvae_hires import VQVAE
from v2.runtime.device import autocast, moved
from v2.train.recipe import WorldModelRecipe
from v2.train.sampling import Windows
from v2.train.token_weights import (
    change_rarity,
    code_distances,
    false_change_weights,
    importance_weights,
)


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
        count: int = 0, draws: torch.Tensor | None = None, reveal_draws: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict]:  # fmt: skip
        """Leave the gradients in the model; return the loss, detached, and metrics.

        What is fed back is what was just predicted, so that K steps cost no more than K single
        ones; no gradient would pass the argmax. With a count, over the draws the expectation is the
        loss of all positions, but for attention, which sees fewer keys, each weighted by what it
        stands for, and for the 3x3 convolutions, which see zeros where a position is left out.

        Args:
            is_forced: bool (B, K): the model reads the true frame after this step.
            count: learn at so many positions of each step only; 0: at all.
            draws: uniform in [0, 1), (B, K, N); they decide the positions.
            reveal_draws: uniform in [0, 1), (B, K, 2): whether one of the next tokens is revealed,
                and which; None: never.
        """
        T = model.config.history
        truth, is_forced = windows.tokens[:, T:], is_forced.to(self.device)
        total, factors = torch.zeros((), device=self.device), self._factors(truth.shape[1])
        history, read = windows.read_history(T), []
        if draws is not None:
            draws = moved(draws, self.device)
        if reveal_draws is not None:
            reveal_draws = moved(reveal_draws, self.device)
        for k, factor in enumerate(factors):
            weights, is_revealed = self.weights(windows, k, T), None
            revealed = subset = None
            if reveal_draws is not None:
                revealed = self._reveal(weights, windows, k, T, reveal_draws[:, k])
                is_revealed = revealed < model.config.num_codes
                weights = weights.masked_fill(is_revealed, 0)
            if count:
                drawn = draw_positions(history, count, self.grid, draws[:, k], is_revealed)
                subset = Subset(*drawn)
            with autocast(self.device):
                tokens, prediction, _ = predict_next(
                    model, history, windows.actions[:, k : k + T], ONE_LOOK,
                    subset=subset, given=revealed,
                )  # fmt: skip
            loss, metrics = self.step_loss(prediction, windows, k, T, weights, subset)
            (factor * loss).backward()
            total = total + factor * loss.detach()
            if k + 1 < len(factors):
                read.append(self._fed_back(tokens, truth[:, k], is_forced[:, k], subset))
                history = advance(history, read[-1])
        metrics |= {"loss": total, "accuracy": _accuracy(prediction, truth[:, -1], subset)}
        if read:  # how much of the rollout was the model's own
            own = torch.stack(read, 1) != truth[:, :-1]
            metrics["read_unlike_truth"] = own.any(2).float().mean()
        return total, metrics

    def _fed_back(self, tokens, truth, is_forced, subset: Subset | None) -> torch.Tensor:
        """Return what the next step reads as the last frame, (B, N).

        The truth stands where nothing was predicted, and everywhere in samples with too many wrong
        tokens or with `is_forced`, (B,).
        """
        if subset is not None:
            tokens = truth.scatter(1, subset.positions, tokens.gather(1, subset.positions))
        is_real = is_forced | ((tokens != truth).sum(1) > self.recipe.max_wrong)
        return torch.where(is_real[:, None], truth, tokens)

    def _reveal(self, weights, windows: Windows, k: int, history: int, draws) -> torch.Tensor:
        """Choose one token that changes, the weightier the likelier, in a share of the samples.

        Returns:
            int64 (B, N): the true token there, `num_codes` everywhere else.
        """
        target = windows.tokens[:, history + k]
        is_changed = target != windows.tokens[:, history + k - 1]
        heights = (weights * is_changed).cumsum(1)
        place = (heights <= draws[:, 1:] * heights[:, -1:]).sum(1, keepdim=True)
        place = place.clamp(max=target.shape[1] - 1)
        is_revealed = (draws[:, :1] < self.recipe.revealed_share) & is_changed.gather(1, place)
        num_codes = len(self.distances)
        token = torch.where(is_revealed, target.gather(1, place), num_codes)
        return torch.full_like(target, num_codes).scatter(1, place, token)

    def _factors(self, steps: int) -> list[float]:
        factors = self.recipe.discount ** torch.arange(steps, dtype=torch.float32)
        return (factors / factors.sum()).tolist()

    def weights(self, windows: Windows, k: int, history: int) -> torch.Tensor:
        """Return the importance weights (B, N) of the true tokens of step k."""
        seen = windows.tokens[:, k : history + k + 1]  # four frames and the target
        return importance_weights(seen, self.recipe, self.distances, self.rarity, self.grid)

    def step_loss(
        self, prediction: Prediction, windows: Windows, k: int, history: int,
        weights: torch.Tensor, subset: Subset | None = None,
    ) -> tuple[torch.Tensor, dict]:  # fmt: skip
        """Return the loss of step k under weights (B, N), and metrics."""
        target = windows.tokens[:, history + k]
        is_changed = target != windows.tokens[:, history + k - 1]
        num_tokens = target.numel()
        if subset is not None:
            target = target.gather(1, subset.positions)
            is_changed = is_changed.gather(1, subset.positions)
            weights = weights.gather(1, subset.positions) / subset.chances
        entropy = F.cross_entropy(prediction.logits.transpose(1, 2), target, reduction="none")
        scale = self.recipe.false_change_scale
        weights = weights * false_change_weights(entropy, is_changed, scale)
        of_samples = (entropy * weights).sum(1) * (len(target) / num_tokens)  # (B,)
        reward = F.cross_entropy(prediction.reward_logits, windows.reward_signs[:, k])
        ended = F.binary_cross_entropy_with_logits(
            prediction.terminated_logits, windows.terminated[:, k]
        )
        loss = of_samples.mean() + self.recipe.outcome_weight * (reward + ended)
        metrics = {"reward_loss": reward.detach(), "terminated_loss": ended.detach()}
        return loss, metrics


def _accuracy(prediction: Prediction, target: torch.Tensor, subset: Subset | None) -> torch.Tensor:
    """Return the share of right tokens, or its estimate where few positions were predicted."""
    tokens = prediction.logits.argmax(-1)
    if subset is None:
        return (tokens == target).float().mean()
    is_right = tokens == target.gather(1, subset.positions)
    return (is_right / subset.chances).sum() / target.numel()
