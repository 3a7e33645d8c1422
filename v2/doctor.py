"""Say what this machine has and lacks for this program, and what to do about it.

    python v2/doctor.py

Contract: changes nothing, needs no package, ends with 1 if a problem stops a command.
"""

from __future__ import annotations  # so that an older Python reaches its explanation

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import time
from typing import NamedTuple

from v2.runtime import cli
from v2.runtime.commands import IS_INSTALLED, PACKAGED, command
from v2.runtime.files import check_writable

OLDEST_PYTHON = (3, 10)
PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "pygame", "tqdm", "filelock", "pillow",
            "av", "onnx", "onnxscript", "onnxruntime", "matplotlib")  # fmt: skip
USERS = {"pygame": "play", "av": "play --record", "pillow": "training, recording",
         "onnxruntime": "play", "onnx": "play", "onnxscript": "play",
         "matplotlib": "results page, agents' curves"}  # fmt: skip
INSTALL, RESTORE = "python -m pip install -r requirements.txt", "git checkout -- checkpoints/v2"
if IS_INSTALLED:
    INSTALL = RESTORE = "install this package again, as the first time"
LITTLE_DISK_GB, TOO_LITTLE_DISK_GB = 5.0, 0.5
MATRIX = 192  # bfloat16 in software takes 0.1 s for a product of this size
DISPLAY_SECONDS = 20


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    text: str
    fix: str = ""  # empty: nothing to do
    stops: str = ""  # the command that cannot work, if any


def build_parser():
    return cli.parser(__file__)


def main(argv=None) -> int:
    build_parser().parse_args(argv)
    found = [finding for check in CHECKS for finding in _tried(check)]
    for finding in found:
        mark = "STOP" if finding.stops else "note" if finding.fix else "ok"
        stops = f" (stops {finding.stops})" if finding.stops else ""
        print(f"{mark:4s}  {finding.name:14s} {finding.text}{stops}")
        if finding.fix:
            print(f"{'':20s} -> {finding.fix}")
    num_stops = sum(bool(finding.stops) for finding in found)
    print(f"problems that stop a command: {num_stops or 'none'}")
    return 1 if num_stops else 0


def _tried(check) -> list[Finding]:
    """Make a check; a package that is there and broken is a finding of its own."""
    try:
        return check()
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return [Finding(check.__name__.removeprefix("check_"), text, INSTALL, "every command")]


def check_python() -> list[Finding]:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        return [Finding("python", text, f"install Python {wanted} or newer", "every command")]
    return [Finding("python", text)]


def check_packages() -> list[Finding]:
    found, clash = [], [name for name in ("pygame", "pygame-ce") if _version(name)]
    for name in PACKAGES:
        version = _version(name) or (name == "pygame" and _version("pygame-ce"))
        if not version:
            found.append(Finding(name, "missing", INSTALL, USERS.get(name, "every command")))
        elif name == "ale-py" and version == "0.12.0":
            found.append(Finding(name, f"{version} came without ROMs", INSTALL, "collect, play"))
        else:
            found.append(Finding(name, version))
    if len(clash) == 2:
        fix = f"python -m pip uninstall -y pygame pygame-ce; {INSTALL}"
        found.append(Finding("pygame clash", "pygame and pygame-ce share one folder", fix))
    return found


def check_device() -> list[Finding]:
    if not _is_there("torch"):
        return []
    import torch

    from v2.runtime.device import choose_device, has_fast_bfloat16

    device = choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    found = [Finding("device", f"{device.type}: {name}{threads}")]
    gain = _seconds_of_product(device, torch.float32) / _seconds_of_product(device, torch.bfloat16)
    if has_fast_bfloat16(device):
        found.append(Finding("bfloat16", f"in hardware, {gain:.1f} times as fast as float32"))
    else:
        text = f"in software, {gain:.2g} times as fast: training and dreams use float32"
        found.append(Finding("bfloat16", text))
    return found


def check_display() -> list[Finding]:
    if not _is_there("pygame"):
        return []
    code = "import pygame; pygame.display.init(); print(pygame.display.get_driver())"
    environment = os.environ | {"PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              env=environment, timeout=DISPLAY_SECONDS)  # fmt: skip
        driver = done.stdout.strip()
    except subprocess.TimeoutExpired:
        driver = ""
    if driver in ("", "dummy", "offscreen"):
        text = f"none that a person can see{f' (SDL would draw to {driver!r})' if driver else ''}"
        fix = "play with --headless --record play.mp4, or from a desktop, or with ssh -X"
        return [Finding("display", text, fix)]
    return [Finding("display", driver)]


def check_roms() -> list[Finding]:
    spec = importlib.util.find_spec("ale_py") if _is_there("ale_py") else None
    if spec is None:
        return []
    chosen = os.environ.get("ALE_ROMS_DIR")
    folder = Path(chosen) if chosen else Path(spec.origin or "").parent / "roms"
    num_roms = len(list(folder.glob("*.bin")))
    if not (folder / "breakout.bin").exists():
        fix = "unset ALE_ROMS_DIR" if chosen else f"{INSTALL} --force-reinstall"
        return [Finding("ROMs", f"{num_roms} in {folder}, no Breakout", fix, "collect, play")]
    return [Finding("ROMs", f"{num_roms} games, Breakout among them")]


def check_disk() -> list[Finding]:
    from v2.data.games import CHECKPOINTS

    folder = CHECKPOINTS.absolute()
    free = shutil.disk_usage(folder if folder.exists() else Path()).free / 1e9
    text, fix = f"{free:.1f} GB free", "free some space: data, tokens and runs need about 1 GB"
    try:
        check_writable(folder)
    except OSError as error:
        return [Finding("disk", str(error), "choose another folder with --out", "collect, train")]
    if free < TOO_LITTLE_DISK_GB:
        return [Finding("disk", text, fix, "collect, train")]
    return [Finding("disk", text, fix if free < LITTLE_DISK_GB else "")]


def check_weights() -> list[Finding]:
    if not (_is_there("torch") and _is_there("gymnasium") and _is_there("ale_py")):
        return []
    from v2.data.games import CHECKPOINTS, shipped_directory

    others = {path.parent.name for home in (CHECKPOINTS, PACKAGED)
              for path in home.glob("*/*.pt")}  # fmt: skip
    directories = {}
    for game in ("breakout", *sorted(others - {"atari"})):
        with contextlib.suppress(ValueError):  # a folder that is no game's
            directories[game] = shipped_directory(game)
    return [_check_pair(game, directory) for game, directory in directories.items()]


def check_environments() -> list[Finding]:
    """Say which package each recording of another environment than Atari is of."""
    if not (_is_there("torch") and _is_there("gymnasium") and _is_there("ale_py")):
        return []
    from v2.data.atari_dataset import recorded_emulator
    from v2.data.games import CHECKPOINTS
    from v2.data.npz import read_meta
    from v2.data.recordings import DATA_NAME, META_FIELDS, recorded_files

    found = []
    for folder in sorted(CHECKPOINTS.glob("*")):
        for path in recorded_files(folder / f"{DATA_NAME}.npz")[:1]:
            try:
                emulator = recorded_emulator(path, read_meta(path, META_FIELDS))
            except ValueError as error:
                found.append(Finding("recording", str(error), "take it away, or collect again"))
                continue
            if emulator.package:
                name, _, version = emulator.package.partition(" ")
                here = _version(name)
                fix = f"install {name} {version}: here is {here}" if here != version else ""
                found.append(
                    Finding("environment", f"{emulator.game} of {emulator.package}: {path}", fix)
                )
    return found


def _check_pair(game: str, directory: Path) -> Finding:
    """Load a game's shipped weights."""
    from v2.data.games import learnt_config
    from v2.models.weights import load_vqvae, load_world_model, tokenizer_sha256
    from v2.runtime import checkpoint
    from v2.runtime.run_dir import SHIPPED, finished_runs

    paths = {kind: directory / name for kind, name in SHIPPED.items()}
    absent = [path.name for path in paths.values() if not path.exists()]
    if absent:
        text = f"{game}: {' and '.join(absent)} absent"
        if runs := finished_runs(directory, "world_model"):
            ship = command("train/ship.py", game=game)
            return Finding("weights", f"{text}; play takes {runs[-1]}", ship)
        train = command("train/pipeline.py", game=game)
        fix = f"{RESTORE}, or {train}: about two hours"
        return Finding("weights", text, fix, "play, eval")
    try:
        vqvae, _ = load_vqvae(paths["vqvae"])
        vqvae_sha256 = tokenizer_sha256(vqvae)
        world_model, info = load_world_model(paths["world_model"], vqvae_sha256)
        learnt_config(info, paths["world_model"], game)
    except ValueError as error:
        return Finding("weights", str(error), RESTORE, "play, eval")
    world_model_sha256 = checkpoint.model_sha256(world_model)
    hashes = f"tokenizer {vqvae_sha256[:12]}, world model {world_model_sha256[:12]}"
    return Finding("weights", f"{game}: whole and of one pair: {hashes}")


CHECKS = (
    check_python, check_packages, check_device, check_display, check_roms, check_disk,
    check_weights, check_environments,
)  # fmt: skip


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _seconds_of_product(device, dtype) -> float:
    import torch

    a = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        (a @ a).sum().item()  # item waits for a GPU
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    cli.run(main)
