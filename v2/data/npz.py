"""Array files: npz with a JSON `meta`, written atomically, read without trust.

Contract: what was written is read back unchanged or refused with one line that names the file;
nothing is allocated before the headers have been checked, and nothing is unpickled.
Knows nothing of games or tokens.
"""

import contextlib
import json
import math
import os
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from v2.runtime.files import atomic_path, describe_bytes

MAX_META_BYTES = 512 << 20  # of a million short games
MORE_META = "meta_more"  # what `add_to_meta` adds
MAX_DEFLATE_RATIO = 1100  # deflate reaches 1032
ROWS_AT_ONCE = 64
# What reading foreign bytes raises; numpy's own texts advise to unpickle and are not shown.
FOREIGN_BYTES = (
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, SyntaxError,
    EOFError, OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError,
)  # fmt: skip


class BadFileError(ValueError):
    """A file that is refused, with its path and what to do."""


class ForeignFileError(BadFileError):
    """An npz that is whole and that this program did not write."""


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a system that says so
        return 64 << 30


MAX_MEMBER_BYTES = _memory_bytes()


def write_npz(path: Path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    """Write arrays and meta as one compressed npz, atomically."""
    fields: dict[str, Any] = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **fields, meta=np.array(json.dumps(meta)))


def add_to_meta(path: Path, more: dict) -> None:
    """Add entries to the meta of a file that is there, atomically, and read none of its arrays."""
    with atomic_path(path) as temporary:
        shutil.copyfile(path, temporary)
        with zipfile.ZipFile(temporary, "a") as file, file.open(f"{MORE_META}.npy", "w") as member:
            np.lib.format.write_array(member, np.array(json.dumps(more)))


def read_meta(path: Path, required: dict[str, type] | None = None) -> dict:
    """Read the meta alone; see `read_npz`."""
    with _opened(path) as file:
        return _read_meta(file, path, required)


def read_npz(
    path: Path,
    fields: Mapping[str, tuple[Any, tuple[int, ...]]],
    required: dict[str, type] | None = None,
    unread: tuple[str, ...] = (),
) -> tuple[dict[str, np.ndarray], dict]:
    """Read the named arrays and the meta.

    Args:
        fields: name -> (dtype, shape after the first axis); first axes must agree.
        required: entries that the meta must have, with their types.
        unread: fields whose headers are checked and whose rows are left to `read_blocks`.
    Raises:
        FileNotFoundError, ValueError: with the path and what is wrong; `ForeignFileError` of a file
            without a meta.
    """
    with _opened(path) as file:
        meta = _read_meta(file, path, required)
        lengths = {
            name: _checked_length(file, path, name, *fields[name], name not in unread)
            for name in fields
        }
        if len(set(lengths.values())) != 1:
            raise BadFileError(f"{path}: arrays of different lengths {lengths}; make it again")
        return {name: _read_member(file, name) for name in fields if name not in unread}, meta


def read_blocks(
    path: Path, name: str, dtype, tail: tuple, num_rows: int = ROWS_AT_ONCE
) -> Iterator[np.ndarray]:
    """Yield an array in blocks of `num_rows` rows, of which one is held at a time."""
    row_bytes = int(np.prod(tail, dtype=int)) * np.dtype(dtype).itemsize
    with _opened(path) as file:
        length = _checked_length(file, path, name, dtype, tail, is_held=False)
        with file.open(f"{name}.npy") as member:
            _skip_header(member)
            for first in range(0, length, num_rows):
                block = member.read(min(num_rows, length - first) * row_bytes)
                block = bytearray(block)  # writable, as torch wants it
                yield np.frombuffer(block, dtype).reshape(-1, *tail)


def read_rows(
    path: Path, name: str, dtype, tail: tuple, rows: np.ndarray, first_row: int = 0
) -> tuple[np.ndarray, int]:
    """Read some rows of one array without holding the others; return them and the array's length.

    Args:
        rows: ascending indices; those outside this file are left out.
        first_row: index of this file's first row.
    """
    rows, parts, length = rows - first_row, [np.empty((0, *tail), dtype)], 0
    for block in read_blocks(path, name, dtype, tail):
        low, high = np.searchsorted(rows, (length, length + len(block)))
        parts.append(block[rows[low:high] - length])
        length += len(block)
    return np.concatenate(parts), length


@contextlib.contextmanager
def _opened(path: Path):
    """Open a zip; whatever its bytes make fail while it is read becomes one line."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        file = zipfile.ZipFile(path)
    except FOREIGN_BYTES as error:
        raise BadFileError(f"{path} is not an npz file ({describe_bytes(path)})") from error
    with file:
        try:
            yield file
        except BadFileError:
            raise
        except zipfile.BadZipFile as error:
            raise BadFileError(f"{path} is damaged ({error}); make the file again") from error
        except FOREIGN_BYTES as error:
            raise BadFileError(f"{path} is damaged; make the file again") from error


def _read_meta(file: zipfile.ZipFile, path: Path, required: dict[str, type] | None) -> dict:
    meta = _read_table(file, path, "meta")
    if f"{MORE_META}.npy" in file.namelist():
        meta |= _read_table(file, path, MORE_META)
    for key, kind in (required or {}).items():
        if not isinstance(meta.get(key), kind):
            raise BadFileError(
                f"{path}: {key!r} of its meta must be a {kind.__name__}, got "
                f"{str(meta.get(key))[:40]!r}; make the file again"
            )
    return meta


def _read_table(file: zipfile.ZipFile, path: Path, name: str) -> dict:
    if f"{name}.npy" not in file.namelist():
        raise ForeignFileError(
            f"{path} has no array {name!r}, so this program did not write it: name another file, "
            "or take it out of the folder"
        )
    _, dtype = _check_member(file, path, name, MAX_META_BYTES)
    if dtype.kind != "U":
        raise BadFileError(f"{path}: {name} is {dtype}, not text; make the file again")
    table = json.loads(str(_read_member(file, name)))
    if not isinstance(table, dict):
        raise BadFileError(f"{path}: {name} is no table; make the file again")
    return table


def _check_member(
    file: zipfile.ZipFile, path: Path, name: str, max_bytes: float
) -> tuple[tuple, np.dtype]:
    """Return shape and dtype from the header, and refuse what the file cannot hold."""
    try:
        info = file.getinfo(f"{name}.npy")
    except KeyError:
        raise BadFileError(f"{path} has no array {name!r}; make the file again") from None
    try:
        with file.open(info) as member:
            shape, dtype = _skip_header(member)
            header_bytes = member.tell()
    except (*FOREIGN_BYTES, MemoryError) as error:  # nested brackets exhaust the parser
        raise BadFileError(f"{path}: array {name!r} is damaged; make the file again") from error
    if dtype.hasobject:
        raise BadFileError(f"{path}: array {name!r} holds Python objects, which are never loaded")
    num_bytes = dtype.itemsize
    for size in shape:
        num_bytes *= size
    can_be = num_bytes + header_bytes == info.file_size and 0 <= num_bytes <= max_bytes
    can_be &= info.file_size <= MAX_DEFLATE_RATIO * max(info.compress_size, 1)
    can_be &= info.header_offset + info.compress_size <= Path(path).stat().st_size
    if not can_be:
        raise BadFileError(f"{path}: array {name!r} claims {num_bytes} bytes, which it cannot hold")
    return shape, dtype


def _checked_length(file, path, name, dtype, tail, is_held: bool) -> int:
    """Return the first axis; what `is_held` at once must fit into memory."""
    max_bytes = MAX_MEMBER_BYTES if is_held else math.inf
    shape, found = _check_member(file, path, name, max_bytes)
    if found != np.dtype(dtype) or len(shape) != 1 + len(tail) or shape[1:] != tuple(tail):
        raise BadFileError(
            f"{path}: array {name!r} must be {np.dtype(dtype)} (M{''.join(f', {n}' for n in tail)})"
            f", got {found} {shape}"
        )
    return shape[0]


def _skip_header(member) -> tuple[tuple, np.dtype]:
    if np.lib.format.read_magic(member) == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
    else:
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(member)
    if is_fortran and len(shape) > 1:
        raise ValueError("arrays are stored row by row")
    return shape, dtype


def _read_member(file: zipfile.ZipFile, name: str) -> np.ndarray:
    with file.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)
