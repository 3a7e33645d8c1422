"""What every script shares: errors in one line, exit codes, stop signals, checked numbers.

Contract: 0 done, 1 failed while running, 2 bad input, 3 diverged, 130 and 143 stopped by SIGINT
and SIGTERM after saving. Knows nothing of what a script does.
"""

import argparse
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable


class DivergedError(RuntimeError):
    """Training met a run of non-finite losses or gradients."""


class StopRequest:
    """The first SIGINT or SIGTERM asks for a stop, the second leaves at once."""

    def __init__(self):
        self.signal_number: int | None = None
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
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
        print("\nstopping after this step; again to leave at once", file=sys.stderr, flush=True)


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main and exit with its code; errors become one line on stderr."""
    debug = "--debug" in sys.argv
    try:
        code = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = 130
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError,
            ModuleNotFoundError, IsADirectoryError) as error:  # fmt: skip
        code = _report(error, 2, debug)
    except DivergedError as error:
        code = _report(error, 3, debug)
    except (OSError, RuntimeError, MemoryError) as error:
        code = _report(error, 1, debug)
    sys.exit(code)


def _report(error: BaseException, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"error: {text}", file=sys.stderr)
    return code


def parser(description: str, example: str) -> argparse.ArgumentParser:
    """Make a parser with an example and --debug."""
    made = argparse.ArgumentParser(
        description=description,
        epilog=f"example: {example}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def positive_int(text: str) -> int:
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def non_negative_int(text: str) -> int:
    value = _number(text, int)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


def positive_float(text: str) -> float:
    value = _number(text, float)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def non_negative_float(text: str) -> float:
    value = _number(text, float)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


def probability(text: str) -> float:
    value = _number(text, float)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1], got {text}")
    return value


def _number(text: str, kind: type):
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be finite, got {text}")
    return value
