"""Where the numbers are crunched: device and precision, decided once by a script."""

import ctypes
import os
import shutil
import subprocess
import sys
from typing import Any, TypeVar

import torch

# What glibc's mallopt takes; a larger array than 32 MiB is given back all the same.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEEP_MEMORY = {M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 256 << 20, M_MMAP_THRESHOLD: 32 << 20}

Model = TypeVar("Model", bound=torch.nn.Module)


def choose_device(name: str) -> torch.device:
    """Return the device of a name; `auto` takes CUDA where there is one.

    Raises:
        ValueError: an unknown or absent device, with those that there are.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"no device {name!r}: use {', '.join(_devices())}") from None
    if device.type not in _devices():
        raise ValueError(f"no device {name!r} on this machine: use {', '.join(_devices())}")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(f"no device {name!r} on this machine: it has {count} of them")
    return device


def tune_cpu() -> None:
    """Set what makes numbers on the CPU quick, for the whole process: for scripts alone."""
    flush_denormals()
    keep_memory()


def flush_denormals() -> None:
    """Count numbers under 1e-38 as zero, in this thread and those that it starts after this.

    Sharp attention is full of them, and each costs a hundred cycles.
    """
    torch.set_flush_denormal(True)


def keep_memory() -> None:
    """Let glibc keep the memory that is freed.

    A step asks for the same again, and the system would clear every page of it anew.
    """
    if sys.platform == "linux" and hasattr(allocator := ctypes.CDLL(None), "mallopt"):
        for parameter, value in KEEP_MEMORY.items():
            allocator.mallopt(parameter, value)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 is done by the hardware; emulated it is hundreds of times slower."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    is_usable = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(is_usable) and torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device):
    """Return a context of bfloat16 where that is fast, else of float32, whatever is around it."""
    is_fast = has_fast_bfloat16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=is_fast)


def cast_weights(model: torch.nn.Module, device: torch.device) -> None:
    """Round weights, in place, as `autocast` would at each use: for a model that only predicts."""
    if has_fast_bfloat16(device):
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.to(torch.bfloat16)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the CPU; to CUDA from pinned memory and without waiting for it."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def laid_out(model: Model, device: torch.device, layout=torch.channels_last) -> Model:
    """Move a model to a device, by default in the layout in which convolutions are fast."""
    flags: Any = {"memory_format": layout}  # which torch's types leave out
    return model.to(device, **flags)


def compiled(model: torch.nn.Module, mode: str | None = None):
    """Return the model compiled at its first call, or itself, with one line, without a compiler.

    Args:
        mode: of torch.compile; "reduce-overhead" replays CUDA graphs.
    """
    if _can_compile(next(model.parameters()).device):
        print("compiling at the first step: up to a minute without progress", flush=True)
        return torch.compile(model, mode=mode)
    print("no C++ compiler found: going on uncompiled", flush=True)
    return model


def _can_compile(device: torch.device) -> bool:
    if device.type == "cpu":
        usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")  # as in inductor
        return shutil.which(os.environ.get("CXX", usual)) is not None
    try:  # Triton looks for a compiler of C of its own, at the first kernel
        torch.compile(lambda numbers: numbers + 1)(torch.ones(1, device=device))
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError):
        return False
    return True


def _devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
