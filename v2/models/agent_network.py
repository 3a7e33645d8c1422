"""The agent: a small convolutional network from four grey frames to an action and a value.

Contract: a channel is a frame, oldest first; pixels are in [0, 1]. The layers are those of the
first deep Q-network (arXiv 1312.5602). Knows nothing of games, files or how it learns.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class AgentConfig:
    num_actions: int
    stacked_frames: int = 4
    height: int = 84
    width: int = 64
    first_dim: int = 16  # channels
    second_dim: int = 32
    hidden_dim: int = 256

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be at least 1")
        if min(self.height, self.width) < 16:
            raise ValueError(f"frames must be at least 16x16, got {self.height}x{self.width}")


class AgentTrunk(nn.Module):
    """What policy and value share."""

    def __init__(self, config: AgentConfig):
        super().__init__()
        self.first = nn.Conv2d(config.stacked_frames, config.first_dim, 8, stride=4)
        self.second = nn.Conv2d(config.first_dim, config.second_dim, 4, stride=2)
        rows, columns = (((n - 8) // 4 + 1 - 4) // 2 + 1 for n in (config.height, config.width))
        self.hidden = nn.Linear(config.second_dim * rows * columns, config.hidden_dim)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.second(F.relu(self.first(pixels))))
        return F.relu(self.hidden(x.flatten(1)))


class AgentNetwork(nn.Module):
    def __init__(self, config: AgentConfig):
        super().__init__()
        self.config = config
        self.trunk = AgentTrunk(config)
        self.to_logits = nn.Linear(config.hidden_dim, config.num_actions)
        self.to_value = nn.Linear(config.hidden_dim, 1)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the actions (B, A) and the values (B,) of pixels (B, 4, H, W)."""
        hidden = self.trunk(pixels)
        return self.to_logits(hidden), self.to_value(hidden).squeeze(1)
