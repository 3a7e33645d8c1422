"""Checkpoints: one file with the weights and everything that rebuilds and continues them.

Contract: a saved file is complete or absent, carries its sha256 beside it, holds plain values only
and is loaded with `weights_only=True`; a file that is damaged, foreign, newer or of another kind
is refused with one line. The only place that reads or writes weights.
Knows nothing of training or games.
"""

import contextlib
import dataclasses
import hashlib
import os
import pickle
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from v2.runtime.files import atomic_path, describe_bytes, file_sha256, write_text

FORMAT = 1
OF_A_RUN = (
    "step", "minutes", "recipe", "seed", "data_sha256", "recordings_sha256", "train_args",
)  # fmt: skip
HISTORY = ("metrics", "emulator", "action_meanings", "earlier", *OF_A_RUN)  # how weights came about
SHIPPED_DTYPE = torch.float16
MAX_CONFIG_NUMBER = 4096  # a larger width or depth is a forged config, not a model of ours
# What reading foreign bytes raises. torch's own texts advise to load unsafely and are not shown.
FOREIGN_BYTES = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError,
    RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError,
)  # fmt: skip

Model = TypeVar("Model", bound=torch.nn.Module)


def save_checkpoint(path: Path, kind: str, model: torch.nn.Module, **extra) -> None:
    """Write a checkpoint atomically, its sha256 beside it.

    Args:
        model: the uncompiled model, with a frozen dataclass `.config`.
        extra: plain values and tensors (optimizer, step, rng, metrics, emulator, ...).
    """
    with saving(path, kind, model, **extra):
        pass


@contextlib.contextmanager
def saving(path: Path, kind: str, model: torch.nn.Module, **extra):
    """Write a checkpoint as `save_checkpoint` does, which takes its place when the block succeeds.

    So of several that belong together none takes its place before all are written.
    """
    state = {
        "format": FORMAT,
        "kind": kind,
        "config": dataclasses.asdict(_config_of(model)),
        "model": model.state_dict(),
        **extra,
    }
    path = Path(path)
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:  # given a path, torch hides what went wrong
            _write_state(state, file)
        digest = file_sha256(temporary)
        _announce(path, digest)
        yield
    _write_sidecar(path, [digest])


def _config_of(model: torch.nn.Module) -> Any:  # torch takes any attribute for a tensor
    return model.config


def save_rotating(path: Path, *args, **kwargs) -> None:
    """Save, keeping the file that was there, unless it is damaged, as `<stem>-1.pt`."""
    path = Path(path)
    previous = previous_path(path)
    if _is_whole(path) and not (previous.exists() and path.samefile(previous)):
        _announce(previous, file_sha256(path))
        with atomic_path(previous) as temporary:
            temporary.unlink(missing_ok=True)  # of a killed process that had this one's id
            try:
                os.link(path, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(path, temporary)
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
    except FOREIGN_BYTES as error:
        raise ValueError(f"{path} is not a checkpoint of this program") from error
    if not isinstance(state, dict) or not {"kind", "format", "config", "model"} <= state.keys():
        raise ValueError(f"{path} is not a checkpoint of this program")
    if not isinstance(state["format"], int) or state["format"] > FORMAT:
        raise ValueError(f"{path} has format {state['format']}, newer than {FORMAT}: update")
    if state["kind"] != kind:
        raise ValueError(f"{path} is a {state['kind']} checkpoint, not a {kind}")
    return state


def load_last(folder: Path, kind: str) -> dict:
    """Load a run's last checkpoint, or with one line the one before where that is damaged."""
    path = Path(folder) / "last.pt"
    try:
        state = load_checkpoint(path, kind)
        for weights in filter(None, (state["model"], state.get("ema"))):
            check_finite(weights, path)
        return state
    except (FileNotFoundError, ValueError) as error:
        if not previous_path(path).exists():
            raise
        print(f"{error}; going on from {previous_path(path).name}", file=sys.stderr)
        return load_checkpoint(previous_path(path), kind)


def check_resumable(state: dict, path: Path, *keys: str) -> None:
    """Raise a ValueError with what a checkpoint lacks that a run saves to go on from."""
    keys = "optimizer", "ema", "step", "best", "rng", *keys
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(
            f"{path} holds weights without {', '.join(missing)}: it cannot be resumed; "
            f"--set init_from={path} begins a new run with them"
        )


def check_finite(weights: dict, path: Path) -> None:
    """Raise a ValueError with the first weight that is not finite."""
    for name, tensor in weights.items():
        if isinstance(tensor, torch.Tensor) and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: weight {name} is not finite")


def rebuilt(state: dict, path: Path, model_class: type, config_class: type) -> torch.nn.Module:
    """Rebuild the model of a loaded checkpoint in float32, in eval mode.

    Args:
        config_class: a frozen dataclass of plain numbers, which `model_class` takes.
    Raises:
        ValueError: a weight is missing, of another shape, or not finite; nothing is allocated.
    """
    config = state["config"]
    if not isinstance(config, dict) or any(
        type(value) not in (int, float, bool) or not abs(value) <= MAX_CONFIG_NUMBER
        for value in config.values()
    ):
        raise ValueError(f"{path}: its config is damaged")
    try:
        config = config_class(**config)
        with torch.device("meta"), _ShapesOnly():
            model = model_class(config)
    except FOREIGN_BYTES as error:
        raise ValueError(f"{path}: its config is of another version ({error})") from error
    _check_weights(state["model"], model, path)
    weights = {name: _own_copy(tensor) for name, tensor in state["model"].items()}
    model.load_state_dict(weights, assign=True)  # whatever the user's default dtype is
    return model.eval()


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy, float32 where it is a weight, with memory of its own."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


class _ShapesOnly(TorchFunctionMode):
    """Skip initial values: on the meta device they would import the compiler, for a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def restore(model: torch.nn.Module, state: dict, path: Path) -> None:
    """Put the weights of a loaded checkpoint into a model of the same architecture.

    Raises:
        ValueError: another architecture, by the fields that differ, or damaged weights.
    """
    check_architecture(model, state["config"], path)
    _check_weights(state["model"], model, path)
    model.load_state_dict(state["model"])


def check_architecture(model: torch.nn.Module, stored: dict, path: Path, ignored=()) -> None:
    """Raise a ValueError with the fields in which a stored config differs from a model's."""
    if differing := differing_fields(_config_of(model), stored, ignored):
        raise ValueError(f"{path} has another architecture: {'; '.join(differing)}")


def differing_fields(config: Any, stored: dict, ignored=()) -> list[str]:
    """Say in which fields a stored config differs from a model's; what it lacks is the default."""
    today = dataclasses.asdict(config)
    stored = {field.name: field.default for field in dataclasses.fields(config)} | stored
    return [
        f"{key} {stored.get(key)}, now {today.get(key)}"
        for key in sorted((today.keys() | stored.keys()) - set(ignored))
        if today.get(key) != stored.get(key)
    ]


def _check_weights(weights: dict, model: torch.nn.Module, path: Path) -> None:
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds no weights")
    claimed = _num_bytes(weights)
    if Path(path).is_file() and claimed > Path(path).stat().st_size:
        raise ValueError(f"{path} claims {claimed} bytes of weights, which it cannot hold")
    for name, expected in model.state_dict().items():
        found = weights.get(name)
        if found is None:
            raise ValueError(f"{path}: weight {name} is missing")
        if not isinstance(found, torch.Tensor) or found.layout != torch.strided or found.is_meta:
            raise ValueError(f"{path}: weight {name} is no plain tensor")
        if found.is_floating_point() != expected.is_floating_point() or found.is_complex():
            raise ValueError(f"{path}: weight {name} is {found.dtype}, not {expected.dtype}")
        if found.shape != expected.shape:
            raise ValueError(
                f"{path}: weight {name} is {tuple(found.shape)}, "
                f"its config says {tuple(expected.shape)}"
            )
    check_finite(weights, path)
    unknown = weights.keys() - model.state_dict().keys()
    if unknown:
        raise ValueError(f"{path}: weight {sorted(map(str, unknown))[0]} is unknown")


def averaged(state: dict) -> dict:
    average = state.pop("ema", None)
    return state | {"model": average} if average else state


def lineage(info: dict) -> list[dict]:
    """Return how weights were trained, the oldest run first, from a checkpoint without weights."""
    return [*info.get("earlier", []), {key: info[key] for key in OF_A_RUN if key in info}]


def round_to_shipped(model: Model) -> Model:
    """Round floating weights to the dtype they are shipped in, keeping float32 storage."""
    limit = torch.finfo(SHIPPED_DTYPE).max  # a codebook's counts exceed it with large batches
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.clamp(-limit, limit).to(SHIPPED_DTYPE))
    return model


def model_sha256(model: torch.nn.Module, prefixes: tuple[str, ...] = ("",)) -> str:
    """Hash names, shapes and weights as rounded to the shipped dtype."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not name.startswith(prefixes):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        rounded = tensor.to(SHIPPED_DTYPE) if tensor.is_floating_point() else tensor
        digest.update(rounded.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_bytes(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            size = sum(member.file_size for member in members)
            if any(m.compress_type for m in members) or size > path.stat().st_size:
                raise zipfile.BadZipFile("compressed or overlapping members")  # a zip bomb
            damaged = file.testzip()  # torch.load does not compare the checksums
    except FOREIGN_BYTES as error:
        raise ValueError(f"{path} is not a checkpoint ({describe_bytes(path)})") from error
    if damaged:
        raise ValueError(f"{path} is damaged: checksum mismatch in {damaged}")
    known = _known_hashes(path)
    if known and file_sha256(path) not in known:
        raise ValueError(f"{path} is damaged: checksum mismatch with {_sidecar(path).name}")


def _is_whole(path: Path) -> bool:
    try:
        _check_bytes(path)
    except (ValueError, OSError):
        return False
    return True


def _write_state(state: dict, file) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        cause = error.__context__
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        needed = sum(_num_bytes(value) for value in state.values()) / 1e6
        raise OSError(cause.errno, f"{cause.strerror}, {needed:.0f} MB needed") from error


def _num_bytes(value) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return sum(map(_num_bytes, value))


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _announce(path: Path, new: str) -> None:
    """Write the sidecar of a file that is about to be replaced.

    It names the new and the old hash, so that it is right whichever file a kill leaves in place.
    """
    hashes = {new: None}
    known = _known_hashes(path)
    if path.exists() and ((old := file_sha256(path)) in known or not known):
        hashes[old] = None
    _write_sidecar(path, hashes)


def _write_sidecar(path: Path, hashes) -> None:
    write_text(_sidecar(path), "".join(f"{digest}  {path.name}\n" for digest in hashes))


def _known_hashes(path: Path) -> list[str]:
    sidecar = _sidecar(path)
    if not sidecar.exists():
        return []
    text = sidecar.read_text(encoding="utf-8", errors="replace")
    return [line.split()[0] for line in text.splitlines() if line.strip()]
