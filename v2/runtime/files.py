"""Files that are either complete or absent.

Contract: `atomic_path` yields a temporary file beside the target and puts it in place only after
its bytes are on the disk; whatever happens before, the old file stays. Knows nothing of formats.
"""

from __future__ import annotations  # so that an older Python reaches its explanation

import contextlib
import errno
import glob
import hashlib
import itertools
import os
import tempfile
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def atomic_path(path: Path):
    """Yield a temporary path to write; fsync and move it to `path` when the block succeeds."""
    path = Path(path)
    if path.is_symlink():  # the link stays, and what it names is written
        path = path.resolve()
    temporary = temporary_path(path)
    with disk_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(path.parent, path.name)
        try:
            yield temporary
            _put_in_place(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # on a disk that takes nothing: not what is said
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_explained(path: Path):
    """Name the file, and the fix, where a disk is full or takes no files."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*DISK_FULL, *FORBIDDEN):
            raise
        fix = "free some space" if error.errno in DISK_FULL else "make its folder writable"
        raise OSError(
            f"cannot write {path}: {error.strerror}; {fix}, what was there is kept"
        ) from error


def _put_in_place(temporary: Path, path: Path) -> None:
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def temporary_path(path: Path) -> Path:
    """Return this process's temporary name for a file, in the same folder."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def sweep_temporaries(directory: Path, name: str | None = None) -> None:
    """Remove the temporary files that killed processes left, of one file or of all."""
    for stray in Path(directory).glob(f".{glob.escape(name) if name else '*'}.*.tmp"):
        process = stray.name.split(".")[-2]
        if not process.isdigit() or not is_alive(int(process)):
            stray.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Tell whether a process of this id runs on this machine; on Windows nothing tells."""
    if os.name == "nt":  # there any signal but two ends it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def check_writable(directory: Path) -> None:
    """Make sure that files can be made in a folder, before any work is done for them.

    Raises:
        PermissionError, NotADirectoryError, OSError: with the folder.
    """
    directory = Path(directory)
    there = directory
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"cannot write to {directory}: {there} is a file")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        kind = PermissionError if error.errno in FORBIDDEN else OSError
        raise kind(f"cannot write to {there}: {error.strerror}; name another folder") from error


def check_output(path: Path) -> None:
    """Make sure that a file can be written, before any work is done for it.

    Raises:
        IsADirectoryError, PermissionError, NotADirectoryError, OSError: with the path.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; name a file")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        temporary_path(path).stat()  # an OSError where the name has no room for it
    check_writable(path.parent)


def free_path(path: Path) -> Path:
    """Return the path, or where something has come there meanwhile the next free `name_2`."""
    others = (path.with_name(f"{path.stem}_{k}{path.suffix}") for k in itertools.count(2))
    return next(other for other in itertools.chain([path], others) if not other.exists())


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_directory(directory: Path) -> None:
    """Make a rename in the directory survive a power cut; Windows opens no directories."""
    if os.name == "nt":
        return
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
