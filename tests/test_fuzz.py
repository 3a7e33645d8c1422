"""Property tests of the two readers of foreign bytes: a mutated file is read or refused in a line.

Mutations are of raw bytes, and of members that are packed again with right checksums, so that
they reach the parsers behind them. The address space is bounded, so a huge allocation fails, and
what fails for it is no refusal.
"""

import ast
import collections
import functools
import io
import pickle
import resource
import shutil
import time
import traceback
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.conftest import SMALL_VQVAE
from v2.data.npz import read_meta, read_npz, read_rows, write_npz
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.models.weights import load_vqvae
from v2.runtime import checkpoint
from v2.runtime.errors import is_out_of_memory

FIELDS = {"frames": (np.uint8, (4, 3)), "actions": (np.uint8, ()), "rewards": (np.float32, ())}
NUM_RAW, NUM_REPACKED = 800, 500  # for each of the two readers: 2,600 mutations in all
SPARE_BYTES = 256 << 20
SLOWEST_SECONDS = 5.0  # of this process: a busy machine slows no test down
FUZZ = dict(deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck))  # fmt: skip

EDIT = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("put"), st.floats(0, 1), st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("swap"), st.floats(0, 1), st.sampled_from([
        (b"600", b"10000000000000"), (b"(6", b"(-6"), (b"|u1", b"|O8"), (b"<f4", b"<U9"),
        (b"False", b"True"), (b"'", b"(" * 200), (b"[", b"[" * 4000), (b"}", b""),
        (b"K", b"\x8a\x08"), (b"M", b"J\xff\xff\xff\x7f"), (b"FloatStorage", b"LongStorage"),
        (b"_rebuild_tensor_v2", b"_rebuild_parameter"), (b"collections", b"posix"),
        (b"OrderedDict", b"system"), (b"cpu", b"cuda"), (b"q\x00", b"q\xff"), (b"t", b"\x85"),
    ])),
)  # fmt: skip
EDITS = st.lists(EDIT, min_size=1, max_size=4)


def _edited(content: bytes, edits) -> bytes:
    for kind, place, value in edits:
        at = int(place * max(len(content) - 1, 0))
        if kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ value]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "put":
            content = content[:at] + value + content[at + len(value) :]
        elif kind == "swap":
            content = content.replace(*value, 1)
    return content


def _repacked(content: bytes, member: str, edits) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            is_target = info.filename.endswith(member)
            data = _edited(data, edits) if is_target else data
            new.writestr(zipfile.ZipInfo(info.filename), data)
    return made.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def npz(folder):
    rng = np.random.default_rng(0)
    arrays = {
        "frames": rng.integers(0, 9, (600, 4, 3)).astype(np.uint8),
        "actions": rng.integers(0, 4, 600).astype(np.uint8),
        "rewards": rng.random(600).astype(np.float32),
    }
    write_npz(folder / "good.npz", arrays, {"game": "breakout", "episodes": [{"id": 0}]})
    return (folder / "good.npz").read_bytes()


@pytest.fixture(scope="module")
def weights(folder):
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(**SMALL_VQVAE | {"latent_dim": 4, "cell_dim": 4}))
    checkpoint.save_checkpoint(folder / "good.pt", "vqvae", model, step=3, rng={"a": [1, 2.5]})
    return (folder / "good.pt").read_bytes()


@pytest.fixture
def bounded():
    """Let this process have 256 MB more than it has now, and no more."""
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def _is_read_or_refused(read, path, content: bytes) -> None:
    path.write_bytes(content)
    began = time.process_time()
    try:
        read(path)
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        assert str(path) in text and "\n" not in text
        assert "weights_only" not in text and "allow_pickle" not in text
        assert not _ran_out_of_memory(error)
    assert time.process_time() - began < SLOWEST_SECONDS


def _ran_out_of_memory(error) -> bool:
    """Tell whether an allocation failed on the way to a refusal; a parser's full stack is none."""
    while error:
        *_, place = traceback.extract_tb(error.__traceback__)
        if is_out_of_memory(error) and place.filename != ast.__file__:
            return True
        error = error.__cause__ or error.__context__
    return False


@pytest.mark.parametrize("allocate", [bytes, np.ones, torch.ones])
def test_a_huge_allocation_counts_as_no_refusal(allocate, folder, bounded):
    def read(path):
        try:
            allocate(2 * SPARE_BYTES)
        except (MemoryError, RuntimeError) as error:
            raise ValueError(f"{path} is refused") from error

    with pytest.raises(AssertionError, match="_ran_out_of_memory"):
        _is_read_or_refused(read, folder / "any", b"")


def _read_npz(path):
    read_meta(path)
    arrays, _ = read_npz(path, FIELDS)
    read_rows(path, "frames", *FIELDS["frames"], np.arange(2))
    assert sum(array.nbytes for array in arrays.values()) < 1 << 24


@settings(max_examples=NUM_RAW, **FUZZ)
@given(edits=EDITS)
def test_mutated_array_files(edits, npz, folder, bounded):
    content = _edited(npz, edits)
    assume(content != npz)
    _is_read_or_refused(_read_npz, folder / "mutated.npz", content)


@settings(max_examples=NUM_REPACKED, **FUZZ)
@given(edits=EDITS, member=st.sampled_from(["frames.npy", "rewards.npy", "meta.npy"]))
def test_array_files_with_mutated_members(edits, member, npz, folder, bounded):
    content = _repacked(npz, member, edits)
    assume(content != _repacked(npz, member, []))
    _is_read_or_refused(_read_npz, folder / "mutated.npz", content)


@settings(max_examples=NUM_RAW, **FUZZ)
@given(edits=EDITS)
def test_mutated_checkpoints(edits, weights, folder, bounded):
    content = _edited(weights, edits)
    assume(content != weights)
    _is_read_or_refused(load_vqvae, folder / "mutated.pt", content)


@settings(max_examples=NUM_REPACKED, **FUZZ)
@given(edits=EDITS, member=st.sampled_from(["data.pkl", "data.pkl", "data/0", "version"]))
def test_checkpoints_with_mutated_members(edits, member, weights, folder, bounded):
    content = _repacked(weights, member, edits)
    assume(content != _repacked(weights, member, []))
    _is_read_or_refused(load_vqvae, folder / "mutated.pt", content)


def test_a_header_that_claims_10_terabytes_is_refused_before_allocating(npz, folder, bounded):
    forged = _repacked(npz, "frames.npy", [("swap", 0, (b"(600,", b"(10000000000000,"))])
    path = folder / "forged.npz"
    path.write_bytes(forged)
    with pytest.raises(ValueError, match="'frames' claims 120000000000000 bytes"):
        read_npz(path, FIELDS)


def test_a_directory_that_claims_10_terabytes_is_refused_before_allocating(npz, folder, bounded):
    """The sizes of the zip directory are forged as well, so that they agree with the header."""
    path = folder / "forged.npz"
    rows = 3_000_000_000  # 36 GB, under every limit but the size of the file
    path.write_bytes(_repacked(npz, "frames.npy", [("swap", 0, (b"(600,", b"(%d," % rows))]))
    real = zipfile.ZipFile.getinfo

    def forged(file, name):
        info = real(file, name)
        if name == "frames.npy":
            info.file_size = info.compress_size = rows * 12 + 128
        return info

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="cannot hold"):
        patch.setattr(zipfile.ZipFile, "getinfo", forged)
        read_npz(path, FIELDS)


class _Forged:
    """A tensor that claims 2 GB of a storage of four numbers."""

    def __reduce__(self):
        storage = torch.zeros(4)._typed_storage()
        arguments = storage, 0, (1 << 29,), (1,), False, collections.OrderedDict()
        return torch._utils._rebuild_tensor_v2, arguments


@pytest.mark.parametrize("place", ["model", "optimizer"])
def test_a_tensor_larger_than_its_file_is_refused_before_allocating(
    place, weights, folder, bounded
):  # fmt: skip
    path, made = folder / "forged.pt", io.BytesIO()
    state = checkpoint.load_checkpoint(folder / "good.pt", "vqvae")
    torch.save(state | {place: {"encoder.stem.weight": _Forged()}}, made)
    _is_read_or_refused(load_vqvae, path, made.getvalue())
    with pytest.raises(ValueError, match="forged.pt is not a checkpoint of this program"):
        load_vqvae(path)


def test_a_zip_bomb_is_no_checkpoint(folder, bounded):
    path = folder / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for index in range(8):
            file.writestr(f"archive/data/{index}", bytes(64 << 20))
    began = time.process_time()
    with pytest.raises(ValueError, match="not a checkpoint"):
        checkpoint.load_checkpoint(path, "vqvae")
    assert time.process_time() - began < 1


@pytest.mark.parametrize("config", [
    {"latent_dim": 10**9}, {"decoder_blocks": 10**12}, {"height": -4}, {"height": "84"},
    {"ema_decay": float("nan")}, {"unknown": 1}, {"stem_dim": None}, {"pixel_dim": 4096},
])  # fmt: skip
def test_a_forged_config_allocates_nothing(config, weights, folder, bounded):
    path = folder / "forged.pt"
    shutil.copyfile(folder / "good.pt", path)
    state = checkpoint.load_checkpoint(path, "vqvae")
    state["config"] = state["config"] | config
    torch.save(state, path)
    began = time.process_time()
    with pytest.raises(ValueError, match="forged.pt: (its config|weight)"):
        load_vqvae(path)
    assert time.process_time() - began < SLOWEST_SECONDS


class _Touch:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@settings(max_examples=50, **FUZZ)
@given(depth=st.integers(0, 4), place=st.sampled_from(["model", "config", "kind", "rng"]))
def test_no_code_in_a_file_is_run(depth, place, weights, folder):
    marker, path = folder / "marker", folder / "bomb.pt"
    bomb = functools.reduce(lambda inner, _: {"a": [inner]}, range(depth), _Touch(marker))
    good = {"format": 1, "kind": "vqvae", "config": {}, "model": {}}
    torch.save(good | {place: bomb}, path)
    with pytest.raises(ValueError, match="not a checkpoint of this program"):
        checkpoint.load_checkpoint(path, "vqvae")
    np.savez(folder / "bomb.npz", frames=np.array([bomb], object), meta=np.array("{}"))
    with pytest.raises(ValueError, match="holds Python objects"):
        read_npz(folder / "bomb.npz", {"frames": FIELDS["frames"]})
    path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(ValueError, match="not a checkpoint"):
        checkpoint.load_checkpoint(path, "vqvae")
    assert not marker.exists()
