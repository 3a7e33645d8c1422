"""Environments of Gymnasium, in the part of the Atari emulator's interface that frames are made by.

Contract: any environment with discrete actions that draws itself (`render_mode="rgb_array"`) gives
screens, names of its actions and states to go back to. A state is the seed and the actions since,
played again; it holds for what is decided by its seed. Knows nothing of frames or files.
"""

import ast
import hashlib
import importlib.metadata
import json
import math
import os
import tempfile
from typing import Any

import gymnasium
import numpy as np

from v2.data.games import MAX_ACTIONS

NUM_RAM_BYTES, DIGEST_BYTES = 128, 16
USUAL_FPS = 30.0  # of an environment that does not say
ALE_ORDER = (
    "NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT",
    "UPFIRE", "RIGHTFIRE", "LEFTFIRE", "DOWNFIRE", "UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE",
    "DOWNLEFTFIRE",
)  # fmt: skip
NAMES = {  # of actions, as the keys that they feel like
    "CartPole": "LEFT,RIGHT", "MountainCar": "LEFT,NOOP,RIGHT", "Acrobot": "LEFT,NOOP,RIGHT",
    "LunarLander": "NOOP,LEFT,UP,RIGHT", "CarRacing": "NOOP,RIGHT,LEFT,UP,DOWN",
    "FrozenLake": "LEFT,DOWN,RIGHT,UP", "CliffWalking": "UP,RIGHT,DOWN,LEFT",
    "Taxi": "DOWN,UP,RIGHT,LEFT,FIRE,DOWNFIRE", "Blackjack": "NOOP,FIRE",
}  # fmt: skip
WHAT_MAKING_RAISES = (  # gymnasium, and environments of others
    gymnasium.error.Error, ImportError, TypeError, ValueError, AssertionError, LookupError,
    AttributeError, RuntimeError, OSError,
)  # fmt: skip
WORDS = {"true": True, "false": False, "none": None, "null": None}  # in any case
MINATAR = {"n": "NOOP", "l": "LEFT", "u": "UP", "r": "RIGHT", "d": "DOWN", "f": "FIRE"}


class NoWayBackError(ValueError):
    """The same seed and actions do not lead to the same state again."""


class Screens(gymnasium.Env):
    """A Gymnasium environment whose observation is its picture.

    Args:
        env: what `gymnasium.make` made, with `render_mode="rgb_array"`.
        repeats: how often an action is repeated in a step, as the emulator's frameskip.
        names: of the actions, with commas between; empty: as far as they are known.
        render_mode: what `render` was asked for.
    """

    action_space: gymnasium.spaces.Discrete

    def __init__(self, env: gymnasium.Env, repeats: int, names: str, render_mode: str | None):
        self.env, self.repeats, self.render_mode = env, repeats, render_mode
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise ValueError(
                f"{_id(env)} has the actions {space}, and a dream knows discrete ones alone: an "
                "argument may choose them, such as --env-arg continuous=False"
            )
        if space.n > MAX_ACTIONS:
            raise ValueError(f"{_id(env)} has {space.n} actions: at most {MAX_ACTIONS} are known")
        self.first_action = int(space.start)
        self.action_space = gymnasium.spaces.Discrete(int(space.n))
        names = names or known_names(env) or usual_names(env)
        self.meanings = [name.strip().upper() for name in names.split(",")]
        if len(self.meanings) != space.n or len(set(self.meanings)) != space.n:
            raise ValueError(
                f"{_id(env)} has {space.n} actions and {','.join(self.meanings)} names "
                f"{len(set(self.meanings))}: give as many names"
            )
        self.seed, self.digest = 0, b""
        self.actions: tuple[int, ...] = ()

    @property
    def ale(self) -> "Screens":
        return self

    def lives(self) -> int:
        return 0

    def getRAM(self) -> np.ndarray:
        """Return what tells states apart, uint8 (128,): a hash of the observation."""
        return np.frombuffer(self.digest.ljust(NUM_RAM_BYTES, b"\0"), np.uint8).copy()

    def get_action_meanings(self) -> list[str]:
        return self.meanings

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.actions = ()
        observation, info = self.env.reset(seed=self.seed, options=options)
        self.digest = _digest(observation)
        return self.render(), info

    def step(self, action):
        total = 0.0
        for _ in range(self.repeats):
            reward, terminated, truncated, info = self._take(int(action))
            total += float(reward)
            if not math.isfinite(total):
                raise ValueError(f"{_id(self.env)} gives the reward {float(reward)}")
            if terminated or truncated:
                break
        return self.render(), total, bool(terminated), bool(truncated), info

    def _take(self, action: int) -> tuple:
        observation, *result = self.env.step(self.first_action + action)
        self.actions = (*self.actions, action)
        self.digest = _digest(observation)
        return tuple(result)

    def render(self) -> np.ndarray:
        screen: Any = self.env.render()
        if isinstance(screen, np.ndarray) and screen.dtype.kind == "f":  # in [0, 1]
            if not ((screen > -0.01) & (screen < 1.01)).all():
                raise ValueError(
                    f"{_id(self.env)} draws {screen.dtype} from {screen.min():.4g} to "
                    f"{screen.max():.4g}: a picture is uint8, or from 0 to 1"
                )
            screen = (255 * screen.clip(0, 1)).round().astype(np.uint8)
        if not isinstance(screen, np.ndarray) or screen.dtype != np.uint8 or screen.ndim != 3:
            shown = getattr(screen, "shape", type(screen).__name__)
            raise ValueError(f"{_id(self.env)} draws {shown}, no picture of uint8 (H, W, 3)")
        return screen

    def close(self) -> None:
        """Leave it open: closing one ends pygame, and with it the window beside it."""

    def clone_state(self, include_rng: bool = True) -> tuple[int, tuple[int, ...], bytes]:
        return self.seed, self.actions, self.digest

    def restore_state(self, state: tuple[int, tuple[int, ...], bytes]) -> None:
        """Go back, or on, to a state of `clone_state`.

        Raises:
            NoWayBackError: the same seed and actions do not lead there again.
        """
        seed, actions, digest = state
        if seed != self.seed or actions[: len(self.actions)] != self.actions:
            self.reset(seed=seed)
        for action in actions[len(self.actions) :]:
            self._take(action)
        if self.digest != digest:
            raise NoWayBackError(f"{_id(self.env)} does not repeat itself from its seed")


def make_environment(name: str, env_args: str) -> gymnasium.Env:
    """Make an environment by its id.

    Args:
        env_args: further arguments, as JSON; empty: none.
    Raises:
        ValueError: no such environment or argument, or a package that it needs is missing.
    """
    # Else, where there is no screen, a library of pygame's says "error" of what is none.
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())
    try:
        return gymnasium.make(
            name, render_mode="rgb_array", disable_env_checker=True,
            **json.loads(env_args or "{}"),
        )  # fmt: skip
    except WHAT_MAKING_RAISES as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"gymnasium cannot make {name} with {env_args or 'no argument'}: {text}"
                         ) from error  # fmt: skip


def read_env_args(texts: list[str]) -> str:
    """Turn `NAME=VALUE` with values as Python or JSON writes them into JSON, in order of names.

    Raises:
        ValueError: with the text that is none.
    """
    found = {}
    for text in texts:
        name, is_there, value = text.partition("=")
        if not is_there or not name.isidentifier():
            raise ValueError(f"--env-arg must be NAME=VALUE, got {text}")
        word = value.lower()
        try:
            found[name] = WORDS[word] if word in WORDS else ast.literal_eval(value)
            json.dumps(found)
        except (SyntaxError, ValueError, TypeError):
            found[name] = value  # a word
    return json.dumps(found, sort_keys=True) if found else ""


def known_names(env: gymnasium.Env) -> str:
    """Return what the actions are called, as keys, with commas between; empty: not known."""
    inner: Any = env.unwrapped
    if hasattr(inner, "get_action_meanings"):
        return ",".join(inner.get_action_meanings())
    game: Any = getattr(getattr(inner, "game", None), "env", None)
    if hasattr(inner, "action_set") and set(getattr(game, "action_map", "?")) <= set(MINATAR):
        return ",".join(MINATAR[game.action_map[k]] for k in inner.action_set)
    names = NAMES.get(_id(env).rpartition("-v")[0].rpartition("/")[2], "")
    return names if names.count(",") + 1 == _num_actions(env) else ""


def usual_names(env: gymnasium.Env) -> str:
    """Return the emulator's names in their order, so that each action has keys."""
    others = [f"OTHER{k}" for k in range(_num_actions(env))]
    return ",".join([*ALE_ORDER, *others][: _num_actions(env)])


def _num_actions(env: gymnasium.Env) -> int:
    return int(env.action_space.n)  # type: ignore[attr-defined]  # discrete


def native_fps(env: gymnasium.Env) -> float:
    """Return the screens a second that an environment is meant to be seen at."""
    return float(env.metadata.get("render_fps") or USUAL_FPS)


def package_of(env: gymnasium.Env) -> str:
    """Return the package that an environment comes from, and its version."""
    module = type(env.unwrapped).__module__.partition(".")[0]
    names = importlib.metadata.packages_distributions().get(module)
    return f"{names[0]} {importlib.metadata.version(names[0])}" if names else module


def _digest(observation) -> bytes:
    is_array = isinstance(observation, np.ndarray)
    content = observation.tobytes() if is_array else repr(observation).encode()
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _id(env: gymnasium.Env) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__
