"""The loops of play: with a window in real time, without one as fast as it goes.

Contract: a step is only begun when the one before has ended, with the keys of that very moment, so
input never queues; a machine that is too slow plays slower and says so. The models live on a thread
of their own, one job at a time, so the window answers while they think.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from v2.play.keys import REDRAW

IDLE_SECONDS = 0.004
QUIET_SECONDS = 0.5  # a picture is drawn at least so often, for notices that end
NOTICE_SECONDS = 3
FOCUS_HINT = "click this window, then press a key: arrows move, SPACE fires, H shows all keys"
SPEED_STEPS = 30  # the measured speed is a mean over these
SLOW_FACTOR = 0.9  # of the speed that is wanted; below it, it is said


class Speed:
    """Steps a second and how long a step takes."""

    def __init__(self):
        self.step_seconds: list[float] = []
        self._ends: deque[float] = deque(maxlen=SPEED_STEPS + 1)
        self._num_gaps, self._gap_seconds = 0, 0.0

    def stepped(self, began: float, ended: float) -> None:
        self.step_seconds.append(ended - began)
        if self._ends:
            self._num_gaps += 1
            self._gap_seconds += ended - self._ends[-1]
        self._ends.append(ended)

    def interrupted(self) -> None:
        """Leave a pause out of the speed."""
        self._ends.clear()

    @property
    def steps_per_second(self) -> float:
        """The speed of the last steps."""
        if len(self._ends) < 2:
            return 0.0
        return (len(self._ends) - 1) / (self._ends[-1] - self._ends[0])

    def is_below(self, steps_per_second: float) -> bool:
        """Tell whether the last steps were clearly slower than was asked for."""
        is_known = len(self._ends) > SPEED_STEPS
        return is_known and self.steps_per_second < SLOW_FACTOR * steps_per_second

    @property
    def mean_steps_per_second(self) -> float:
        return self._num_gaps / self._gap_seconds if self._gap_seconds else 0.0

    def step_ms(self, quantile: float) -> float:
        return float(np.quantile(self.step_seconds, quantile) * 1000) if self.step_seconds else 0.0


class Clock:
    """When the next step is due; steps that were missed are not made up for."""

    def __init__(self, steps_per_second: float):
        self.period = 1 / steps_per_second
        self.due = time.perf_counter()

    def is_due(self) -> bool:
        return time.perf_counter() >= self.due

    def began(self) -> None:
        now = time.perf_counter()
        self.due = self.due + self.period if now - self.due < self.period else now + self.period


class ModelThread:
    """A thread that does one job at a time and hands errors back.

    Models are loaded on it, too: as soon as two threads have computed in parallel, OpenMP counts
    more threads than cores, lets none of them spin, and a step takes half as long again.
    """

    def __init__(self):
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="dream")
        self._future: Future | None = None
        self._timing = (0.0, 0.0)

    def __enter__(self) -> "ModelThread":
        return self

    def __exit__(self, *exception) -> None:
        self._executor.shutdown(wait=True)

    def call(self, job: Callable, *args, while_waiting: Callable | None = None, **flags):
        """Do a job, wait for it and return its result.

        Args:
            while_waiting: called again and again until it is done.
        """
        assert self.is_idle
        future = self._executor.submit(job, *args, **flags)
        while while_waiting and not future.done():
            while_waiting()
            time.sleep(IDLE_SECONDS)
        return future.result()

    @property
    def is_idle(self) -> bool:
        return self._future is None

    def start(self, job: Callable, *args) -> None:
        assert self.is_idle
        self._future = self._executor.submit(self._timed, job, *args)

    def finished(self) -> bool:
        """Return whether a job has ended since the last call; raise what it raised."""
        if self._future is None or not self._future.done():
            return False
        future, self._future = self._future, None
        future.result()
        return True

    @property
    def timing(self) -> tuple[float, float]:
        """When the last job began and ended."""
        return self._timing

    def _timed(self, job: Callable, *args) -> None:
        began = time.perf_counter()
        job(*args)
        self._timing = (began, time.perf_counter())


class Commanded:
    """What a window plays: its commands, and whether it is over, stands still, shows the keys."""

    is_over = is_paused = shows_help = False

    @property
    def commands(self) -> dict[str, Callable[[], None]]:
        """What can be asked, as `v2.play.keys` names it."""
        return {"quit": self._quit, "help": self._toggle_help, "pause": self._toggle_pause}

    def command(self, name: str) -> None:
        """Take one of `commands`."""
        self.commands[name]()

    def _quit(self) -> None:
        self.is_over = True

    def _toggle_help(self) -> None:
        self.shows_help = not self.shows_help

    def _toggle_pause(self) -> None:
        self.is_paused = not self.is_paused


def run_window(game, window, thread: ModelThread, stop, max_steps: int = 0) -> None:
    """Play in a window until someone quits, `stop` is set or `max_steps` are done.

    Args:
        game: a PlayGame or a Replay.
        thread: the thread that the game's models were loaded on.
    """
    clock, drawn = Clock(game.steps_per_second), 0.0
    while not (stop or game.is_over or 0 < max_steps <= game.num_steps):
        commands = window.poll()
        for command in commands:
            if command != REDRAW:
                game.command(command)
        has_ended = thread.finished()
        if has_ended:
            game.job_done(*thread.timing)
        if thread.is_idle:
            _start_job(game, window, thread, clock)
        wait = clock.period if game.is_animated else QUIET_SECONDS
        if commands or has_ended or time.perf_counter() - drawn > wait:
            window.show(game.view("" if window.has_seen_key else FOCUS_HINT))
            drawn = time.perf_counter()
        time.sleep(IDLE_SECONDS)
    while not thread.is_idle:  # the step that was running belongs to the video, too
        if thread.finished():
            game.job_done(*thread.timing)
        time.sleep(IDLE_SECONDS)


def _start_job(game, window, thread: ModelThread, clock: Clock) -> None:
    if game.is_animated:  # branches, or a replay: no game sees these keys, and none shall later
        window.held.take()
    job = game.urgent_job()
    if job is None and clock.is_due():
        clock.began()
        job = game.step_job(window.held.take())
    if job is not None:
        thread.start(*job)


def run_headless(game, thread: ModelThread, stop, max_steps: int) -> None:
    """Play `max_steps` steps as fast as the machine goes; 0: until the script of keys is over.

    Args:
        thread: the thread that the game's models were loaded on.
    """
    while not stop and (game.num_steps < max_steps or not (max_steps or game.script_is_over)):
        began = time.perf_counter()
        thread.call(*game.step_job([]))
        game.job_done(began, time.perf_counter())
