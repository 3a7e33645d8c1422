"""Checkpoints: one file with the weights and everything that rebuilds and continues them.

Contract: a saved file is complete or absent, carries its sha256 beside it, holds plain values only
and is loaded with `weights_only=True`; a file that is damaged, foreign, newer or of another kind
is refused with one line. The only place that reads or writes weights.
Knows nothing of training or games.
"""

import dataclasses
import hashlib
import os
import pickle
import sys
import zipfile
from pathlib import Path

import torch

from v2.files import atomic_path, describe_bytes, file_sha256, sync_directory, write_text
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE, VQVAEConfig

FORMAT = 1
KINDS = {"vqvae": (VQVAE, VQVAEConfig), "world_model": (TemporalWorldModel, WorldModelConfig)}
SHIPPED_DTYPE = torch.float16


def save_checkpoint(path: Path, kind: str, model: torch.nn.Module, **extra) -> None:
    """Write a checkpoint atomically, its sha256 beside it.

    Args:
        model: the uncompiled model, with a frozen dataclass `.config`.
        extra: plain values and tensors (optimizer, step, rng, metrics, emulator, ...).
    """
    state = {
        "format": FORMAT,
        "kind": kind,
        "config": dataclasses.asdict(model.config),
        "model": model.state_dict(),
        **extra,
    }
    path = Path(path)
    try:
        with atomic_path(path) as temporary:
            with open(temporary, "wb") as file:  # given a path, torch hides what went wrong
                torch.save(state, file)
            # The sidecar names the new and the old hash, so that it is right whichever of the
            # two files a kill leaves in place.
            hashes = [file_sha256(temporary), *_known_hashes(path)[:1]]
            write_text(_sidecar(path), "".join(f"{h}  {path.name}\n" for h in hashes))
    except RuntimeError as error:
        cause = error.__context__
        while cause and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause:
            raise OSError(f"cannot write {path}: {cause.strerror}") from error
        raise


def save_rotating(path: Path, *args, **kwargs) -> None:
    """Save, keeping the file that was there as `<stem>-1.pt`."""
    path = Path(path)
    if path.exists():
        previous = previous_path(path)
        hashes = _known_hashes(path)
        write_text(_sidecar(previous), "".join(f"{h}  {previous.name}\n" for h in hashes))
        temporary = path.with_name(f".{previous.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        os.replace(temporary, previous)
        sync_directory(path.parent)
    save_checkpoint(path, *args, **kwargs)


def previous_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-1{path.suffix}")


def load_checkpoint(path: Path, kind: str) -> dict:
    """Load and check a checkpoint.

    Raises:
        FileNotFoundError, ValueError: with the path and what the file looks like.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint {path}")
    _check_bytes(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError,
            AttributeError, AssertionError, IndexError) as error:  # fmt: skip
        raise ValueError(f"{path} is not a checkpoint of this program") from error
    if not isinstance(state, dict) or "kind" not in state or "model" not in state:
        raise ValueError(f"{path} is not a checkpoint of this program")
    if not isinstance(state.get("format"), int) or state["format"] > FORMAT:
        raise ValueError(f"{path} has format {state.get('format')}, newer than {FORMAT}: update")
    if state["kind"] != kind:
        raise ValueError(f"{path} is a {state['kind']} checkpoint, not a {kind}")
    return state


def load_last(folder: Path, kind: str) -> dict:
    """Load a run's last checkpoint, or with one line the one before where that is damaged."""
    path = Path(folder) / "last.pt"
    try:
        return load_checkpoint(path, kind)
    except (FileNotFoundError, ValueError) as error:
        if not previous_path(path).exists():
            raise
        print(f"{error}; going on from {previous_path(path).name}", file=sys.stderr)
        return load_checkpoint(previous_path(path), kind)


def build_model(state: dict, path: Path) -> torch.nn.Module:
    """Rebuild the model of a loaded checkpoint in float32, in eval mode.

    Raises:
        ValueError: a weight is missing, of another shape, or not finite.
    """
    model_class, config_class = KINDS[state["kind"]]
    try:
        model = model_class(config_class(**state["config"]))
    except TypeError as error:
        raise ValueError(f"{path}: its config is of another version ({error})") from error
    weights = state["model"]
    for name, expected in model.state_dict().items():
        if name not in weights:
            raise ValueError(f"{path}: weight {name} is missing")
        if weights[name].shape != expected.shape:
            raise ValueError(
                f"{path}: weight {name} is {tuple(weights[name].shape)}, "
                f"its config says {tuple(expected.shape)}"
            )
        if not torch.isfinite(weights[name]).all():
            raise ValueError(f"{path}: weight {name} is not finite")
    unknown = set(weights) - set(model.state_dict())
    if unknown:
        raise ValueError(f"{path}: weight {sorted(unknown)[0]} is unknown")
    model.load_state_dict(weights)
    return model.eval()


def load_vqvae(path: Path) -> tuple[VQVAE, dict]:
    """Load a VQ-VAE, rounded to the shipped dtype, and its checkpoint without the weights."""
    state = load_checkpoint(path, "vqvae")
    model = round_to_shipped(build_model(state, path))
    return model, {key: value for key, value in state.items() if key != "model"}


def load_world_model(path: Path, vqvae_sha256: str | None = None) -> tuple[TemporalWorldModel, dict]:
    """Load a world model, with its averaged weights where it has them.

    Args:
        vqvae_sha256: the tokenizer it is to work with; another one is refused.
    """
    state = load_checkpoint(path, "world_model")
    if vqvae_sha256 and state["vqvae_sha256"] != vqvae_sha256:
        raise ValueError(
            f"{path} was trained on the tokens of VQ-VAE {state['vqvae_sha256'][:12]}, "
            f"not of {vqvae_sha256[:12]}: use the VQ-VAE of its own run"
        )
    if state.get("ema"):
        state["model"] = state["ema"]
    model = build_model(state, path)
    return model, {key: value for key, value in state.items() if key not in ("model", "ema")}


def round_to_shipped(model: torch.nn.Module) -> torch.nn.Module:
    """Round floating weights to the dtype they are shipped in, keeping float32 storage."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(SHIPPED_DTYPE))
    return model


def model_sha256(model: torch.nn.Module) -> str:
    """Hash names, shapes and weights as rounded to the shipped dtype."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        rounded = tensor.to(SHIPPED_DTYPE) if tensor.is_floating_point() else tensor
        digest.update(rounded.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_bytes(path: Path) -> None:
    looks = f"{path} is not a checkpoint ({describe_bytes(path)})"
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch.load does not compare the checksums
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, RuntimeError,
            zipfile.zlib.error) as error:  # fmt: skip
        raise ValueError(looks) from error
    if damaged:
        raise ValueError(f"{path} is damaged: checksum mismatch in {damaged}")
    known = _known_hashes(path)
    if known and file_sha256(path) not in known:
        raise ValueError(f"{path} is damaged: checksum mismatch with {_sidecar(path).name}")


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _known_hashes(path: Path) -> list[str]:
    sidecar = _sidecar(path)
    if not sidecar.exists():
        return []
    return [line.split()[0] for line in sidecar.read_text(encoding="utf-8").splitlines() if line]
