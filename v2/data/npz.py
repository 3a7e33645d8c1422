"""Array files: npz with a JSON `meta`, written atomically, read without trust.

Contract: what was written is read back unchanged or refused with one line that names the file;
nothing is allocated before the headers have been checked, and nothing is unpickled.
Knows nothing of games or tokens.
"""

import json
import zipfile
from pathlib import Path

import numpy as np

from v2.files import atomic_path, describe_bytes

MAX_MEMBER_BYTES = 64 << 30


def write_npz(path: Path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    """Write arrays and meta as one compressed npz, atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays, meta=np.array(json.dumps(meta)))


def read_meta(path: Path) -> dict:
    """Read the meta alone."""
    with _open(path) as file:
        return _read_meta(file, path)


def read_npz(path: Path, fields: dict[str, tuple]) -> tuple[dict[str, np.ndarray], dict]:
    """Read the named arrays and the meta.

    Args:
        fields: name -> (dtype, shape after the first axis); first axes must agree.
    Raises:
        FileNotFoundError, ValueError: with the path and what is wrong.
    """
    with _open(path) as file:
        meta = _read_meta(file, path)
        lengths = {name: _checked_length(file, path, name, *fields[name]) for name in fields}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{path}: arrays of different lengths {lengths}; make the file again")
        try:
            arrays = {name: _read_member(file, name) for name in fields}
        except (zipfile.BadZipFile, ValueError, EOFError, OSError, zipfile.zlib.error) as error:
            raise ValueError(f"{path} is damaged ({error}); make the file again") from error
    return arrays, meta


def _open(path: Path) -> zipfile.ZipFile:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is not an npz file ({describe_bytes(path)})") from error


def _read_meta(file: zipfile.ZipFile, path: Path) -> dict:
    try:
        _check_member(file, path, "meta")
        meta = json.loads(str(_read_member(file, "meta")))
    except ValueError as error:
        raise ValueError(f"{path} has no readable meta ({error}); make the file again") from error
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, zipfile.zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); make the file again") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path}: meta is {type(meta).__name__}, not a table; make the file again")
    return meta


def _check_member(file: zipfile.ZipFile, path: Path, name: str) -> tuple[tuple, np.dtype]:
    """Return shape and dtype from the header, and refuse what the file cannot hold."""
    try:
        info = file.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"{path} has no array {name!r}; make the file again") from None
    try:
        with file.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(member)
            header_bytes = member.tell()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, zipfile.zlib.error,
            ValueError, RuntimeError) as error:  # fmt: skip
        raise ValueError(f"{path}: array {name!r} is damaged ({error})") from error
    if dtype.hasobject:
        raise ValueError(f"{path}: array {name!r} holds Python objects, which are never loaded")
    num_bytes = dtype.itemsize
    for size in shape:
        num_bytes *= size
    if num_bytes + header_bytes != info.file_size or num_bytes > MAX_MEMBER_BYTES:
        raise ValueError(
            f"{path}: array {name!r} claims {num_bytes} bytes and holds {info.file_size}"
        )
    if info.file_size > 1100 * max(info.compress_size, 1):  # deflate cannot shrink further
        raise ValueError(f"{path}: array {name!r} claims more than its compressed bytes can hold")
    return shape, dtype


def _checked_length(file, path, name, dtype, tail) -> int:
    shape, found = _check_member(file, path, name)
    if found != np.dtype(dtype) or len(shape) != 1 + len(tail) or shape[1:] != tuple(tail):
        raise ValueError(
            f"{path}: array {name!r} must be {np.dtype(dtype)} (M{''.join(f', {n}' for n in tail)})"
            f", got {found} {shape}"
        )
    return shape[0]


def _read_member(file: zipfile.ZipFile, name: str) -> np.ndarray:
    with file.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)
