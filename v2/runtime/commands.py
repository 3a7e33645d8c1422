"""How a person calls a script: by its path in a checkout, as a module of an installed package.

Contract: a line made here runs as it is printed, in the folder where it is printed. Imports the
standard library alone. Knows nothing of what a script does.
"""

from __future__ import annotations  # so that an older Python reaches its explanation

import argparse
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, or site-packages
PACKAGED = ROOT / "v2" / "shipped"  # in an installed package alone; see pyproject.toml
IS_INSTALLED = PACKAGED.is_dir()
USUAL = {"device": "auto", "vqvae": "latest"}  # the flags' defaults in every script


def command(script: str, *words, **flags) -> str:
    """Return the line that runs a script of v2, such as "data/collect_atari.py".

    Args:
        words: flags and values as they are, the same for every run.
        flags: a value for each, or several; one of None or "" is left out, of True has no value.
    """
    parts = [*python(), *called(script), *map(str, words)]
    for name, value in flags.items():
        if value not in (None, "", False, []):
            parts.append(f"--{name.replace('_', '-')}")
            values = value if isinstance(value, list | tuple) else [value]
            parts += [] if value is True else map(str, values)
    return " ".join(map(quoted, parts))


def given(args: argparse.Namespace, *names: str) -> dict:
    """Return those flags that say something: not None, nor what is meant without them."""
    flags = {name: getattr(args, name) for name in names}
    return {k: v for k, v in flags.items() if k not in USUAL or v != USUAL[k]}


def called(script: str) -> list[str]:
    """Return what follows `python` to run a script from here."""
    if IS_INSTALLED:
        return ["-m", module_of(script)]
    is_here = Path.cwd() == ROOT
    return [f"v2/{script}" if is_here else str(ROOT / "v2" / script)]


def module_of(script: str) -> str:
    return "v2." + script.removesuffix(".py").replace("/", ".")


def python() -> list[str]:
    """Return the name that this interpreter is found by, from here."""
    own = sys.executable
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found and os.path.abspath(found) == own:
            return [name]
    inside = os.path.relpath(own)
    return [own if inside.startswith(os.pardir) else inside]


def example(line: str) -> str:
    """Return a documented command of the checkout as it is called here."""
    if not IS_INSTALLED:
        return line
    return re.sub(r"python v2/(\S+\.py)", lambda found: f"python -m {module_of(found[1])}", line)


def quoted(text: str) -> str:
    """Quote for a POSIX shell, also bytes that are not UTF-8 and what would break the line."""
    if text.isprintable():
        return shlex.quote(text)
    kept = text.encode("utf-8", "surrogateescape")
    return "$'" + "".join(_escaped(byte) for byte in kept) + "'"


def _escaped(byte: int) -> str:
    is_plain = 32 <= byte < 127 and chr(byte) not in "'\\"
    return chr(byte) if is_plain else f"\\x{byte:02x}"
