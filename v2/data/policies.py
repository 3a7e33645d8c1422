"""How actions are chosen while collecting.

Contract: a policy maps the emulator's memory, or the frame, to an action index and draws only from
the generator it was given. A policy without randomness would repeat one game for ever, so every
scripted policy aims at random offsets and errs. Knows nothing of emulators or files.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

MIN_HOLD_STEPS, MAX_HOLD_STEPS = 2, 10
MIN_HELD_STEPS, MAX_HELD_STEPS = 10, 60  # of held keys: across a road, along a track
COARSE_BLOCKS, COARSE_LEVEL = (7, 8), 12  # blocks of a frame, grey levels that count as one


class Policy(Protocol):
    def act(self, ram: np.ndarray, frame: np.ndarray | None = None) -> int:
        """Choose an action from the memory, uint8 (128,), or the frame, uint8 (84, 64, 3)."""


@dataclass(frozen=True)
class PolicyConfig:
    """One line of the mix; shares are of frames."""

    name: str
    share: float
    kind: str  # random, sticky, held, curious or scripted
    error_prob: float = 0.0  # chance a step that a scripted policy starts to hold a random key
    aim_sd: float = 4.0  # native pixels around the paddle's middle
    rewind: bool = False  # go back to a saved emulator state after a life is lost


UNIFORM = PolicyConfig("random", 0.05, "random")
STICKY = PolicyConfig("sticky", 0.10, "sticky")
SCRIPTED = PolicyConfig("scripted", 0.40, "scripted", error_prob=0.005, aim_sd=3.0)
CLUMSY = PolicyConfig("clumsy", 0.20, "scripted", error_prob=0.04, aim_sd=5.0)
REWIND = PolicyConfig("rewind", 0.25, "scripted", error_prob=0.01, rewind=True)

MIXES = {
    "breakout": (SCRIPTED, CLUMSY, REWIND, STICKY, UNIFORM),
    "pong": (SCRIPTED, CLUMSY, STICKY, UNIFORM),
}
ANY_GAME = (  # needs no knowledge of the game
    PolicyConfig("sticky", 0.35, "sticky"), PolicyConfig("held", 0.25, "held"),
    PolicyConfig("curious", 0.25, "curious"), PolicyConfig("random", 0.15, "random"),
)  # fmt: skip
POLICY_NAMES = ("mix", "random", "sticky", "held", "curious", "scripted", "clumsy", "rewind")


def policy_mix(name: str, game: str) -> list[PolicyConfig]:
    """Return the policies of a mix with shares that sum to 1.

    Raises:
        ValueError: an unknown name, or a scripted policy for a game that has none.
    """
    if name not in POLICY_NAMES:
        raise ValueError(f"no policy named {name!r}: use one of {', '.join(POLICY_NAMES)}")
    known = MIXES.get(game, ANY_GAME)
    chosen = [config for config in known if name in ("mix", config.name)]
    chosen = chosen or [config for config in ANY_GAME if name == config.name]
    if not chosen:
        others = ", ".join(config.name for config in ANY_GAME)
        raise ValueError(f"{game} has no {name} policy: use mix, {others}")
    total = sum(config.share for config in chosen)
    return [replace(config, share=config.share / total) for config in chosen]


def make_policy(
    config: PolicyConfig, game: str, action_meanings: list[str], rng: np.random.Generator
) -> Policy:
    if config.kind == "random":
        return UniformRandom(len(action_meanings), rng)
    if config.kind == "sticky":
        return StickyRandom(len(action_meanings), rng)
    if config.kind == "held":
        return StickyRandom(len(action_meanings), rng, MIN_HELD_STEPS, MAX_HELD_STEPS)
    if config.kind == "curious":
        return Curious(len(action_meanings), rng)
    scripted = {"breakout": BreakoutPolicy, "pong": PongPolicy}[game]
    return scripted(config, action_meanings, rng)


class UniformRandom:
    def __init__(self, num_actions: int, rng: np.random.Generator):
        self.num_actions, self.rng = num_actions, rng

    def act(self, ram: np.ndarray, frame: np.ndarray | None = None) -> int:
        return int(self.rng.integers(self.num_actions))


class StickyRandom:
    """Hold a random key for some steps, 2 to 10 as people do."""

    def __init__(self, num_actions: int, rng: np.random.Generator,
                 min_steps: int = MIN_HOLD_STEPS, max_steps: int = MAX_HOLD_STEPS):  # fmt: skip
        self.num_actions, self.rng = num_actions, rng
        self.min_steps, self.max_steps = min_steps, max_steps
        self.action, self.steps_left = 0, 0

    def act(self, ram: np.ndarray, frame: np.ndarray | None = None) -> int:
        if self.steps_left == 0:
            self.action = int(self.rng.integers(self.num_actions))
            self.steps_left = int(self.rng.integers(self.min_steps, self.max_steps + 1))
        self.steps_left -= 1
        return self.action


class Curious(StickyRandom):
    """Hold the key that leads to what was seen least: count-based, in a table of coarse frames.

    It learns where each key led from each coarse frame; a key that was never tried there leads to
    what was never seen. Ties are drawn.
    """

    def __init__(self, num_actions: int, rng: np.random.Generator):
        super().__init__(num_actions, rng)
        self.num_visits: Counter[bytes] = Counter()
        self.leads_to: dict[tuple[bytes, int], bytes] = {}
        self.last: tuple[bytes, int] | None = None

    def act(self, ram: np.ndarray, frame: np.ndarray | None = None) -> int:
        assert frame is not None
        if self.steps_left == 0:
            here = coarse(frame)
            self.num_visits[here] += 1
            if self.last:
                self.leads_to[self.last] = here
            ahead = [self.leads_to.get((here, action)) for action in range(self.num_actions)]
            counts = np.array([self.num_visits[key] if key else 0 for key in ahead])
            self.action = int(self.rng.choice(np.flatnonzero(counts == counts.min())))
            self.steps_left = int(self.rng.integers(self.min_steps, self.max_steps + 1))
            self.last = here, self.action
        self.steps_left -= 1
        return self.action


def coarse(frame: np.ndarray) -> bytes:
    """Return the grey of some blocks in a few levels: what looks alike is equal."""
    rows, columns = COARSE_BLOCKS
    blocks = frame.reshape(rows, frame.shape[0] // rows, columns, frame.shape[1] // columns, 3)
    return (blocks.mean((1, 3, 4)) // COARSE_LEVEL).astype(np.uint8).tobytes()


class _ScriptedPolicy:
    """Follow a target with a paddle that moves on for a step after its key is released."""

    pending_pixels = 0.0  # the move that the last key still causes
    dead_zone_pixels = 0.0

    def __init__(self, config: PolicyConfig, action_meanings: list[str], rng: np.random.Generator):
        self.config, self.rng = config, rng
        self.actions = {name: index for index, name in enumerate(action_meanings)}
        self.sticky = StickyRandom(len(action_meanings), rng)
        self.error_steps = 0
        self.aim = self._new_aim()
        self.last_sign = 0

    def act(self, ram: np.ndarray, frame: np.ndarray | None = None) -> int:
        ram = ram.astype(int)
        if self.error_steps == 0 and self.rng.random() < self.config.error_prob:
            self.error_steps = int(self.rng.integers(MIN_HOLD_STEPS, MAX_HOLD_STEPS + 1))
            self.sticky.steps_left = 0
        if self.error_steps:
            self.error_steps -= 1
            action = self.sticky.act(ram)
        else:
            action = self._play(ram)
        self.last_sign = self._sign_of(action)
        return action

    def _new_aim(self) -> float:
        return float(self.rng.normal(0, self.config.aim_sd))

    def _toward(self, distance: float) -> int:
        distance -= self.last_sign * self.pending_pixels
        return int(np.sign(distance)) if abs(distance) > self.dead_zone_pixels else 0

    def _play(self, ram: np.ndarray) -> int:
        raise NotImplementedError

    def _sign_of(self, action: int) -> int:
        raise NotImplementedError


class BreakoutPolicy(_ScriptedPolicy):
    """Reads ball x ram[99] - 49, ball y ram[101] + 9 (0: no ball), paddle x ram[72] - 47."""

    pending_pixels = 11.5
    dead_zone_pixels = 6.0
    left_wall, right_wall, paddle_top = 8, 150, 185  # of the ball's left and top edge

    def __init__(self, *args):
        super().__init__(*args)
        self.last_ball = None

    def _play(self, ram: np.ndarray) -> int:
        if ram[101] == 0:
            self.last_ball = None
            wait = self.rng.random() < 0.5
            return self.actions["NOOP" if wait else "FIRE"]
        ball = np.array([ram[99] - 49, ram[101] + 9], float)
        velocity = np.zeros(2) if self.last_ball is None else ball - self.last_ball
        if velocity[1] < 0 and self.rng.random() < 0.1:
            self.aim = self._new_aim()
        self.last_ball = ball
        distance = self._landing(ball, velocity) + 1 + self.aim - (ram[72] - 47 + 8)
        return self.actions[("LEFT", "NOOP", "RIGHT")[self._toward(distance) + 1]]

    def _landing(self, ball: np.ndarray, velocity: np.ndarray) -> float:
        """Return where a falling ball meets the paddle's height, with reflections at the walls."""
        if velocity[1] <= 0:
            return ball[0]
        steps = max(0.0, self.paddle_top - ball[1]) / velocity[1]
        width = self.right_wall - self.left_wall
        offset = (ball[0] + steps * velocity[0] - self.left_wall) % (2 * width)
        return self.left_wall + min(offset, 2 * width - offset)

    def _sign_of(self, action: int) -> int:
        return (action == self.actions["RIGHT"]) - (action == self.actions["LEFT"])


class PongPolicy(_ScriptedPolicy):
    """Reads ball y ram[54] and own paddle y ram[51]; RIGHT moves up, LEFT down."""

    pending_pixels = 6.0
    dead_zone_pixels = 4.0

    def _play(self, ram: np.ndarray) -> int:
        if ram[54] == 0 or ram[49] == 0:
            self.aim = self._new_aim()
            return self.actions["FIRE" if self.rng.random() < 0.5 else "NOOP"]
        if self.rng.random() < 0.05:
            self.aim = self._new_aim()
        move = self._toward(ram[54] + self.aim - ram[51])
        return self.actions[("RIGHT", "NOOP", "LEFT")[move + 1]]

    def _sign_of(self, action: int) -> int:
        return (action == self.actions["LEFT"]) - (action == self.actions["RIGHT"])
