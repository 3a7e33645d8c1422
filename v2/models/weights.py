"""Models from checkpoints, and the hashes that bind models, tokens and data together.

Contract: a world model is loaded only with the tokenizer that it learnt from. Knows nothing of
training or games.
"""

from pathlib import Path

import torch

from v2.models.pairs import SeenPairs
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.runtime.checkpoint import (
    averaged,
    load_checkpoint,
    model_sha256,
    rebuilt,
    round_to_shipped,
)

KINDS = {"vqvae": (VQVAE, VQVAEConfig), "world_model": (TemporalWorldModel, WorldModelConfig)}


def build_model(state: dict, path: Path) -> torch.nn.Module:
    """Rebuild the model of a loaded checkpoint in float32, in eval mode.

    Raises:
        ValueError: a config or weights that do not fit, with the path.
    """
    return rebuilt(state, path, *KINDS[state["kind"]])


def load_vqvae(path: Path) -> tuple[VQVAE, dict]:
    """Load a VQ-VAE as `load_world_model` does, rounded to the shipped dtype."""
    state = averaged(load_checkpoint(path, "vqvae"))
    model = round_to_shipped(build_model(state, path))
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
    return model, {key: value for key, value in state.items() if key != "model"}


def stored_pairs(info: dict, config: WorldModelConfig, path: Path) -> SeenPairs | None:
    """Return the pairs of codes stored with a world model; None in files older than they are.

    Args:
        info: what `load_world_model` returned beside the model.

    Raises:
        ValueError: damaged tables.
    """
    h, K, tables = config.grid_height, config.num_codes, info.get("seen_pairs")
    if tables is None:
        return None
    shapes = {"right": (h, K, K), "below": (h - 1, K, K)}
    if not isinstance(tables, dict) or any(
        not isinstance(table := tables.get(name), torch.Tensor)
        or (table.dtype, table.layout, table.shape) != (torch.bool, torch.strided, shape)
        or table.is_meta
        for name, shape in shapes.items()
    ):
        raise ValueError(f"{path}: its tables of pairs are damaged")
    return SeenPairs(**{name: tables[name] for name in shapes})


def tokenizer_sha256(vqvae: VQVAE) -> str:
    """Hash what decides tokens, encoder and codebook: a decoder may be trained on without it."""
    return model_sha256(vqvae, ("encoder.", "quantizer.codebook"))
