"""The world model: a transformer that predicts the next frame's tokens from four and the action.

Contract: the sequence is the N = 336 positions of the frame to be predicted, all predicted in one
pass; history is fused at each position, so every token of it is in reach; the action enters by
FiLM (arXiv 1709.07871) in every layer and by a learned spatial bias. A few of the next tokens may
be given, and the others are then predicted to agree with them (as in MaskGIT, arXiv 2202.04200).
Knows nothing of pixels, codebooks or games.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

COPY_BIAS = 4.0


@dataclass(frozen=True)
class WorldModelConfig:
    num_actions: int  # A
    num_codes: int = 32  # K
    grid_height: int = 21  # h
    grid_width: int = 16  # w
    history: int = 4  # frames
    dim: int = 256  # D
    heads: int = 8
    layers: int = 10
    ffn_dim: int = 1024
    local_layers: int = 10  # first layers with a 3x3 depthwise convolution: a short path for motion
    copy_bias: float = COPY_BIAS  # initial logit of the last frame's token
    past_actions: int = 3  # how many are read of those between the frames of the history

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("local_layers", "copy_bias", "past_actions") else 1
            if value < least:
                raise ValueError(f"{field.name} must be at least {least}, got {value}")
        if self.past_actions >= self.history:
            raise ValueError(
                f"past_actions must be below history, got {self.past_actions} and {self.history}"
            )
        if self.dim % self.heads:
            raise ValueError(f"dim must divide by heads, got {self.dim} and {self.heads}")

    @property
    def num_positions(self) -> int:
        return self.grid_height * self.grid_width


class Prediction(NamedTuple):
    logits: torch.Tensor  # (B, N, K) of the next frame's tokens
    reward_logits: torch.Tensor  # (B, 3): negative, zero, positive
    terminated_logits: torch.Tensor  # (B,)


class Subset(NamedTuple):
    """M of the N positions, drawn by chance; the others are left out, as in a training step."""

    positions: torch.Tensor  # int64 (B, M)
    chances: torch.Tensor  # float32 (B, M): the probability with which each was drawn, in (0, 1]


class TemporalWorldModel(nn.Module):
    def __init__(self, config: WorldModelConfig):
        super().__init__()
        self.config = config
        slots, unknown = config.history, 1
        self.token_tables = nn.Embedding(slots * config.num_codes, config.dim)  # one a slot
        self.position = nn.Parameter(torch.zeros(config.num_positions, config.dim))
        self.spatial_bias = nn.Parameter(
            torch.zeros(config.num_actions, config.num_positions, config.dim)
        )
        if config.past_actions:
            past = config.past_actions * (config.num_actions + unknown)
            self.past_action_tables = nn.Embedding(past, config.dim)
        self.given = nn.Embedding(config.num_codes + 1, config.dim, padding_idx=config.num_codes)
        self.blocks = nn.ModuleList(
            Block(config, has_local_path=layer < config.local_layers)
            for layer in range(config.layers)
        )
        self.to_logits = nn.Linear(config.dim, config.num_codes)
        self.copy_table = nn.Embedding(config.num_codes, config.num_codes)
        self.to_outcome = nn.Linear(config.dim, 3)  # signs of a loss, a gain, the end
        self._initialise()

    def forward(
        self, history: torch.Tensor, actions: torch.Tensor, subset: Subset | None = None,
        given: torch.Tensor | None = None,
    ) -> Prediction:  # fmt: skip
        """Predict the frame after the last one of the history.

        Args:
            history: tokens, int64 (B, 4, N), oldest first.
            actions: int64 (B, 4): the three between the frames of the history, then the one taken
                now. `num_actions` stands for an unknown one among the first three.
            subset: predict at these positions only, logits (B, M, K). A position drawn with chance
                p counts 1/p times as key, so that it stands for those left out.
            given: next tokens that are decided, int64 (B, N), `num_codes` where none is.
        """
        B, T, N = history.shape
        codes, actions_now = self.config.num_codes, actions[:, -1]
        # A look-up as an embedding: the gradient of indexing is summed in no fixed order.
        bias = F.embedding(actions_now, self.spatial_bias.flatten(1)).view(B, N, -1)
        place = self.position + bias  # (B, N, D)
        key_bias, rows, stand_for = None, None, 0.0  # log of how many positions each stands for
        if subset is not None:
            place = place.gather(1, subset.positions.unsqueeze(2).expand(-1, -1, place.shape[2]))
            history = history.gather(2, subset.positions.unsqueeze(1).expand(-1, T, -1))
            given = given if given is None else given.gather(1, subset.positions)
            stand_for = -subset.chances.log().unsqueeze(2)  # (B, M, 1)
            key_bias = stand_for.squeeze(2)[:, None, None]  # (B, 1, 1, M)
            of_sample = torch.arange(B, device=history.device).unsqueeze(1) * N
            rows = (subset.positions + of_sample).flatten()  # (B * M,) of all B * N places
        slots = torch.arange(T, device=history.device).view(1, T, 1) * codes
        x = self.token_tables(history + slots).sum(1) + place
        if given is not None:
            x = x + self.given(given)
        if read := self.config.past_actions:
            past = torch.arange(read, device=history.device) * (self.config.num_actions + 1)
            x = x + self.past_action_tables(actions[:, -1 - read : -1] + past).sum(1, keepdim=True)
        for block in self.blocks:
            x = block(x, actions_now, rows, key_bias)
        x = F.layer_norm(x, x.shape[-1:])
        logits = self.to_logits(x) + self.copy_table(history[:, -1])
        evidence = self.to_outcome(x).float() + stand_for  # (B, N, 3): it happens somewhere
        loss, gain, end = evidence.logsumexp(1).unbind(1)
        return Prediction(logits.float(), torch.stack([loss, torch.zeros_like(gain), gain], 1), end)

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if "table" in name or name in ("position", "spatial_bias"):
                nn.init.normal_(parameter, std=0.02 if name == "spatial_bias" else 0.1)
        for block in self.blocks:
            block.initialise()
        nn.init.zeros_(self.given.weight)
        nn.init.zeros_(self.to_outcome.weight)
        nn.init.constant_(self.to_outcome.bias, -math.log(100 * self.config.num_positions))
        nn.init.zeros_(self.to_logits.weight)
        nn.init.zeros_(self.to_logits.bias)
        with torch.no_grad():
            self.copy_table.weight.zero_().fill_diagonal_(self.config.copy_bias)


class Block(nn.Module):
    """Pre-norm attention and MLP whose inputs are scaled and shifted by the action."""

    def __init__(self, config: WorldModelConfig, has_local_path: bool):
        super().__init__()
        dim = config.dim
        self.heads, self.grid = config.heads, (config.grid_height, config.grid_width)
        self.film = nn.Embedding(config.num_actions, 4 * dim)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if has_local_path else None
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attended = nn.Linear(dim, dim, bias=False)
        self.expand = nn.Linear(dim, config.ffn_dim, bias=False)
        self.contract = nn.Linear(config.ffn_dim, dim, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        action: torch.Tensor,
        rows: torch.Tensor | None = None,
        key_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        scale_a, shift_a, scale_m, shift_m = self.film(action).unsqueeze(1).chunk(4, dim=-1)
        if self.local is not None:
            x = x + self._mix_neighbours(x, rows)
        x = x + self._attend(_modulated(x, scale_a, shift_a), key_bias)
        hidden = F.relu(self.expand(_modulated(x, scale_m, shift_m))).square()
        return x + self.contract(hidden)

    def _mix_neighbours(self, x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        B, M, D = x.shape
        if rows is not None:  # zero where there is none; faster than `scatter` and `gather`
            places = x.new_zeros(B * self.grid[0] * self.grid[1], D)
            x = places.index_copy(0, rows, x.flatten(0, 1)).view(B, -1, D)
        grid = x.transpose(1, 2).unflatten(2, self.grid)  # (B, D, h, w), channels last
        mixed = self.local(grid).flatten(2).transpose(1, 2)
        if rows is None:
            return mixed
        return mixed.reshape(-1, D).index_select(0, rows).view(B, M, D)

    def _attend(self, x: torch.Tensor, key_bias: torch.Tensor | None) -> torch.Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if key_bias is None or x.is_cuda:
            bias = key_bias if key_bias is None else key_bias.to(q.dtype)
            mixed = F.scaled_dot_product_attention(q, k, v, bias)  # (B, heads, N, D / heads)
        else:  # few positions: in float32, whose backward is four times as fast on the CPU
            with torch.autocast(x.device.type, enabled=False):
                mixed = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), key_bias)
            mixed = mixed.to(q.dtype)
        return self.attended(mixed.transpose(1, 2).reshape(B, N, D))

    def initialise(self) -> None:
        """Start with no FiLM, no attention and no MLP: little mixing, and that of neighbours."""
        nn.init.zeros_(self.film.weight)
        for layer in (self.qkv, self.expand):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.attended.weight)
        nn.init.zeros_(self.contract.weight)
        if self.local is not None:
            nn.init.normal_(self.local.weight, std=0.1)
            nn.init.zeros_(self.local.bias)


def _modulated(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)
