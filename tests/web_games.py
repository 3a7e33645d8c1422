"""Two games for the page's tests: a toy whose rules are known, and small real models.

The scenes are real: their frames and memory come from the emulator.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from v2.data.collector import GameJob, record_game
from v2.data.games import EmulatorConfig
from v2.data.policies import SCRIPTED
from v2.decoding import known_age
from v2.eval.objects import detector
from v2.export.graph import INPUTS, OUTPUTS, export_graph
from v2.export.scenes import KINDS, PARITY_STEPS, Scene, dream_tokens, write_game
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.play.keys import ALIASES

FIRST_STEP, NUM_STEPS = 30, 70  # of a recorded game; at the first a ball is in play
FIRE, RIGHT, LEFT = 1, 2, 3
PADDLE, PADDLE_ROW = 1, 18


class ToyGraph(nn.Module):
    """A paddle that moves by a cell a step, and nothing else; `step` as in StepGraph."""

    def __init__(self, is_wrong: bool = False):
        super().__init__()
        self.is_wrong = is_wrong

    def forward(self, tokens, actions, age, decoded, cells):
        grid = tokens[3].view(21, 16)
        right, left = actions[3] == RIGHT, actions[3] == LEFT
        if self.is_wrong:
            right, left = left, right
        moved = torch.where(right, grid.roll(1, 1), torch.where(left, grid.roll(-1, 1), grid))
        lit = (moved == PADDLE).float().view(1, 1, 21, 16)
        frame = (F.interpolate(lit, scale_factor=4.0)[0, 0] * 200).to(torch.uint8)
        reward = F.one_hot((actions[3] == FIRE).long() + 1, 3).float()  # a point for FIRE
        end = (age + decoded).sum() * 0.0
        picture = frame.unsqueeze(-1).expand(84, 64, 3)
        return moved.flatten(), reward, end, picture, cells + 1


def write_games(folder: Path) -> None:
    """Write `breakout`, the toy, whose graph for WebGPU is wrong, and `pong`, small models."""
    toy = folder / "games" / "breakout"
    wrong, right = toy / "wrong.onnx", toy / "step.onnx"
    _export(ToyGraph(is_wrong=True), wrong)
    _export(ToyGraph(), right)
    tokens = torch.zeros(4, 336, dtype=torch.long)
    tokens[:, PADDLE_ROW * 16 + 6 : PADDLE_ROW * 16 + 9] = PADDLE
    scenes = [_scene("breakout", k, tokens, ToyGraph()) for k in range(2)]
    write_game(toy, EmulatorConfig("breakout"), scenes, {"webgpu": wrong, "wasm": right},
               source="a toy")  # fmt: skip
    small, (vqvae, model) = folder / "games" / "pong", small_models(num_actions=6)
    graph = small / "step.onnx"
    small.mkdir(parents=True)
    export_graph(vqvae, model, graph)
    tokens = torch.randint(0, 32, (4, 336), generator=torch.Generator().manual_seed(0))
    write_game(small, EmulatorConfig("pong"), [_scene("pong", 0, tokens, model)],
               {"webgpu": graph, "wasm": graph}, ALIASES["pong"], "small models")  # fmt: skip


def small_models(num_actions: int) -> tuple[VQVAE, TemporalWorldModel]:
    """Return models of random weights that have every part of the second edition."""
    torch.manual_seed(0)
    config = WorldModelConfig(
        num_actions, dim=32, heads=2, layers=2, ffn_dim=64, copy_bias=0.5, num_cells=60,
        has_age=True, exact_age=8, memory_bits=6, table_bits=6, num_decided=2, reveal_layer=1,
    )  # fmt: skip
    model = TemporalWorldModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    sizes = dict(latent_dim=16, stem_dim=8, decoder_dim=8, cell_dim=8, pixel_dim=8)
    return VQVAE(VQVAEConfig(**sizes)).eval(), model


def _export(module: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = (4, 336), (4,), (336,), (336,)
    module.eval()
    arguments = *(torch.zeros(shape, dtype=torch.long) for shape in shapes), torch.zeros(88, 4)
    torch.onnx.export(module, arguments, path, dynamo=True, verbose=False, external_data=False,
                      input_names=INPUTS, output_names=OUTPUTS)  # fmt: skip


def _scene(game: str, number: int, tokens: torch.Tensor, world: nn.Module) -> Scene:
    policy = dataclasses.replace(SCRIPTED, share=1.0)
    job = GameJob(EmulatorConfig(game), policy, 7 + number, FIRST_STEP + NUM_STEPS)
    (segment,) = record_game(job)
    actions, frames = segment.actions[FIRST_STEP:], segment.frames[FIRST_STEP:]
    past, age = segment.actions[FIRST_STEP - 3 : FIRST_STEP], known_age(tokens[None])[0]
    dream = dream_tokens if isinstance(world, TemporalWorldModel) else _toy_tokens
    return Scene(
        KINDS[game][number], segment.seed, tokens.numpy().astype(np.uint8), past,
        age.numpy().astype(np.float32), actions, segment.rewards[FIRST_STEP:],
        detector.read_ram(game, segment.ram[FIRST_STEP:]).ball,
        detector.read_frames(game, frames).ball, frames, _real_tokens(tokens[-1]),
        dream(world, tokens, past, age, actions[:PARITY_STEPS]),
    )  # fmt: skip


def _real_tokens(last: torch.Tensor) -> np.ndarray:
    """Return tokens of which each row differs from those before: none is of these frames."""
    rows = torch.arange(NUM_STEPS + 1)[:, None]
    return ((last + rows * (torch.arange(336) % 7 == 0)) % 32).numpy().astype(np.uint8)


def _toy_tokens(world: ToyGraph, tokens, past, age, actions) -> np.ndarray:
    made, taken = [], [int(action) for action in past]
    for action in actions:
        taken.append(int(action))
        now = world(tokens, torch.tensor(taken[-4:]), age, age, torch.zeros(88, 4))[0]
        tokens = torch.cat([tokens[1:], now[None]])
        made.append(now.numpy().astype(np.uint8))
    return np.stack(made)
