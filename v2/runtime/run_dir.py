"""Run folders: checkpoints/v2/<game>/runs/<YYYYMMDD_HHMMSS>/.

Contract: a run writes only into its own folder (and the game's tokens, where they are missing or
stale), one process at a time: config.json, metrics.jsonl (one line an event, no step twice),
last.pt, last-1.pt, best.pt and their .sha256, samples/, status.json, a batch that was not finite,
and a lock while it trains; of a world model its vqvae.pt and patch_table.npz, of an agent its
curves and agents kept on the way. `latest` is the run that finished last and is no smoke run, else
the shipped weights. Which of two was last is told by the time in status.json, of a clock that never
goes back: a run's is later than those of all others there. Names are free. Knows nothing of models.
"""

import calendar
import contextlib
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from v2.runtime.commands import IS_INSTALLED, ROOT
from v2.runtime.files import disk_explained, sweep_temporaries, sync_directory, write_text
from v2.runtime.lock import Lock

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"
VQVAE_NAME = "vqvae.pt"  # the copy that a world-model run keeps beside its weights
CARRIED = "carried"  # folder of unfinished runs made small, beside runs/
SHIPPED = {"vqvae": "atari_vqvae_hires.pt", "world_model": "atari_world_model_hires.pt"}
START_NAME = "start.npz"  # beside shared weights: recorded frames that a dream can start from
OF_A_MACHINE = (  # what a run was called with, and nobody elsewhere can use
    "data", "tokens", "vqvae", "out", "resume", "init_from", "device", "debug", "skip_bad",
    "changed",
)  # fmt: skip


class RunDir:
    """A run's folder while a training process owns it."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._lock = Lock(self.path / "lock", f"training in {self.path}")
        self._metrics: TextIO | None = None

    @classmethod
    def create(cls, root: Path, kind: str, config: dict) -> "RunDir":
        """Make a folder below `root`/runs, named by the time."""
        runs = Path(root) / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        now = time.strftime("%Y%m%d_%H%M%S")
        for name in itertools.chain([now], (f"{now}_{k}" for k in itertools.count(2))):
            try:
                (runs / name).mkdir()
                break
            except FileExistsError:  # of the same second, or the clock went back
                continue
        sync_directory(runs)
        run = cls(runs / name)
        run.acquire()
        write_text(run.path / "config.json", json.dumps({"kind": kind, **config}, indent=1))
        run.set_status(is_finished=False, step=0, minutes=0.0)
        return run

    def acquire(self) -> None:
        """Lock the folder for this process and sweep what a killed one left.

        Raises:
            FileExistsError: a living process holds it.
        """
        self._lock.acquire()
        (self.path / "samples").mkdir(exist_ok=True)
        sweep_temporaries(self.path)

    def check_free(self) -> None:
        """Raise a FileExistsError where another process trains here, before any work is done."""
        with self._lock:
            pass

    def release(self) -> None:
        if self._metrics:
            with contextlib.suppress(OSError):  # of a full disk, which `log` has said
                self._metrics.close()
            self._metrics = None
        self._lock.release()

    def log(self, step: int, **metrics) -> None:
        """Append one line of metrics; numbers are rounded for people."""
        path, line = self.path / "metrics.jsonl", {"step": step}
        line |= {k: _plain(v) for k, v in metrics.items()}
        with disk_explained(path):
            if self._metrics is None:
                self._metrics = open(path, "a", encoding="utf-8")
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
            os.fsync(self._metrics.fileno())  # never behind the checkpoint

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that a resumed run will do again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            write_text(path, "".join(line + "\n" for line in kept))

    def note_changes(self, step: int, changed: dict) -> None:
        """Log what a resumed run was given anew, and resume with it the next time.

        Args:
            changed: flag or field of the recipe -> its new value.
        """
        if changed:
            self.log(step, changed=changed)
            print(f"changed since the run began: {changed}")
            config = read_config(self.path)
            for part in ("args", "recipe"):
                config[part] |= {k: v for k, v in changed.items() if k in config[part]}
            write_text(self.path / "config.json", json.dumps(config, indent=1))

    def set_status(self, **status) -> None:
        """Say how far the run came; it is now the last one, unless it was finished before."""
        if status["is_finished"] and is_finished(self.path):
            return
        latest = max(map(_number, self.path.parent.glob("*")))
        now = max(calendar.timegm(time.gmtime()), latest + 1)
        status |= {"number": now, "time": time.strftime(TIME_FORMAT)}
        write_text(self.path / "status.json", json.dumps(status))


def read_config(run: Path) -> dict:
    """Read a run's config.json."""
    path = Path(run) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"no run at {run}: config.json is missing")
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
        return config | {"args": dict(config["args"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove the run or restore it") from error


def find_run(name: str, home: Path) -> Path:
    """Resolve a run's name in a home, or a path, to its folder.

    Raises:
        FileNotFoundError: with what there is.
    """
    given = Path(name).expanduser()
    for place in (home / "runs" / name, given):
        if place.is_dir():
            return place
    if given.is_file():  # a checkpoint of it
        return given.parent
    raise FileNotFoundError(f"no run {name!r}; {_runs_in(home)}")


def find_checkpoint(
    name: str, kind: str, directory: Path, advice: str, home: Path | None = None,
    shipped_directory: Path | None = None,
) -> Path:  # fmt: skip
    """Resolve `latest`, `shipped`, a run's name, a folder or a file to a checkpoint.

    A folder is a run's, a home, or one of shared weights as `v2/train/ship.py --to` writes it.

    Args:
        directory: holds the game's runs/.
        advice: how to get shipped weights, where there are none.
        home: a directory that was named, whose runs/ come first.
        shipped_directory: holds the shipped weights; None: `directory`.
    Raises:
        FileNotFoundError: with what was looked for and what there is.
    """
    shipped = (shipped_directory or directory) / _shipped_name(kind)
    if name == "latest":
        if home and (own := _latest_of_home(home, kind)):
            return own
        runs = finished_runs(directory, kind)
        name = str(runs[-1]) if runs else "shipped"
    if name == "shipped":
        if not shipped.exists():
            raise FileNotFoundError(f"no shipped weights {shipped}: {advice}")
        return shipped
    given = Path(name).expanduser()
    for place in ([home / "runs" / name] if home else []) + [directory / "runs" / name, given]:
        if place.is_file():
            return place
        if weights := _weights_of(place):
            return weights
    is_home, shared = (given / "runs").is_dir(), given / _shipped_name(kind)
    if is_home and (own := _latest_of_home(given, kind)):
        return own
    if shared.exists():
        return shared
    if is_home:
        raise FileNotFoundError(f"no {kind} run in {given}; {_runs_in(given)}")
    raise FileNotFoundError(f"no run or checkpoint {name!r}; {_runs_in(home or directory)}")


def _shipped_name(kind: str) -> str:
    return SHIPPED.get(kind, f"{kind}.pt")


def _weights_of(run: Path) -> Path | None:
    files = (run / name for name in ("best.pt", "last.pt"))
    return next((path for path in files if path.exists()), None)


def _latest_of_home(home: Path, kind: str) -> Path | None:
    """Return the weights that finished last in a home that was named, of a smoke run if need be.

    Raises:
        FileNotFoundError: all of its runs are unfinished.
    """
    runs = finished_runs(home, kind) or finished_runs(home, kind, is_smoke=True)
    if runs:
        return _weights_of(runs[-1])
    begun = [run for run in all_runs(home) if read_config(run).get("kind") == kind]
    if begun:
        raise FileNotFoundError(
            f"the {kind} run {begun[-1]} is unfinished: --resume it, or name other weights"
        )
    return None


def _runs_in(home: Path) -> str:
    there = sorted(p.name for p in (home / "runs").glob("*")) or ["none"]
    return f"runs in {home}: {', '.join(there)}"


def vqvae_beside(world_model: Path) -> Path:
    """Return the VQ-VAE that lies beside a world model, in its run or among shipped weights.

    Raises:
        FileNotFoundError: neither is there.
    """
    for name in (VQVAE_NAME, SHIPPED["vqvae"]):
        if (path := world_model.with_name(name)).exists():
            return path
    raise FileNotFoundError(
        f"{world_model} has no VQ-VAE beside it, {VQVAE_NAME} or {SHIPPED['vqvae']}: "
        "give the whole folder"
    )


def shown_path(path: Path) -> str:
    """Return a path as people know it: from the checkout where it is inside."""
    path = Path(path).absolute()
    is_inside = path.is_relative_to(ROOT) and not IS_INSTALLED
    return str(path.relative_to(ROOT) if is_inside else path)


def all_runs(directory: Path) -> list[Path]:
    """Return the folders of all runs, the one that was begun or that finished last at the end."""
    runs = (path.parent for path in (Path(directory) / "runs").glob("*/config.json"))
    return sorted(runs, key=lambda run: (_number(run), run.name))  # older versions gave no number


def finished_runs(directory: Path, kind: str, is_smoke: bool = False) -> list[Path]:
    """Return the finished runs of a kind, smoke runs or all others, the last one at the end."""
    found = []
    for run in all_runs(directory):
        try:
            config = read_config(run)
        except ValueError as error:  # one damaged run must not hide the others
            print(f"left out: {error}", file=sys.stderr)
            continue
        if config.get("kind") == kind and bool(config.get("is_smoke")) == is_smoke:
            if is_finished(run):
                found.append(run)
    return found


def is_of_smoke(info: dict) -> bool:
    """Tell from a checkpoint, without its weights, whether a smoke run trained it."""
    recipe = info.get("recipe") or {"is_smoke": info.get("train_args", {}).get("smoke")}
    return bool(recipe["is_smoke"])


def is_finished(run: Path) -> bool:
    """Tell whether a run reached its last step."""
    try:
        return bool(read_status(run)["is_finished"])
    except (OSError, ValueError, LookupError, TypeError):  # not there, or damaged
        return False


def read_status(run: Path) -> dict:
    """Read the step and the minutes that a run came to, and whether these are all."""
    return json.loads((Path(run) / "status.json").read_text("utf-8"))


def _number(run: Path) -> int:
    """Return the second since 1970 of a run's end or begin; older versions counted the runs."""
    try:
        return int(read_status(run)["number"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError):  # not there, or damaged
        return 0


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # a line that a kill cut short
        return float("inf")


def _plain(value):
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None  # JSON knows no nan
    return value
