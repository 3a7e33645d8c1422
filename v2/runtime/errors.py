"""Errors that a person can act on: which kind is whose, and each in one line.

Contract: what a user did ends with exit code 2, what the machine lacks with 1, a training that
diverged with 3; the line names the value and the fix. Imports the standard library alone.
"""

from __future__ import annotations  # so that an older Python reaches its explanation

import errno
import sys
import traceback

MAX_LINE, MAX_SHOWN_NAME = 600, 100  # characters of an error, and of a name in it
PIP_NAMES = {
    "PIL": "pillow", "ale_py": "ale-py", "minari": "-r requirements-import.txt",
    "stable_baselines3": "-r requirements-agents.txt",
}  # fmt: skip
BAD_INPUT = (
    ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError,
    PermissionError, ImportError,
)  # fmt: skip
NO_MEMORY = ("allocate memory", "out of memory", "ALLOC_FAILED")  # said by torch, CUDA, cuBLAS
OF_THE_MACHINE = (OSError, RuntimeError, MemoryError)  # whatever is neither is an error of ours


class DivergedError(RuntimeError):
    """Training met a run of non-finite losses or gradients."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of Python, torch's CPU allocator or CUDA means this."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY))
    )


def report_error(error: BaseException) -> int:
    """Print an error in one line and return its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        name = str(getattr(error, "filename", None))[:MAX_SHOWN_NAME]
        error = ValueError(f"the name {name}... is too long for this disk: give a shorter one")
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (*BAD_INPUT, *OF_THE_MACHINE)):
        text = f"internal {type(error).__name__}: {text}; please report it, with --debug"
    if len(text) > MAX_LINE:
        text = f"{text[:MAX_LINE]}... (--debug shows all)"
    if isinstance(error, ImportError) and error.name and not error.name.startswith("v2"):
        package = error.name.split(".")[0]
        name = PIP_NAMES.get(package, package)
        text = f"the package {package} is missing or broken: python -m pip install {name}"
        text += "" if name.startswith("-r") else ", or -r requirements.txt for all"
    elif is_out_of_memory(error) and "--" not in text:
        text = f"out of memory ({text}): try a smaller --batch-size, or fewer frames"
    print(f"error: {text}", file=sys.stderr)
    if isinstance(error, DivergedError):
        return 3
    return 2 if isinstance(error, BAD_INPUT) else 1
