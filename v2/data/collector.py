"""Playing games and recording them: jobs in, episodes out, in an order that no worker changes.

Contract: equal arguments give equal arrays, whatever the number of workers. Every game has a seed
of its own, from which its policy draws; no game stands twice. Knows nothing of scripts.
"""

import atexit
import functools
import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np

from v2.data.atari_dataset import split_of_game
from v2.data.emulator import AtariFrameEnv, make_atari_env
from v2.data.games import EmulatorConfig
from v2.data.policies import PolicyConfig, make_policy
from v2.data.validation import MIN_EQUAL_FRAMES
from v2.runtime.cli import SIGNALS

SEEDS_PER_RUN, SEEDS_PER_POLICY = 10_000_000, 1_000_000
MIN_GAME_STEPS, MAX_GAME_STEPS = 150, 6000
GAMES_PER_POLICY = 6  # at least so many games share a policy's frames, so that splits have some
SECONDS_BETWEEN_LOOKS = 1.0  # at whether the workers live, while one waits for them
SNAPSHOT_STEPS, MAX_SNAPSHOTS = 8, 64
MAX_BACK = 6  # snapshots: rewinding goes back up to 48 steps, 3.2 seconds; further after vain ones
MAX_VAIN_GAMES = 100
STUCK_STEPS = 300  # without a reward; then a life is spent, for another ball


@dataclass(frozen=True)
class GameJob:
    emulator: EmulatorConfig
    policy: PolicyConfig
    seed: int
    max_steps: int


@dataclass
class Segment:
    """One episode of the data file, as lists while it is recorded and arrays when it is done."""

    seed: int
    policy: str
    frames: Any
    ram: Any
    actions: Any
    rewards: Any
    terminated: bool = False

    @classmethod
    def begin(cls, seed: int, policy: str, frame: np.ndarray, ram: np.ndarray) -> "Segment":
        return cls(seed, policy, [frame], [ram], [], [])

    def append(self, action: int, reward: float, frame, ram, terminated: bool) -> None:
        self.frames.append(frame)
        self.ram.append(ram)
        self.actions.append(action)
        self.rewards.append(reward)
        self.terminated = bool(terminated)

    def finish(self) -> "Segment":
        """Turn the lists into arrays in place, so that memory holds one segment twice, not all."""
        self.frames, self.ram = np.stack(self.frames), np.stack(self.ram)
        self.actions = np.array(self.actions, np.uint8)
        self.rewards = np.array(self.rewards, np.float32)
        return self

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def content(self) -> bytes:
        """What tells finished episodes apart: a hash of their states and actions."""
        return hashlib.sha256(self.ram.tobytes() + self.actions.tobytes()).digest()

    def cut(self, num_frames: int) -> "Segment":
        """Keep the first frames."""
        if num_frames >= len(self):
            return self
        return Segment(
            self.seed, self.policy, self.frames[:num_frames], self.ram[:num_frames],
            self.actions[: num_frames - 1], self.rewards[: num_frames - 1], terminated=False,
        )  # fmt: skip


def record(
    emulator: EmulatorConfig,
    mix: list[PolicyConfig],
    num_frames: int,
    first_seed: int,
    workers: int,
) -> Generator[Segment, None, None]:
    """Play until every policy has its share of `num_frames`, and yield the segments in order.

    Args:
        first_seed: game seeds are first_seed + 1,000,000 * policy + game.

    An episode that equals one of the other split is left out, as training refuses both. A policy
    whose games are such alone, in a game without luck, gets less than its share.
    """
    shares = np.cumsum([0.0] + [config.share for config in mix])
    quotas = np.diff(np.rint(shares * num_frames).astype(int))
    first: dict[bytes, str] = {}
    streams = [
        _Stream(emulator, config, int(quota), first_seed + SEEDS_PER_POLICY * index, first)
        for index, (config, quota) in enumerate(zip(mix, quotas, strict=True))
    ]
    with _pool(workers) as pool:
        for index, stream in enumerate(streams):
            while stream.is_wanting():
                _submit(streams[index:], pool, workers)
                yield from stream.take()


class _Stream:
    """The games of one policy, in order; submitted ahead, cut at the policy's share."""

    def __init__(self, emulator: EmulatorConfig, config: PolicyConfig, quota: int, seed: int,
                 first: dict[bytes, str]):  # fmt: skip
        self.emulator, self.config, self.quota, self.next_seed = emulator, config, quota, seed
        self.first = first  # see `is_in_other_split`
        self.num_vain = 0  # games in a row of which nothing is new
        self.max_steps = int(np.clip(quota // GAMES_PER_POLICY, MIN_GAME_STEPS, MAX_GAME_STEPS))
        self.pending: deque = deque()
        self.num_games = self.num_frames = 0

    def is_wanting(self) -> bool:
        is_short = self.quota - self.num_frames > 1  # one frame is no episode
        return is_short and self.num_vain < MAX_VAIN_GAMES

    def is_covered(self) -> bool:
        """Guess whether the games on their way are enough."""
        length = self.num_frames / self.num_games if self.num_games else self.max_steps
        return self.num_frames + len(self.pending) * length >= self.quota

    def submit(self, pool) -> None:
        self.pending.append(
            pool(GameJob(self.emulator, self.config, self.next_seed, self.max_steps))
        )
        self.next_seed += 1

    def take(self) -> Iterator[Segment]:
        """Wait for the next game and yield what of it is wanted."""
        self.num_games += 1
        self.num_vain += 1
        for segment in self.pending.popleft()():
            segment = segment.cut(self.quota - self.num_frames)
            if len(segment) > 1 and not is_in_other_split(segment, self.first):
                self.num_vain = 0
                self.num_frames += len(segment)
                yield segment


def is_in_other_split(segment: Segment, first: dict[bytes, str]) -> bool:
    """Tell whether an episode equals one of the other split (`v2.data.validation.check_splits`).

    Args:
        first: content -> the split in which it stood first; added to.
    """
    split = split_of_game(segment.seed)
    return len(segment) >= MIN_EQUAL_FRAMES and first.setdefault(segment.content, split) != split


def _submit(streams: list[_Stream], pool, workers: int) -> None:
    """Keep all workers busy, on later policies where the first one has enough."""
    if not streams[0].pending:
        streams[0].submit(pool)
    in_flight = sum(len(stream.pending) for stream in streams)
    for stream in streams:
        while in_flight <= workers and not stream.is_covered():
            stream.submit(pool)
            in_flight += 1


class _pool:
    """Run jobs here, or in worker processes; a submitted job is a function that waits for it.

    A worker that is killed, by lack of memory for one, is an error and not a wait without end.
    """

    def __init__(self, workers: int):
        self.pool = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            try:
                self.pool = ProcessPoolExecutor(workers, context, initializer=_follow_parent)
            except (OSError, ImportError, NotImplementedError) as error:  # no use of /dev/shm
                print(f"no memory that processes share ({error}): recording in one", flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.pool:
            self.pool.shutdown(wait=False, cancel_futures=True)

    def __call__(self, job: GameJob):
        if self.pool:
            return functools.partial(_result, self.pool.submit(record_game, job), self.pool)
        return lambda: record_game(job)


def _result(future: Future, pool: ProcessPoolExecutor) -> list[Segment]:
    while True:
        try:
            return future.result(timeout=SECONDS_BETWEEN_LOOKS)
        except futures.TimeoutError:
            _end_if_a_worker_died(pool)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed, often for lack of memory: try --workers 1"
            ) from error


def _end_if_a_worker_died(pool: ProcessPoolExecutor) -> None:
    """Break the pool where a worker died in the middle of sending a result.

    The executor then waits for the rest of it without end, since it holds the other end of the pipe
    itself; with that end closed it finds the pool broken.
    """
    processes = list((pool._processes or {}).values())
    if any(process.exitcode is not None for process in processes):
        for process in processes:
            process.kill()
        pool._result_queue._writer.close()  # type: ignore[attr-defined]  # a private name


def _follow_parent():
    """Leave signals to the parent, and end when it does, however it ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def record_game(job: GameJob) -> list[Segment]:
    """Play one game to its end or `max_steps`; more than one segment only when rewinding."""
    env = _env(job.emulator)
    rng = np.random.default_rng(job.seed)
    policy = make_policy(job.policy, job.emulator.game, env.action_meanings, rng)
    has_luck = job.emulator.has_luck
    frame, _ = env.reset(seed=job.seed if has_luck else None)  # a seed reloads the ROM: 0.15 s
    segments = [Segment.begin(job.seed, job.policy.name, frame, env.ram)]
    snapshots: deque = deque(maxlen=MAX_SNAPSHOTS)
    lives, num_vain = env.lives, 0  # rewinds in a row that soon lost the life again
    last_reward = 0  # the step of it
    for step in range(job.max_steps):
        now = segments[-1]
        if job.policy.rewind and step % SNAPSHOT_STEPS == 0:
            state = env.clone_state(include_rng=False)  # a sticky game goes on with other luck
            snapshots.append((state, now.frames[-1], now.ram[-1], lives))
        action = policy.act(now.ram[-1], now.frames[-1])
        frame, reward, terminated, truncated, _ = env.step(action)
        now.append(action, reward, frame, env.ram, terminated)
        lost_life, lives = env.lives < lives, env.lives
        last_reward = step if reward else last_reward
        is_stuck = step - last_reward > STUCK_STEPS and lives > 1
        if job.policy.rewind and lost_life and not is_stuck:
            num_vain = num_vain + 1 if len(now.actions) < SNAPSHOT_STEPS * MAX_BACK else 0
            back = int(rng.integers(MAX_BACK)) + num_vain  # ever further from a ball beyond reach
            for _ in range(min(back, len(snapshots) - 1)):
                snapshots.pop()
            state, frame, ram, lives = snapshots[-1]
            env.restore_state(state)
            segments.append(Segment.begin(job.seed, job.policy.name, frame, ram))
        elif terminated or truncated:
            break
    return _distinct([segment.finish() for segment in segments if len(segment) > 1])


def _distinct(segments: list[Segment]) -> list[Segment]:
    """Leave out what is the same as before: two rewinds may lose a life in the same way."""
    first: dict[bytes, Segment] = {}
    for segment in segments:
        first.setdefault(segment.content, segment)
    return list(first.values())


@functools.cache
def _env(emulator: EmulatorConfig) -> AtariFrameEnv:
    """Keep one emulator a process: loading a ROM takes as long as 150 steps."""
    atexit.register(_env.cache_clear)  # else the emulator's binding reports a leak at exit
    return make_atari_env(config=emulator)


def join_segments(
    segments: list[Segment], first_id: int, is_last_use: bool = False
) -> tuple[dict[str, np.ndarray], list]:
    """Return the arrays of a data file and its list of episodes.

    Args:
        is_last_use: take each segment's frames away, so that memory holds them once.
    """
    lengths = [len(segment) for segment in segments]
    total = sum(lengths)
    arrays: dict[str, np.ndarray] = {
        "frames": np.empty((total, *segments[0].frames.shape[1:]), np.uint8),
        "actions": np.zeros(total, np.uint8),
        "rewards": np.zeros(total, np.float32),
        "terminated": np.zeros(total, np.bool_),
        "truncated": np.zeros(total, np.bool_),
        "episode_ids": np.repeat(np.arange(first_id, first_id + len(segments)), lengths),
        "has_action": np.ones(total, np.bool_),
        "ram": np.concatenate([s.ram for s in segments]),
    }
    arrays["episode_ids"] = arrays["episode_ids"].astype(np.int32)
    episodes, start = [], 0
    for index, segment in enumerate(segments):
        last = start + lengths[index] - 1
        arrays["frames"][start : last + 1] = segment.frames
        if is_last_use:
            segment.frames = []
        arrays["actions"][start:last] = segment.actions
        arrays["rewards"][start:last] = segment.rewards
        arrays["has_action"][last] = False
        arrays["terminated"][last - 1] = segment.terminated
        arrays["truncated"][last - 1] = not segment.terminated
        episodes.append({
            "id": first_id + index, "seed": segment.seed, "policy": segment.policy,
            "frames": lengths[index], "score": float(segment.rewards.sum()),
        })  # fmt: skip
        start = last + 1
    return arrays, episodes
