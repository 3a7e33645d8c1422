"""Files that are either complete or absent.

Contract: `atomic_path` yields a temporary file beside the target and puts it in place only after
its bytes are on the disk; whatever happens before, the old file stays. Knows nothing of formats.
"""

import contextlib
import hashlib
import os
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path):
    """Yield a temporary path to write; fsync and move it to `path` when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_directory(directory: Path) -> None:
    """Make a rename in the directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe_bytes(path: Path) -> str:
    """Say in a few words what a file that could not be read looks like."""
    path = Path(path)
    if path.is_dir():
        return "it is a directory"
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: run git lfs pull"
    if head.lstrip()[:1] == b"<":
        return "it looks like an HTML page: download the file itself"
    if head.startswith(b"\x89PNG"):
        return "it is a PNG picture"
    if head.startswith(b"PK"):
        return "it is a damaged or truncated zip file"
    return "unknown content"
