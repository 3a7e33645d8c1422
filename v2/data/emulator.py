"""The emulator, made in one way for collecting, evaluating and playing.

Contract: an ALE game, or another environment of Gymnasium, under `EmulatorConfig`'s settings whose
observation is the model's frame. The only module that imports ale_py. Knows nothing of data files,
policies or models.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from v2.data import environments
from v2.data.frames import FRAME_SHAPE, downsample_screen, fit_screen
from v2.data.games import EmulatorConfig, game_id
from v2.runtime.checks import MAX_SEED, whole_number

RENDER_MODES = ("rgb_array", "human")


class BranchStep(NamedTuple):
    """Where A branches are after equally many steps."""

    frames: np.ndarray  # uint8 (A, 84, 64, 3)
    ram: np.ndarray  # uint8 (A, 128)


class AtariFrameEnv(gymnasium.Env):
    """An ALE game whose observation is the model's frame, uint8 (84, 64, 3).

    Args:
        env: the ALE environment that gymnasium made, with `config`'s settings, or what has its
            interface (v2.data.environments.Screens).
    """

    env: Any  # an ALE environment has methods that gymnasium does not name
    action_space: gymnasium.spaces.Discrete

    def __init__(self, env: gymnasium.Env, config: EmulatorConfig):
        self.env, self.config = env, config
        self.observation_space, self.action_space = spaces_of(len(self.action_meanings))
        self.render_mode = env.render_mode
        self.metadata = {"render_modes": RENDER_MODES, "render_fps": config.steps_per_second}
        self.spec = gymnasium.envs.registration.EnvSpec(
            re.sub(r"[^\w-]", "_", f"{config.game}-frames-v0"), "v2.data.emulator:make_atari_env",
            disable_env_checker=True, kwargs={"config": config},
        )  # fmt: skip

    @property
    def ale(self):
        """The emulator's own interface."""
        return self.env.unwrapped.ale

    @property
    def lives(self) -> int:
        return self.ale.lives()

    @property
    def action_meanings(self) -> list[str]:
        return self.env.unwrapped.get_action_meanings()

    @property
    def noop(self) -> int | None:
        """The action that does nothing; None where every one does something."""
        return self.action_meanings.index("NOOP") if "NOOP" in self.action_meanings else None

    def get_action_meanings(self) -> list[str]:
        """Return `action_meanings`, as wrappers of the field ask for them."""
        return self.action_meanings

    @property
    def ram(self) -> np.ndarray:
        """The emulator's memory, uint8 (128,); elsewhere what tells states apart."""
        return self.ale.getRAM()

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        seed = seed if seed is None else whole_number(seed, 0, MAX_SEED, "seed")
        super().reset(seed=seed)
        screen, info = self.env.reset(seed=seed, options=options)
        return self._frame(screen), info

    def step(self, action):
        """Take an action for `frameskip` emulator frames.

        Raises:
            ValueError: what is not an integer from 0 to the number of actions less one.
        """
        action = self._checked(action)
        if not self.config.max_pool:
            screen, reward, terminated, truncated, info = self.env.step(action)
            return self._frame(screen), float(reward), terminated, truncated, info
        total, previous, screen = 0.0, None, None
        for _ in range(self.config.frameskip):
            previous = screen
            screen, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        pooled = screen if previous is None else np.maximum(previous, screen)
        return self._frame(pooled), total, terminated, truncated, info

    def _frame(self, screen: np.ndarray) -> np.ndarray:
        if self.config.is_atari:
            return downsample_screen(screen)
        return fit_screen(screen, self.config.fit)

    def _checked(self, action) -> int:
        hint = f" ({', '.join(self.action_meanings)})"
        return whole_number(action, 0, int(self.action_space.n) - 1, "action", hint)

    def render(self) -> np.ndarray | None:
        """Return the emulator's own screen, uint8 (H, W, 3), in the mode `rgb_array`."""
        return self.env.render() if self.render_mode else None

    def close(self) -> None:
        self.env.close()

    def clone_state(self, include_rng: bool = True) -> Any:
        """Return the emulator's state, for `restore_state`.

        Args:
            include_rng: with the state of the generator that repeats actions by chance; without it
                a sticky game goes on with other luck.
        """
        return self.env.unwrapped.clone_state(include_rng=include_rng)

    def restore_state(self, state) -> None:
        """Go back to a state of `clone_state`.

        Exact but in a sticky game: the action that it may repeat is no part of ALE's states. Other
        environments play again from their seed, which takes the longer the further they are.
        """
        self.env.unwrapped.restore_state(state)

    def branch(self, actions: Sequence[int], num_steps: int) -> Iterator[BranchStep]:
        """Hold each action from this state on: counterfactual branches, one step at a time.

        The environment is left as it was, also between two steps; all branches meet the same luck.
        A branch whose game is over repeats its last frame.
        """
        states = [self.clone_state()] * len(actions)  # of now, not of when the first step is asked
        return self._branch_steps(actions, states, num_steps)

    def _branch_steps(self, actions, states: list, num_steps: int) -> Iterator[BranchStep]:
        is_over = [False] * len(actions)
        last: list[tuple] = [()] * len(actions)
        for _ in range(num_steps):
            here = self.clone_state()
            for k, action in enumerate(actions):
                if is_over[k]:
                    continue
                self.restore_state(states[k])
                frame, _, terminated, truncated, _ = self.step(action)
                last[k], is_over[k] = (frame, self.ram), terminated or truncated
                states[k] = self.clone_state()
            self.restore_state(here)
            yield BranchStep(*(np.stack(part) for part in zip(*last, strict=True)))


def make_atari_env(
    game: str = "breakout", config: EmulatorConfig | None = None, render_mode: str | None = None
) -> AtariFrameEnv:
    """Make the emulator as collecting, evaluating and playing all use it.

    Args:
        game: name in any common spelling, or the id of an environment of Gymnasium; ignored when
            `config` is given.
        render_mode: `rgb_array` lets `render` return the emulator's screen, as RecordVideo needs;
            `human` shows it in Atari's own window.

    Raises:
        ValueError: no such game, setting or render mode.
        FileNotFoundError: the game's ROM is missing.
    """
    config = config or emulator_config(game)
    if render_mode not in (None, *RENDER_MODES):
        known = " or ".join(RENDER_MODES)
        raise ValueError(f"render_mode must be None, {known}, got {render_mode!r}")
    if not config.is_atari:
        if render_mode == "human":
            raise ValueError(f"{config.game} has no window of its own: use render_mode='rgb_array'")
        env = environments.make_environment(config.game, config.env_args)
        repeats = 1 if config.max_pool else config.frameskip
        return AtariFrameEnv(
            environments.Screens(env, repeats, config.action_names, render_mode), config
        )
    try:
        env = gymnasium.make(
            known_games()[config.game],
            obs_type="rgb",
            frameskip=1 if config.max_pool else config.frameskip,
            repeat_action_probability=config.repeat_action_probability,
            full_action_space=config.full_action_space,
            render_mode=render_mode,
            disable_env_checker=True,
        )
    except (gymnasium.error.Error, OSError) as error:
        raise FileNotFoundError(
            f"no ROM of {config.game} ({' '.join(str(error).split())}): ale-py carries it; "
            "unset ALE_ROMS_DIR, or pip install --force-reinstall -r requirements.txt"
        ) from error
    return AtariFrameEnv(env, config)


def spaces_of(num_actions: int) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Discrete]:
    """Return the spaces of a game's frames and of its actions."""
    frames = gymnasium.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
    return frames, gymnasium.spaces.Discrete(num_actions)


def emulator_config(game: str, frameskip: int | None = None, **settings) -> EmulatorConfig:
    """Return the settings of a game; what only an environment itself knows is asked of it.

    Args:
        frameskip: None: Atari's usual one, of another environment 1.
        settings: fields of `EmulatorConfig`.
    Raises:
        ValueError: no such game or setting, or one without discrete actions.
    """
    name = game_id(game)
    config = EmulatorConfig(name, **settings)
    if config.is_atari:
        return dataclasses.replace(config, frameskip=frameskip or config.frameskip)
    env = environments.make_environment(name, config.env_args)
    names = environments.Screens(env, 1, config.action_names, None).meanings
    return dataclasses.replace(
        config, frameskip=frameskip or 1, fit=settings.get("fit") or "pad",
        native_fps=environments.native_fps(env), action_names=",".join(names),
        package=environments.package_of(env),
    )  # fmt: skip


@functools.cache
def known_games() -> dict[str, str]:
    """Return every ALE game, as ROM name -> id in gymnasium's registry."""
    _register()
    specs = [spec for spec in gymnasium.registry.values() if spec.namespace == "ALE"]
    return {spec.kwargs["game"]: spec.id for spec in specs}


def _register():
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)


def emulator_version() -> str:
    import ale_py

    return ale_py.__version__


def package_of(config: EmulatorConfig) -> str:
    """Return the package that an environment comes from here, and its version."""
    return environments.package_of(environments.make_environment(config.game, config.env_args))
