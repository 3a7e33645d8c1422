"""The world model: a transformer that predicts the next frame's tokens from four and the action.

Contract: the sequence is the M active cells of the frame to be predicted (`v2.models.cells`), all
predicted in one pass; history is fused at each cell; the action enters by FiLM (arXiv 1709.07871)
in every layer and by a learned spatial bias. Some of the next tokens may be revealed, and the
others are then predicted to agree with them (MaskGIT, arXiv 2202.04200). Knows nothing of pixels,
codebooks or games.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from v2.models.by_hand import MixNeighbours, Places, is_training, squared_relu
from v2.models.cells import active_cells, at_cells
from v2.models.patch_memory import PatchMemory
from v2.models.patch_table import LEVELS, PatchTable

COPY_BIAS = 4.0
MAX_AGE = 255  # steps; counted no further
AGE_GROWTH = 1.47  # of the limits of ages above those that have a row each
OLD_EXACT_AGE = 4  # of weights that knew no least ages


MAY_BE_ZERO = ("local_layers", "copy_bias", "past_actions")


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
    num_cells: int = 0  # M that a step predicts, the others are copied; 0: all
    has_age: bool = False  # read for how long each token has not changed
    exact_age: int = 0  # ages up to this have a row each; 0: up to 4, and least ages have none
    memory_bits: int = 0  # of the rows of its learnt tables of patches; 0: it has none
    memory_width: int = 16  # numbers in a row of them
    table_bits: int = 0  # of the buckets in its counted table of patches; 0: it has none
    reveal_layer: int = 0  # at which layer revealed tokens enter; 0: at the input
    num_decided: int = 0  # least certain cells that a dream decides one after another
    # Of weights whose logits are not calibrated, see v2.decoding.expected_changes; 0: of no others.
    change_weight: float = 0.0  # by which training favours changes
    false_change_scale: float = 0.0  # by which it counts tokens that stay but were doubted
    max_missing: float = 0.0  # changes of a frame that may be expected and not made

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.default == 0 or field.name in MAY_BE_ZERO else 1
            if value < least:
                raise ValueError(f"{field.name} must be at least {least}, got {value}")
        if self.past_actions >= self.history:
            raise ValueError(
                f"past_actions must be below history, got {self.past_actions} and {self.history}"
            )
        if self.num_cells > self.num_positions:
            raise ValueError(
                f"num_cells must be at most {self.num_positions}, got {self.num_cells}"
            )
        if self.reveal_layer >= self.layers:
            raise ValueError(
                f"reveal_layer must be below layers, got {self.reveal_layer} and {self.layers}"
            )
        if self.dim % self.heads:
            raise ValueError(f"dim must divide by heads, got {self.dim} and {self.heads}")

    @property
    def num_positions(self) -> int:
        return self.grid_height * self.grid_width

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns, (h, w)."""
        return self.grid_height, self.grid_width


def fields_of(recipe: object) -> dict:
    """Return those of a recipe's fields that a `WorldModelConfig` has, too.

    But for `false_change_scale`, by which old weights are decoded; a recipe's is of its loss alone.
    """
    names = {each.name for each in dataclasses.fields(WorldModelConfig)} - {"false_change_scale"}
    return {k: v for k, v in vars(recipe).items() if k in names}


class Prediction(NamedTuple):
    logits: torch.Tensor  # (B, M, K) of the next frame's tokens, at the active cells
    reward_logits: torch.Tensor  # (B, 3): negative, zero, positive
    terminated_logits: torch.Tensor  # (B,)


class Trunk(NamedTuple):
    """What does not depend on revealed tokens, so that several may be revealed in turn."""

    x: torch.Tensor  # (B, M, D)
    last: torch.Tensor  # int64 (B, M): tokens of the last frame at the cells
    recalled: torch.Tensor | None  # int64 (B, M): what the table says last
    action: torch.Tensor  # int64 (B,)
    rows: torch.Tensor | Places | None  # int64 (B * M,): the cells among all B * N; None: all


class TemporalWorldModel(nn.Module):
    far_rank: torch.Tensor  # int64 (N,), of a model with active cells

    def __init__(self, config: WorldModelConfig):
        super().__init__()
        self.config = config
        slots, unknown = config.history, 1
        self.token_tables = nn.Embedding(slots * config.num_codes, config.dim)
        self.position = nn.Parameter(torch.zeros(config.num_positions, config.dim))
        self.spatial_bias = nn.Parameter(
            torch.zeros(config.num_actions, config.num_positions, config.dim)
        )
        if config.past_actions:
            past = config.past_actions * (config.num_actions + unknown)
            self.past_action_tables = nn.Embedding(past, config.dim)
        if config.has_age:
            num_rows = len(age_limits(config.exact_age)) + 1
            self.age_table = nn.Embedding((2 if config.exact_age else 1) * num_rows, config.dim)
        if config.memory_bits:
            self.memory = PatchMemory(
                config.memory_bits, config.memory_width, config.dim, slots, config.num_codes,
                config.grid,
            )
        if config.table_bits:
            self.patch_table = PatchTable(config.table_bits, config.num_codes, config.grid)
            num_found = len(LEVELS) * self.patch_table.num_found
            self.found_tables = nn.Embedding(num_found, config.dim)
            self.recalled_table = nn.Embedding(num_found, config.num_codes)
        self.given = nn.Embedding(config.num_codes + 1, config.dim, padding_idx=config.num_codes)
        self.blocks = nn.ModuleList(
            Block(config, has_local_path=layer < config.local_layers)
            for layer in range(config.layers)
        )
        self.to_logits = nn.Linear(config.dim, config.num_codes)
        self.copy_table = nn.Embedding(config.num_codes, config.num_codes)
        self.to_outcome = nn.Linear(config.dim, 3)  # signs of a loss, a gain, the end
        if config.num_cells:
            self.register_buffer("far_rank", torch.zeros(config.num_positions, dtype=torch.long))
            if not self.far_rank.is_meta:  # there it would import torch's compiler, for a second
                self.far_rank.copy_(torch.arange(config.num_positions))
        self._initialise()

    def active_cells(self, history: torch.Tensor, count: int = 0) -> torch.Tensor | None:
        """Return the cells that a step predicts, int64 (B, M); None: all.

        Args:
            count: M where it is less than the config's; 0: the config's.
        """
        if not self.config.num_cells:
            return None
        count = count or self.config.num_cells
        if count == self.config.num_positions:
            return None
        return active_cells(history, self.far_rank, count, self.config.grid)

    def leave_for_later(self, first: int) -> None:
        """Make all but the first layers the identity, so that they can join a training late."""
        for block in self.blocks[first:]:
            assert isinstance(block, Block)
            if block.local is not None:  # the other parts begin so
                nn.init.zeros_(block.local.weight)

    def forward(
        self, history: torch.Tensor, actions: torch.Tensor, cells: torch.Tensor | None = None,
        revealed: torch.Tensor | None = None, age: torch.Tensor | None = None,
        num_layers: int = 0, fold: torch.Tensor | None = None,
    ) -> Prediction:  # fmt: skip
        """Predict the frame after the last one of the history.

        Args:
            history: tokens, int64 (B, 4, N), oldest first.
            actions: int64 (B, 4): the three between the frames of the history, then the one taken
                now. `num_actions` stands for an unknown one among the first three.
            cells: predict at these only, int64 (B, M); None: at all.
            revealed: next tokens that are known, int64 (B, N), `num_codes` where none is.
            age: for how many steps each token has not changed, int64 (B, N), see
                `v2.decoding.next_age`; None: all unknown. Read by a model that `has_age`.
            num_layers: run the first ones only; 0: all.
            fold: what a sample reads of the table of patches, int64 (B,), see `PatchTable`.
        """
        trunk = self.trunk(history, actions, cells, age, fold, num_layers)
        return self.finish(trunk, cells, revealed, num_layers)

    def trunk(
        self, history, actions, cells=None, age=None, fold=None, num_layers: int = 0
    ) -> Trunk:
        """Compute the layers before revealed tokens enter; see `forward`."""
        B, T, N = history.shape
        action = actions[:, -1]
        where = torch.arange(N, device=history.device).expand(B, N) if cells is None else cells
        # Look-ups as embeddings: the gradient of indexing is summed in no fixed order.
        bias = F.embedding(where + N * action[:, None], self.spatial_bias.flatten(0, 1))
        x = F.embedding(where, self.position) + bias + self._look_up(history, cells)  # (B, M, D)
        if self.config.memory_bits:
            x = x + self.memory(history, cells)
        recalled = None
        if self.config.table_bits:
            found = self.patch_table(history, action, cells, fold)
            levels = torch.arange(found.shape[2], device=found.device)
            x = x + self.found_tables(found + levels * self.patch_table.num_found).sum(2)
            recalled = self.patch_table.of_last_level(found)
        rows = None
        if cells is not None:
            of_sample = torch.arange(B, device=history.device).unsqueeze(1) * N
            rows = (cells + of_sample).flatten()
            if is_training():
                rows = Places.of(rows, (B, *self.config.grid, self.config.dim), like=x)
        if self.config.has_age:
            age = torch.zeros_like(history[:, -1]) if age is None else age
            x = x + self.age_table(self._age_rows(at_cells(age, cells)))
        if read := self.config.past_actions:
            past = torch.arange(read, device=history.device) * (self.config.num_actions + 1)
            x = x + self.past_action_tables(actions[:, -1 - read : -1] + past).sum(1, keepdim=True)
        trunk = Trunk(x, at_cells(history[:, -1], cells), recalled, action, rows)
        return self._run(trunk, self.blocks[: self._reveal_layer(num_layers)])

    def finish(self, trunk: Trunk, cells=None, revealed=None, num_layers: int = 0) -> Prediction:
        """Compute the other layers and the outputs; see `forward`."""
        if revealed is not None:
            trunk = trunk._replace(x=trunk.x + self.given(at_cells(revealed, cells)))
        last_layer = num_layers or len(self.blocks)
        x = self._run(trunk, self.blocks[self._reveal_layer(num_layers) : last_layer]).x
        x = F.layer_norm(x, x.shape[-1:])
        logits = self.to_logits(x) + self.copy_table(trunk.last)
        if trunk.recalled is not None:
            logits = logits + self.recalled_table(trunk.recalled)
        loss, gain, end = self.to_outcome(x).float().logsumexp(1).unbind(1)  # at some cell
        return Prediction(logits.float(), torch.stack([loss, torch.zeros_like(gain), gain], 1), end)

    def _reveal_layer(self, num_layers: int) -> int:
        return min(self.config.reveal_layer, num_layers or len(self.blocks))

    def _run(self, trunk: Trunk, blocks) -> Trunk:
        x = trunk.x
        for block in blocks:
            x = block(x, trunk.action, trunk.rows)
        return trunk._replace(x=x)

    def _look_up(self, history: torch.Tensor, cells: torch.Tensor | None) -> torch.Tensor:
        """Return the sum of the tables of each cell's tokens, (B, M, D)."""
        slots = torch.arange(history.shape[1], device=history.device).view(1, -1, 1)
        history = at_cells(history.transpose(1, 2), cells).transpose(1, 2)  # (B, T, M)
        return self.token_tables(history + slots * self.config.num_codes).sum(1)

    def _age_rows(self, age: torch.Tensor) -> torch.Tensor:
        limits = torch.tensor(age_limits(self.config.exact_age), device=age.device)
        rows = torch.bucketize(age.abs(), limits, right=True)
        if self.config.exact_age:
            return rows + (len(limits) + 1) * (age < 0)
        return rows * (age > 0)

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if "table" in name or name in ("position", "spatial_bias"):
                nn.init.normal_(parameter, std=0.02 if name == "spatial_bias" else 0.1)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.initialise()
        nn.init.zeros_(self.given.weight)
        nn.init.zeros_(self.to_outcome.weight)
        nn.init.constant_(self.to_outcome.bias, -math.log(100 * self.config.num_positions))
        nn.init.zeros_(self.to_logits.weight)
        nn.init.zeros_(self.to_logits.bias)
        with torch.no_grad():
            self.copy_table.weight.zero_().fill_diagonal_(self.config.copy_bias)
            if self.config.table_bits:
                self.recalled_table.weight.zero_()


def age_limits(exact: int) -> list[int]:
    """Return the first age of each row of a table of ages, in steps, but for 0."""
    limits = list(range(1, (exact or OLD_EXACT_AGE) + 1))
    while (following := round(limits[-1] * AGE_GROWTH)) <= MAX_AGE:
        limits.append(following)
    return limits


class Block(nn.Module):
    """Pre-norm attention and MLP whose inputs are scaled and shifted by the action."""

    def __init__(self, config: WorldModelConfig, has_local_path: bool):
        super().__init__()
        dim = config.dim
        self.heads, self.grid = config.heads, config.grid
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
        rows: torch.Tensor | Places | None = None,
    ) -> torch.Tensor:
        scale_a, shift_a, scale_m, shift_m = self.film(action).unsqueeze(1).chunk(4, dim=-1)
        if self.local is not None:
            x = x + self._mix_neighbours(x, rows)
        x = x + self._attend(_modulated(x, scale_a, shift_a))
        return x + self.contract(squared_relu(self.expand(_modulated(x, scale_m, shift_m))))

    def _mix_neighbours(self, x: torch.Tensor, rows: torch.Tensor | Places | None) -> torch.Tensor:
        B, M, D = x.shape
        local = self.local
        assert local is not None and local.bias is not None
        if isinstance(rows, Places):
            parts = [x.flatten(0, 1), local.weight, local.bias]
            parts = [part.to(rows.room.dtype) for part in parts]
            return MixNeighbours.apply(*parts, rows).view(B, M, D)
        if rows is not None:  # zero where there is none; faster than `scatter` and `gather`
            if torch.is_autocast_enabled(x.device.type):  # before they are all cells
                x = x.to(torch.get_autocast_dtype(x.device.type))
            places = x.new_zeros(B * self.grid[0] * self.grid[1], D)
            x = places.index_copy_(0, rows, x.flatten(0, 1)).view(B, -1, D)
        grid = x.transpose(1, 2).unflatten(2, self.grid)  # (B, D, h, w), channels last
        mixed = local(grid).flatten(2).transpose(1, 2)
        if rows is None:
            return mixed
        return mixed.reshape(-1, D).index_select(0, rows).view(B, M, D)

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if q.dtype == torch.bfloat16 and not q.is_cuda:  # two to three times as fast on the CPU
            q, k, v = (part.flatten(0, 1) for part in (q * q.shape[-1] ** -0.5, k, v))
            mixed = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
            mixed = mixed.unflatten(0, (B, self.heads))
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, D / heads)
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
            assert self.local.bias is not None
            nn.init.zeros_(self.local.bias)


def _modulated(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)
