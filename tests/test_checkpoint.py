"""Checkpoints: what was saved loads, whatever cut the saving; what is not one is refused."""

import dataclasses
import errno
import itertools
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tests.conftest import SMALL_VQVAE
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.models.weights import build_model, load_vqvae, load_world_model, tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.files import file_sha256

SAVED = ("last.pt", "last-1.pt")


def _save(path, vqvae, **extra):
    checkpoint.save_checkpoint(path, "vqvae", vqvae, **extra)


def test_a_last_save_that_is_not_finite_falls_back_to_the_one_before(world_model, tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save_rotating(path, "world_model", world_model)
    torch.nn.init.constant_(world_model.position, float("nan"))
    checkpoint.save_rotating(path, "world_model", world_model)
    assert torch.isfinite(checkpoint.load_last(tmp_path, "world_model")["model"]["position"]).all()


def test_weights_that_no_file_of_its_size_can_hold_are_refused(world_model, tmp_path):
    path = tmp_path / "w.pt"
    large = world_model.state_dict()
    large["position"] = torch.zeros(1).expand_as(large["position"])  # one number on the disk
    state = {"format": 1, "kind": "world_model", "model": large,
             "config": dataclasses.asdict(world_model.config)}  # fmt: skip
    with open(path, "wb") as file:
        torch.save(state, file)
    with pytest.raises(ValueError, match="claims .* bytes of weights, which it cannot hold"):
        load_world_model(path)


def test_a_checkpoint_rebuilds_the_model_from_itself(vqvae, tmp_path):
    _save(tmp_path / "a.pt", vqvae, step=7)
    state = checkpoint.load_checkpoint(tmp_path / "a.pt", "vqvae")
    model = build_model(state, tmp_path / "a.pt")
    assert state["step"] == 7 and model.config == vqvae.config
    for name, tensor in vqvae.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_loading_draws_no_random_numbers(vqvae, world_model, tmp_path):
    models = {"vqvae": vqvae, "world_model": world_model}
    for kind, model in models.items():
        checkpoint.save_checkpoint(tmp_path / f"{kind}.pt", kind, model)
    before = torch.get_rng_state()
    for kind, model in models.items():
        state = checkpoint.load_checkpoint(tmp_path / f"{kind}.pt", kind)
        built = build_model(state, tmp_path)
        assert built.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in built.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


QUICK = """
import sys
from v2.models.weights import load_vqvae, load_world_model
load_vqvae(sys.argv[1])
load_world_model(sys.argv[2])
assert "torch._dynamo" not in sys.modules
"""


def test_loading_does_not_import_the_compiler(vqvae, world_model, tmp_path):
    """It would take more than a second of every start."""
    _save(tmp_path / "a.pt", vqvae)
    checkpoint.save_checkpoint(tmp_path / "b.pt", "world_model", world_model)
    command = [sys.executable, "-c", QUICK, str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    subprocess.run(command, check=True)


def test_rounding_for_shipping_changes_neither_hash_nor_tokens(vqvae, tmp_path):
    _save(tmp_path / "a.pt", vqvae)
    loaded, _ = load_vqvae(tmp_path / "a.pt")
    shipped = VQVAE(vqvae.config)
    shipped.load_state_dict(vqvae.state_dict())
    shipped.half()
    _save(tmp_path / "half.pt", shipped)
    from_half, _ = load_vqvae(tmp_path / "half.pt")
    assert checkpoint.model_sha256(loaded) == checkpoint.model_sha256(from_half)
    assert checkpoint.model_sha256(vqvae) == checkpoint.model_sha256(loaded)
    pixels = torch.rand(2, 3, 84, 64)
    with torch.no_grad():
        assert torch.equal(loaded.encode(pixels), from_half.encode(pixels))


def test_a_world_model_refuses_another_tokenizer(world_model, tmp_path):
    checkpoint.save_checkpoint(tmp_path / "w.pt", "world_model", world_model, vqvae_sha256="a" * 64)
    load_world_model(tmp_path / "w.pt", "a" * 64)
    with pytest.raises(ValueError, match="VQ-VAE aaaaaaaaaaaa, not of bbbbbbbbbbbb"):
        load_world_model(tmp_path / "w.pt", "b" * 64)


def test_the_wrong_kind_is_refused(vqvae, tmp_path):
    _save(tmp_path / "a.pt", vqvae)
    with pytest.raises(ValueError, match="is a vqvae checkpoint, not a world_model"):
        checkpoint.load_checkpoint(tmp_path / "a.pt", "world_model")


def test_a_newer_format_is_refused(vqvae, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    _save(tmp_path / "a.pt", vqvae)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="newer"):
        checkpoint.load_checkpoint(tmp_path / "a.pt", "vqvae")


@pytest.mark.parametrize("content, looks", [
    (b"", "empty"),
    (b"<!DOCTYPE html><html>", "HTML"),
    (b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer"),
    (b"\x89PNG\r\n", "PNG"),
    (b"PK\x03\x04 cut", "truncated zip"),
])  # fmt: skip
def test_a_foreign_file_is_named_by_its_looks(content, looks, tmp_path):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=looks) as error:
        checkpoint.load_checkpoint(tmp_path / "a.pt", "vqvae")
    assert "weights_only" not in str(error.value)


def test_a_flipped_bit_is_noticed(vqvae, tmp_path):
    path = tmp_path / "a.pt"
    _save(path, vqvae)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum mismatch"):
        checkpoint.load_checkpoint(path, "vqvae")


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_truncated_file_is_refused(keep, vqvae, tmp_path):
    path = tmp_path / "a.pt"
    _save(path, vqvae)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match="not a checkpoint"):
        checkpoint.load_checkpoint(path, "vqvae")


class _Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_bomb_does_not_go_off(tmp_path):
    marker = tmp_path / "exploded"
    torch.save({"kind": "vqvae", "model": _Bomb(marker)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Bomb(marker)))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(ValueError):
            checkpoint.load_checkpoint(tmp_path / name, "vqvae")
    assert not marker.exists()


def test_weights_that_are_not_finite_are_refused_by_name(vqvae, tmp_path):
    with torch.no_grad():
        vqvae.encoder.stem.weight[0] = float("nan")
    _save(tmp_path / "a.pt", vqvae)
    with pytest.raises(ValueError, match="encoder.stem.weight is not finite"):
        load_vqvae(tmp_path / "a.pt")


def test_a_config_that_does_not_fit_its_weights_is_refused_by_name(vqvae, tmp_path):
    vqvae.config = dataclasses.replace(vqvae.config, stem_dim=9)
    _save(tmp_path / "a.pt", vqvae)
    with pytest.raises(ValueError, match="encoder.stem.weight is .8, 3, 4, 4., its config says"):
        load_vqvae(tmp_path / "a.pt")


def test_the_one_before_is_kept(vqvae, tmp_path):
    path = tmp_path / "last.pt"
    for step in (1, 2, 3):
        checkpoint.save_rotating(path, "vqvae", vqvae, step=step)
    assert checkpoint.load_checkpoint(path, "vqvae")["step"] == 3
    assert checkpoint.load_checkpoint(tmp_path / "last-1.pt", "vqvae")["step"] == 2
    assert (tmp_path / "last.pt.sha256").read_text() == f"{file_sha256(path)}  last.pt\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "last-1.pt", "last-1.pt.sha256", "last.pt", "last.pt.sha256"]  # fmt: skip


@pytest.mark.parametrize("has_links", [True, False])
def test_everything_is_on_the_disk_before_it_gets_its_name(has_links, vqvae, tmp_path, monkeypatch):
    calls, synced, fsync, replace = [], set(), os.fsync, os.replace

    def noted_fsync(descriptor):
        fsync(descriptor)
        found = os.fstat(descriptor)
        synced.add(found.st_ino)
        calls.append("folder" if stat.S_ISDIR(found.st_mode) else "file")

    def noted_replace(source, target):
        assert os.stat(source).st_ino in synced, source
        calls.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    if not has_links:
        monkeypatch.setattr(os, "link", _refuse)
    for step in (1, 2):  # sidecar, weights, sidecar; before the second, both of the one before
        checkpoint.save_rotating(tmp_path / "last.pt", "vqvae", vqvae, step=step)
    assert calls == ["file", "name", "folder"] * 8


def _refuse(*args):
    raise PermissionError("no links here")


FULL_DISK = """
import resource, signal, sys
from v2.runtime import checkpoint
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoint.save_rotating(sys.argv[1], "vqvae", VQVAE(VQVAEConfig()), step=2)
"""


def test_what_a_link_names_is_written_and_the_link_stays(vqvae, tmp_path):
    link, there = tmp_path / "vqvae.pt", tmp_path / "disk" / "vqvae.pt"
    there.parent.mkdir()
    there.write_bytes(b"old")
    link.symlink_to(there)
    checkpoint.save_checkpoint(link, "vqvae", vqvae)
    assert link.is_symlink() and not there.is_symlink()
    assert tokenizer_sha256(load_vqvae(there)[0]) == (
        tokenizer_sha256(load_vqvae(link)[0])
    )
    assert [path.name for path in there.parent.iterdir()] == ["vqvae.pt"]


def test_a_full_disk_leaves_the_old_checkpoint(vqvae, tmp_path):
    path = tmp_path / "last.pt"
    _save(path, VQVAE(VQVAEConfig(latent_dim=16, stem_dim=8)), step=1)
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "OSError: cannot write" in done.stderr
    assert "MB needed; free some space" in done.stderr
    assert checkpoint.load_checkpoint(path, "vqvae")["step"] == 1
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_takes_no_more_keeps_what_it_has(number, vqvae, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "last.pt"
    _save(path, vqvae, step=1)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="cannot write .*(free some space|folder writable)"):
        checkpoint.save_rotating(path, "vqvae", vqvae, step=2)
    assert checkpoint.load_last(tmp_path, "vqvae")["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "last.pt.sha256"]


@pytest.fixture
def saved_twice(tmp_path, monkeypatch):
    """A small model and a folder with two checkpoints of it; in memory, where there is such."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a kill loses nothing that was written
    model = VQVAE(VQVAEConfig(**SMALL_VQVAE | {"latent_dim": 4}))
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        first = Path(folder) / "first"
        for step in (0, 1):
            checkpoint.save_rotating(first / "last.pt", "vqvae", model, step=step)
        yield model, first


def _content(folder: Path) -> tuple[tuple[str, bytes], ...]:
    return tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir()))


def _saved_steps(folder: Path, known: dict) -> tuple[int, ...]:
    """Load both checkpoints, or look up what equal files held before."""
    content = tuple(file for file in _content(folder) if file[0].startswith("last"))
    if content not in known:
        states = [checkpoint.load_checkpoint(folder / name, "vqvae") for name in SAVED]
        known[content] = tuple(state["step"] for state in states)
    return known[content]


def _goes_on(folder: Path, model, known: dict) -> tuple[int, ...]:
    """Return what both checkpoints hold; then the next save goes on as if nothing had been."""
    found = _saved_steps(folder, known)
    checkpoint.save_rotating(folder / "last.pt", "vqvae", model, step=3)
    assert _saved_steps(folder, known) == (3, found[0]) and len(list(folder.iterdir())) == 4
    return found


def _save_traced(folder: Path, model, before_line) -> None:
    """Save, and call `before_line` before each line of checkpoint.py and files.py."""

    def trace(frame, event, _):
        if not frame.f_code.co_filename.endswith(("checkpoint.py", "files.py")):
            return None
        if event == "line":
            before_line()
        return trace

    sys.settrace(trace)
    try:
        checkpoint.save_rotating(folder / "last.pt", "vqvae", model, step=2)
    finally:
        sys.settrace(None)


def test_a_save_that_is_killed_at_any_line_leaves_two_good_checkpoints(saved_twice):
    """A kill before a line leaves what is on the disk then, with files of a dead process."""
    model, folder = saved_twice
    states, num_lines, known = {}, [], {}

    def note():
        num_lines.append(1)
        states.setdefault(_content(folder))

    _save_traced(folder, model, note)
    note()
    ends = []
    for number, files in enumerate(states):
        cut = folder.with_name(str(number))
        cut.mkdir()
        for name, content in files:
            (cut / name.replace(f".{os.getpid()}.tmp", ".999999999.tmp")).write_bytes(content)
        ends.append(_goes_on(cut, model, known))
    assert len(num_lines) > 60 and len(states) > 8
    assert list(dict.fromkeys(ends)) == [(1, 0), (1, 1), (2, 1)]


def test_a_save_that_is_interrupted_at_any_line_leaves_two_good_checkpoints(saved_twice):
    model, first = saved_twice
    ends, known, is_cut = [], {}, True

    def interrupt():
        if next(lines, None) is None:
            sys.settrace(None)
            raise KeyboardInterrupt

    for number in itertools.count():
        folder = Path(shutil.copytree(first, first.with_name(str(number))))
        lines = iter(range(number))
        try:
            _save_traced(folder, model, interrupt)
            is_cut = False
        except KeyboardInterrupt:
            assert not list(folder.glob(".*"))
        ends.append(_goes_on(folder, model, known))
        shutil.rmtree(folder)
        if not is_cut:
            break
    assert len(ends) > 60 and list(dict.fromkeys(ends)) == [(1, 0), (1, 1), (2, 1)]


def _damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "empty":
        content = b""
    elif how == "cut":
        content = content[:-20]
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["empty", "cut", "one bit"])
def test_a_damaged_last_checkpoint_falls_back_and_never_replaces_the_good_one(
    how, vqvae, tmp_path, capsys
):  # fmt: skip
    path = tmp_path / "last.pt"
    for step in (1, 2):
        checkpoint.save_rotating(path, "vqvae", vqvae, step=step)
    _damage(path, how)
    assert checkpoint.load_last(tmp_path, "vqvae")["step"] == 1
    assert "going on from last-1.pt" in capsys.readouterr().err
    checkpoint.save_rotating(path, "vqvae", vqvae, step=3)
    assert checkpoint.load_checkpoint(path, "vqvae")["step"] == 3
    assert checkpoint.load_checkpoint(tmp_path / "last-1.pt", "vqvae")["step"] == 1


def _die_at_move(call):
    real, calls = os.replace, iter(range(1, 9))
    os.replace = lambda *args: os._exit(9) if next(calls) == call else real(*args)


def test_a_run_goes_on_saving_after_a_kill_between_two_moves(tmp_path):
    path, model = tmp_path / "last.pt", VQVAE(VQVAEConfig(latent_dim=16, stem_dim=8))
    checkpoint.save_rotating(path, "vqvae", model, step=1)
    for call in (4, 2, 2, 1, 1):  # from the second on, the one before is this same file
        if (child := os.fork()) == 0:
            _die_at_move(call)
            checkpoint.save_rotating(path, "vqvae", model, step=2)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert checkpoint.load_checkpoint(path, "vqvae")["step"] == 1
    checkpoint.save_rotating(path, "vqvae", model, step=3)
    assert checkpoint.load_checkpoint(path, "vqvae")["step"] == 3
    assert checkpoint.load_checkpoint(tmp_path / "last-1.pt", "vqvae")["step"] == 1
    assert len(list(tmp_path.iterdir())) == 4  # what the killed ones left is swept


def test_a_file_system_without_links_keeps_the_one_before_too(vqvae, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", _refuse)
    for step in (1, 2):
        checkpoint.save_rotating(tmp_path / "last.pt", "vqvae", vqvae, step=step)
    assert checkpoint.load_checkpoint(tmp_path / "last-1.pt", "vqvae")["step"] == 1


def test_a_living_process_keeps_its_temporary_file(tmp_path):
    from v2.runtime.files import sweep_temporaries

    names = [f".last.pt.{process}.tmp" for process in (os.getpid(), 999_999_999)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    sweep_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == names[:1]


def test_a_config_of_another_version_is_refused_by_name(vqvae, tmp_path):
    _save(tmp_path / "a.pt", vqvae)
    state = checkpoint.load_checkpoint(tmp_path / "a.pt", "vqvae")
    state["config"]["colours"] = 3
    with pytest.raises(ValueError, match="config is of another version.*colours"):
        build_model(state, tmp_path / "a.pt")


def test_another_architecture_is_not_continued(vqvae, tmp_path):
    _save(tmp_path / "a.pt", vqvae)
    state = checkpoint.load_checkpoint(tmp_path / "a.pt", "vqvae")
    other = VQVAE(dataclasses.replace(vqvae.config, stem_dim=9))
    with pytest.raises(ValueError, match="another architecture: stem_dim 8, now 9"):
        checkpoint.restore(other, state, tmp_path / "a.pt")


@pytest.mark.parametrize("name, value, text", [
    ("encoder.stem.weight", None, "is missing"),
    ("encoder.stem.weight", "text", "is no plain tensor"),
    ("encoder.stem.weight", torch.zeros(8, 3, 4, 4, device="meta"), "is no plain tensor"),
    ("encoder.stem.weight", torch.zeros(8, 3, 4, 4, dtype=torch.int64), "is torch.int64"),
    ("encoder.more", torch.zeros(1), "is unknown"),
])  # fmt: skip
def test_a_foreign_weight_is_refused_by_name(name, value, text, vqvae, tmp_path):
    _save(tmp_path / "a.pt", vqvae)
    state = checkpoint.load_checkpoint(tmp_path / "a.pt", "vqvae")
    state["model"][name] = value
    if value is None:
        del state["model"][name]
    with pytest.raises(ValueError, match=f"weight {name} {text}"):
        build_model(state, tmp_path / "a.pt")
