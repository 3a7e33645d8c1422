"""Running an engine over clips: batched open-loop rollouts, one engine for every metric.

Contract: an engine is whatever has `reset(frames, actions)`, `restart(rows)`, `step(actions)`,
`tokens`, `logits`, `last_reward`, `last_terminated`, `encode(frames)` and `decode(tokens)` as
v2.dream.DreamEngine has them. One that `has_exact_age` is told at its reset what the recording
before the history tells. The evaluation knows nothing else of it, so that fakes fit in.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from v2.data.ages import token_ages
from v2.data.atari_dataset import GameData
from v2.data.tokens import encode_frames
from v2.eval.intervals import Metric
from v2.eval.starts import Clips

BATCH = 24  # dreams at once; more gains nothing on 2 cores
WARM_UP_STEPS = 5  # before steps are timed
Scores = dict[str, Metric]  # by the metric's name
Progress = Callable[[int], object] | None  # told how many steps were done since the last time


class Engine(Protocol):
    grid: tuple[int, int]
    logits: Any  # (B, N, K) tensor or None
    last_reward: np.ndarray  # (B,) predicted sign
    last_terminated: np.ndarray  # (B,) probability

    @property
    def tokens(self) -> np.ndarray: ...  # (B, 21, 16)

    def reset(self, frames: np.ndarray, actions: np.ndarray | None = None): ...
    def restart(self, rows: np.ndarray) -> None: ...
    def step(self, action: np.ndarray) -> np.ndarray: ...
    def encode(self, frames: np.ndarray) -> np.ndarray: ...
    def decode(self, tokens: np.ndarray) -> np.ndarray: ...


@dataclass
class Dreams:
    """What B dreams showed at the kept horizons, by their place in `horizons`."""

    horizons: list[int]
    frames: np.ndarray  # uint8 (B, len(horizons), 84, 64, 3)
    tokens: np.ndarray  # uint8 or more (B, len(horizons), N)
    ends: np.ndarray  # (B, len(horizons)): how probable it is that the step ends the game

    def at(self, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Return frames and tokens of one horizon."""
        index = self.horizons.index(horizon)
        return self.frames[:, index], self.tokens[:, index]


def known_ages(engine, data: GameData) -> np.ndarray | None:
    """Return the `token_ages` of recorded frames, uint8 (M, N), if the engine counts them."""
    if not getattr(engine, "has_exact_age", False):
        return None
    tokens = np.concatenate([
        encode_frames(engine.vqvae, data.frames[chunk], engine.device)
        for chunk in chunks(len(data), 256)
    ])  # fmt: skip
    return token_ages(tokens, data.episode_ids)


def begin(
    engine: Engine, history: np.ndarray, past_actions: np.ndarray, ages: np.ndarray | None
) -> None:
    """Reset an engine to histories, with the ages of their last tokens where they are known."""
    known = {} if ages is None else {"age": ages}
    engine.reset(history, past_actions, **known)


def begin_clips(engine: Engine, clips: Clips, chunk: slice | np.ndarray) -> None:
    """Reset an engine to the histories of some clips."""
    ages = None if clips.ages is None else clips.ages[chunk]
    begin(engine, clips.history[chunk], clips.past_actions[chunk], ages)


def dream(
    engine: Engine,
    history: np.ndarray,
    past_actions: np.ndarray,
    actions: np.ndarray,
    horizons: list[int] | None = None,
    progress: Progress = None,
    ages: np.ndarray | None = None,
) -> Dreams:
    """Dream B clips in batches, open loop.

    Args:
        history: uint8 (B, 4, 84, 64, 3); past_actions: (B, 3); actions: (B, H).
        horizons: those to keep; default: all.
        ages: (B, N) of the last frames' tokens, for an engine that counts them.
    """
    horizons = horizons or list(range(1, actions.shape[1] + 1))
    wholes: list[np.ndarray] = []  # filled in place: joined parts would be held twice
    for chunk in chunks(len(history)):
        of_chunk = None if ages is None else ages[chunk]
        begin(engine, history[chunk], past_actions[chunk], of_chunk)
        frames, tokens, ends = [], [], []
        for h in range(1, max(horizons) + 1):
            frame = engine.step(actions[chunk, h - 1].astype(np.int64))
            if h in horizons:
                frames.append(frame)
                tokens.append(flat(engine.tokens))
                ends.append(engine.last_terminated)
            if progress:
                progress(len(frame))
        parts = [np.stack(part, 1) for part in (frames, tokens, ends)]
        wholes = wholes or [np.empty((len(history), *p.shape[1:]), p.dtype) for p in parts]
        for whole, part in zip(wholes, parts, strict=True):
            whole[chunk] = part
    return Dreams(list(horizons), *wholes)


def encode(engine: Engine, frames: np.ndarray) -> np.ndarray:
    """Tokenize many frames in batches, (M, N)."""
    return np.concatenate([flat(engine.encode(frames[c])) for c in chunks(len(frames), 64)])


def decode(engine: Engine, tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Turn tokens (M, N) into frames in batches."""
    tokens = tokens.reshape(len(tokens), *grid)
    return np.concatenate([engine.decode(tokens[c]) for c in chunks(len(tokens), 32)])


def round_trip(engine: Engine, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the tokenizer keeps of frames, and their tokens (M, N)."""
    grids = [engine.encode(frames[c]) for c in chunks(len(frames), 32)]
    kept = np.concatenate([engine.decode(grid) for grid in grids])
    return kept, np.concatenate([flat(grid) for grid in grids])


def flat(tokens: np.ndarray) -> np.ndarray:
    """Return tokens (B, h, w) as (B, N)."""
    return np.asarray(tokens).reshape(len(tokens), -1)


def speed_scores(engine: Engine, clips: Clips, steps_per_second: float, steps: int = 60) -> Scores:
    """Time single dream steps on this device, after a few to warm up.

    Args:
        steps_per_second: of the real game.
    """
    begin_clips(engine, clips, slice(1))
    seconds = []
    for k in range(WARM_UP_STEPS + steps):
        action = clips.actions[:1, k % clips.actions.shape[1]].astype(np.int64)
        began = time.perf_counter()
        engine.step(action)
        seconds.append(time.perf_counter() - began)
    milliseconds = 1000 * np.array(seconds[WARM_UP_STEPS:])
    rate = 1000 / milliseconds.mean()
    figures = {
        "steps_per_second": rate,
        "latency_p50_ms": np.percentile(milliseconds, 50),
        "latency_p95_ms": np.percentile(milliseconds, 95),
        "real_time_factor": rate / steps_per_second,
    }
    return {f"speed/{name}": Metric(float(value), num_samples=steps)
            for name, value in figures.items()}  # fmt: skip


def chunks(count: int, size: int = BATCH) -> Iterator[slice]:
    """Yield slices that cover a range."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
