"""Models from checkpoints, and the hashes that bind models, tokens and data together.

Contract: a world model is loaded only with the tokenizer that it learnt from. Knows nothing of
training or games.
"""

from pathlib import Path

import torch

from v2.models.agent_network import AgentConfig, AgentNetwork
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.runtime.checkpoint import (
    averaged,
    load_checkpoint,
    model_sha256,
    rebuilt,
    round_to_shipped,
)

KINDS: dict[str, tuple[type[torch.nn.Module], type]] = {
    "vqvae": (VQVAE, VQVAEConfig),
    "world_model": (TemporalWorldModel, WorldModelConfig),
    "agent": (AgentNetwork, AgentConfig),
}

# What the config of a world model does not say where it is older than active cells.
FIRST_EDITION = {"num_cells": 0, "change_weight": 30.0, "false_change_scale": 8.0,
                 "max_missing": 0.5}  # fmt: skip
POSITIONED = {"encoder_position": True}  # the same of a VQ-VAE that is older than this field
RETIRED = {"stem_radius": 0}  # fields that some configs have, and the one value that still loads


def build_model(state: dict, path: Path) -> torch.nn.Module:
    """Rebuild the model of a loaded checkpoint in float32, in eval mode.

    Raises:
        ValueError: a config or weights that do not fit, with the path.
    """
    return rebuilt(told(state), path, *KINDS[state["kind"]])


def told(state: dict) -> dict:
    """Return a loaded checkpoint whose config says what it left unsaid when it was saved."""
    config = state["config"]
    if state["kind"] == "vqvae" and isinstance(config, dict):
        state = state | {"config": POSITIONED | config}
    if state["kind"] == "world_model" and isinstance(config, dict):
        config = {k: v for k, v in config.items() if (k, v) not in RETIRED.items()}
        config = config if "num_cells" in config else FIRST_EDITION | config
        if not config.get("change_weight"):  # a loss's scale, which some configs hold
            config = config | {"false_change_scale": 0.0}
        state = state | {"config": config}
    return state


def load_vqvae(path: Path) -> tuple[VQVAE, dict]:
    """Load a VQ-VAE as `load_world_model` does, rounded to the shipped dtype."""
    state = averaged(load_checkpoint(path, "vqvae"))
    model = round_to_shipped(build_model(state, path))
    assert isinstance(model, VQVAE)
    return model, {key: value for key, value in state.items() if key != "model"}


def load_world_model(
    path: Path, vqvae_sha256: str | None = None
) -> tuple[TemporalWorldModel, dict]:
    """Load a world model, with its averaged weights where it has them, and the rest of the file.

    Args:
        vqvae_sha256: the tokenizer it is to work with; another one is refused.
    """
    state = load_checkpoint(path, "world_model")
    known = str(state.get("vqvae_sha256"))
    if vqvae_sha256 and known != vqvae_sha256:
        raise ValueError(
            f"{path} was trained on the tokens of VQ-VAE {known[:12]}, "
            f"not of {vqvae_sha256[:12]}: use the VQ-VAE of its own run"
        )
    state = averaged(state)
    model = build_model(state, path)
    assert isinstance(model, TemporalWorldModel)
    return model, {key: value for key, value in state.items() if key != "model"}


def load_agent(path: Path) -> tuple[AgentNetwork, dict]:
    """Load an agent and the rest of its file."""
    state = load_checkpoint(path, "agent")
    model = build_model(state, path)
    assert isinstance(model, AgentNetwork)
    return model, {key: value for key, value in state.items() if key != "model"}


def tokenizer_sha256(vqvae: VQVAE) -> str:
    """Hash what decides tokens, encoder and codebook: a decoder may be trained on without it."""
    return model_sha256(vqvae, ("encoder.", "quantizer.codebook"))
