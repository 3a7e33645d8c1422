"""A dream without a model: it goes on from the last frame it was given, and counts its calls."""

import time
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np


class FakeState(NamedTuple):
    frame: np.ndarray
    num_steps: int


class FakeEngine:
    """Show the last real frame for ever, one row of it lit per step."""

    num_parameters = {"vqvae": 1_000_000, "world_model": 2_000_000}
    source = runtime = "a fake"
    device = SimpleNamespace(type="none")

    def __init__(self, num_actions: int = 4, seconds: float = 0.0):
        self.num_actions, self.seconds, self.info = num_actions, seconds, {}
        self.last_reward = self.last_terminated = 0.0
        self.history: FakeState | None = None
        self.resets: list[tuple] = []
        self.actions: list[int] = []

    def reset(self, frames, actions=None):
        self.resets.append((np.array(frames), np.array(actions)))
        self.history = FakeState(np.array(frames[-1]), 0)
        return self.frame()

    def step(self, action):
        assert 0 <= action < self.num_actions
        time.sleep(self.seconds)
        self.actions.append(action)
        frame = self.history.frame.copy()
        frame[80, self.history.num_steps % 64] = 40 + 10 * action
        self.history = FakeState(frame, self.history.num_steps + 1)
        return self.frame()

    def frame(self):
        return self.history.frame.copy()

    def restore(self, state, rng_state=None):
        self.history = state

    rng_state = None

    @property
    def tokens(self):
        return self.encode(self.history.frame[None])[0]

    def encode(self, frames):
        patches = np.asarray(frames).reshape(-1, 21, 4, 16, 4, 3)
        return patches.mean((2, 4, 5)).astype(int) // 8

    def decode(self, tokens):
        grey = np.repeat(np.repeat(np.asarray(tokens) * 8, 4, 1), 4, 2)
        return np.repeat(grey[..., None], 3, -1).astype(np.uint8)
