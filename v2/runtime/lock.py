"""Locks: one process at a time where two would spoil each other's work.

Contract: a lock is held by a process and is gone with it, however it ends; who comes second is
refused in one line that names the first. Knows nothing of what is guarded.
"""

import contextlib
import json
import os
import platform
import time
from pathlib import Path

import filelock

from v2.runtime.files import write_text

SHOWN_TIME = "%Y-%m-%d %H:%M:%S"


class Lock(contextlib.AbstractContextManager):
    """A lock file, and beside it who holds it; both are removed when it is given back."""

    def __init__(self, path: Path, doing: str):
        """Name the lock's file, and what its holder does, as in `training in runs/a`."""
        self.path, self.doing = Path(path), doing
        self._owner = self.path.with_name(f"{self.path.name}.owner")  # Windows reads no locked file
        self._lock = filelock.FileLock(self.path, timeout=0, thread_local=False)

    def __enter__(self) -> "Lock":
        self.acquire()
        return self

    def __exit__(self, *exception) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            FileExistsError: a living process holds it.
            OSError: the file system knows no locks, or takes no file.
        """
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise FileExistsError(f"{self._holder()}: wait for it or stop it") from None
        except (OSError, NotImplementedError) as error:
            raise OSError(
                f"cannot lock {self.path.parent}: {getattr(error, 'strerror', None) or error}; "
                "name a folder on another disk"
            ) from error
        owner = {"process": os.getpid(), "host": platform.node(), "doing": self.doing,
                 "since": time.strftime(SHOWN_TIME)}  # fmt: skip
        write_text(self._owner, json.dumps(owner))

    def release(self) -> None:
        if self._lock.is_locked:
            for path in (self._owner, self.path):
                with contextlib.suppress(OSError):  # Windows removes no open file
                    path.unlink()
            self._lock.release()

    def _holder(self) -> str:
        try:
            owner = json.loads(self._owner.read_text("utf-8"))
            where = "" if owner["host"] == platform.node() else f" on {owner['host']}"
            return f"process {owner['process']}{where} is {owner['doing']} since {owner['since']}"
        except (OSError, ValueError, LookupError, TypeError):  # it is just beginning
            return f"another process is {self.doing}"
