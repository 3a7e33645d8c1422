"""What every script shares: flags that are checked, stop signals, scripts that run scripts.

Contract: exit codes are 0 done, 1 failed while running, 2 bad input, 3 diverged, 129, 130 and 143
stopped by SIGHUP, SIGINT and SIGTERM after saving. Imports the standard library alone, so that a
script can say which package is missing. Knows nothing of what a script does.
"""

from __future__ import annotations  # so that an older Python reaches its explanation

import argparse
import ast
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from v2.runtime.checks import LARGEST_INT
from v2.runtime.commands import command, example
from v2.runtime.errors import report_error
from v2.runtime.files import DISK_FULL

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
OF_A_SCRIPT = "V2_RUN_BY_A_SCRIPT"  # which says itself at its end that output was lost
MAX_BATCH_SIZE, MAX_WORKERS = 65_536, 64
MIN_TEMPERATURE = 1e-3  # of sampled tokens; logits over a smaller one overflow


class StopRequest:
    """The first signal asks for a stop, the second leaves at once; nohup's SIGHUP stays ignored."""

    def __init__(self):
        self.signal_number: int | None = None
        self._previous = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        return 128 + self.signal_number if self.signal_number else 0

    def _handle(self, number, frame) -> None:
        if self.signal_number is not None:
            os._exit(128 + number)
        self.signal_number = number
        with contextlib.suppress(OSError):  # not print: the signal may have come in one
            os.write(2, b"\nstopping after this step; again to leave at once\n")


@contextlib.contextmanager
def forwarded_signals(process):
    """Pass every signal on to a child in a session of its own, which so gets it exactly once."""
    previous = {
        number: signal.signal(number, lambda number, frame: process.send_signal(number))
        for number in SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_script(script: str, *flags) -> None:
    """Show and run a script of v2, as "data/collect_atari.py"; stop where it fails, as it does."""
    path = Path(__file__).resolve().parents[1] / script
    print(f"\n$ {command(script, *flags)}", flush=True)
    called = [sys.executable, str(path), *map(str, flags)]
    process = subprocess.Popen(called, start_new_session=True, env=os.environ | {OF_A_SCRIPT: "1"})
    with forwarded_signals(process):
        code = process.wait()
    if code:
        sys.exit(code if code > 0 else 128 - code)


def explain_errors() -> None:
    """Explain in one line what fails before `run`, above all a missing package.

    A script calls this before it imports more than the standard library and this module.
    """
    _open_closed_streams()

    def explain(kind, error, trace):
        if not isinstance(error, ImportError | KeyboardInterrupt):
            return sys.__excepthook__(kind, error, trace)
        sys.exit(report_error(error))

    sys.excepthook = explain


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main and exit with its code; errors become one line on stderr."""
    _open_closed_streams()
    output = sys.stdout, sys.stderr = _Output(sys.stdout), _Output(sys.stderr)
    try:
        code = main() or 0
    except (Exception, KeyboardInterrupt) as error:  # the one place: every error becomes one line
        code = report_error(error)
    sys.stdout.flush()
    if code == 0 and any(stream.is_cut for stream in output) and OF_A_SCRIPT not in os.environ:
        code = report_error(OSError("all is done, but what was said is lost: its disk is full"))
    sys.exit(code)


def _open_closed_streams() -> None:
    """Put an empty device where the shell closed one (`>&-`), before a file takes its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


class _Output:
    """A text stream that goes quiet when its reader is gone or its disk full: work goes on."""

    def __init__(self, stream):
        self._stream, self.is_cut = stream, False  # cut: something that was said is lost
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a path that the locale cannot show

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._silence(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._silence(error)

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def _silence(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO, *DISK_FULL):
            raise error
        self.is_cut |= error.errno in DISK_FULL
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others."""

    def error(self, message: str) -> NoReturn:
        sys.exit(report_error(ValueError(f"{message}; see --help")))


def parser(script: str) -> argparse.ArgumentParser:
    """Make a script's parser, with --debug.

    Args:
        script: its file. The docstring's first line says what it does, its third is the example;
            both are read from the source, as `python -OO` keeps no docstring in memory.
    """
    source = Path(script).read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring is not None  # every script has one
    lines = docstring.splitlines()
    made = _Parser(
        description=lines[0],
        epilog=f"example: {example(lines[2].strip())}",
        formatter_class=_Help,
    )
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says each default, but where the text does, or does not say what None means."""

    def _get_help_string(self, action):
        text = action.help or ""
        is_nothing = action.default in (None, []) and "None: " not in text
        if is_nothing or isinstance(action.default, bool) or "(default: " in text:
            return text
        return super()._get_help_string(action)


def path(text: str) -> Path:
    """A file or folder; `~` is the home folder also where the shell leaves it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a file or folder, got an empty text")
    return Path(os.path.expanduser(text))


def name(text: str) -> str:
    """What a run, weights or a player are called; a shell variable that is not set is none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must be a name, got an empty text")
    return text


class Gather(argparse.Action):
    """Of a flag with several values: those of each time that it is given, not the last ones."""

    def __call__(self, parser, namespace, values, option_string=None):
        held = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if held is self.default else held), *values])


def positive_int(text: str) -> int:
    return _between(text, int, 1, LARGEST_INT)


def non_negative_int(text: str) -> int:
    return _between(text, int, 0, LARGEST_INT)


def batch_size(text: str) -> int:
    return _between(text, int, 1, MAX_BATCH_SIZE)


def num_workers(text: str) -> int:
    return _between(text, int, 1, MAX_WORKERS)


def positive_float(text: str) -> float:
    value = non_negative_float(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def non_negative_float(text: str) -> float:
    return _between(text, float, 0, sys.float_info.max)


def temperature(text: str) -> float:
    value = non_negative_float(text)
    if 0 < value < MIN_TEMPERATURE:
        raise argparse.ArgumentTypeError(f"must be 0 or at least {MIN_TEMPERATURE}, got {text}")
    return value


def steps_per_second(text: str) -> float:
    return _between(text, float, 0.1, 1000)


def probability(text: str) -> float:
    return _between(text, float, 0, 1)


def probability_below_one(text: str) -> float:
    value = probability(text)
    if value == 1:
        raise argparse.ArgumentTypeError(f"must be below 1, got {text}")
    return value


def _between(text: str, kind: type, least: float, most: float):
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text[:40]!r}") from None
    if not least <= value <= most:  # also false for nan
        limit = f"at least {least}" if most >= LARGEST_INT else f"from {least} to {most}"
        limit = f"finite and {limit}" if kind is float and most > 1 else limit
        raise argparse.ArgumentTypeError(f"must be {limit}, got {text[:40]}")
    return value
