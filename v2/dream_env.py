"""The dream as a Gymnasium environment, one dream or many in a batch.

    gymnasium.make("v2.dream_env:DreamAtari-v0", game="breakout")
    gymnasium.make_vec("v2.dream_env:DreamAtari-v0", num_envs=32, game="breakout",
                       vectorization_mode="vector_entry_point")

Contract: both are made of `v2.agents.dreams.Dreams`; `reset(seed=)` is exact; no emulator is
started. The reward is the dreamed sign of the score, an episode terminates where the dream says
that its game is over. Importing it registers the id.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from v2.agents.dreams import Dreams, make_dreams
from v2.data.frames import FRAME_SHAPE
from v2.data.games import EmulatorConfig

ENV_ID = "DreamAtari-v0"
RENDER_MODES = ["rgb_array", "human"]
RENDER_SCALE = 4  # pixels of what is rendered a pixel of the frame


def _space(dreams: Dreams) -> Box:
    return Box(0, dreams.highest, dreams.shape, dreams.dtype.type)


def _checked_render_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, *RENDER_MODES):
        known = " or ".join(RENDER_MODES)
        raise ValueError(f"render_mode must be None, {known}, got {render_mode!r}")
    return render_mode


class DreamAtariEnv(gymnasium.Env):
    """One dream as `gymnasium.Env`.

    Args:
        game: name in any common spelling.
        weights: `shipped`, `latest`, a run's name or a path.
        observation: `rgb` (84, 64, 3), `grey` (84, 64, 1) or `tokens` (21, 16).
        episodic_life: a lost life ends an episode, where lives can be read.
        starts: a recording to begin from; None: the committed starts of the game.
        temperature: of the dreamed tokens; 0 takes the likeliest.
        render_mode: `rgb_array` or `human`, a window.
        dreams: instead of all these, one dream with an engine in memory.

    Options of `reset`: `start`, a number, or `phase`: serve, middle or late.
    """

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES,
                                "render_fps": EmulatorConfig().steps_per_second}  # fmt: skip

    def __init__(self, game: str = "breakout", weights: str = "shipped", device: str = "cpu",
                 observation: str = "rgb", starts: str | Path | None = None,
                 episodic_life: bool = False, temperature: float = 0.0,
                 render_mode: str | None = None, dreams: Dreams | None = None):  # fmt: skip
        self.render_mode = _checked_render_mode(render_mode)
        self.dreams = dreams or make_dreams(
            1, game, weights, device, starts, temperature, observation, episodic_life
        )
        self.observation_space = _space(self.dreams)
        self.action_space = Discrete(self.dreams.engine.num_actions)
        self.metadata = self.metadata | {
            "render_fps": self.dreams.starts.emulator.steps_per_second
        }
        self._window: Any = None
        self._is_closed, self._is_running = False, False

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Begin a dream; equal seeds begin equal ones."""
        self._check_open()
        is_seeded = seed is not None or self._np_random is None
        super().reset(seed=seed)
        pick = self.dreams.draw(self.np_random, options)
        if is_seeded:
            self.dreams.seed(self.np_random_seed)
        self.dreams.begin(np.array([0]), np.array([pick]))
        self._is_running = True
        self._show()
        return self.dreams.observations()[0], self._info()

    def step(self, action):
        """Take an action.

        Raises:
            ValueError: no action of the game.
            ResetNeeded: the game is over, or none has begun.
        """
        self._check_open()
        if not self._is_running:
            raise ResetNeeded("no game runs in this dream: call reset() first")
        _check_action(self.action_space, action)
        rewards, is_over = self.dreams.step(np.array([action]))
        self._is_running = not is_over[0]
        self._show()
        seen = self.dreams.observations()[0]
        return seen, float(rewards[0]), bool(is_over[0]), False, self._info()

    def render(self) -> np.ndarray | None:
        """Return the dreamed frame, enlarged, uint8 (336, 256, 3), in the mode `rgb_array`."""
        if self.render_mode != "rgb_array":
            return None
        return _enlarged(self.dreams.frames()[0])

    def close(self) -> None:
        if self._window is not None:
            self._window.close()
        self._window, self._is_closed = None, True

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_window": None}  # a copy opens its own

    def _info(self) -> dict[str, Any]:
        return {name: values[0].item() for name, values in self.dreams.info().items()}

    def _show(self) -> None:
        if self.render_mode == "human":
            self._window = self._window or _Window(f"dream of {self.dreams.game}")
            self._window.show(_enlarged(self.dreams.frames()[0]), self.metadata["render_fps"])

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedEnvironmentError("this dream is closed: make another")


class DreamAtariVectorEnv(VectorEnv):
    """Many dreams in one batch as `gymnasium.vector.VectorEnv`; see `DreamAtariEnv`.

    Args:
        max_episode_steps: steps after which a dream is truncated; None: never.
        autoreset_mode: what follows an episode's end, an `AutoresetMode` or its name: `SAME_STEP`
            (the first observation of the next, and the last of this one as `final_obs` of the
            info), `NEXT_STEP` or `DISABLED` (`reset(options={"reset_mask": ...})` begins some
            anew).
    """

    def __init__(self, num_envs: int = 1, game: str = "breakout", weights: str = "shipped",
                 device: str = "cpu", observation: str = "rgb", starts: str | Path | None = None,
                 episodic_life: bool = False, temperature: float = 0.0,
                 max_episode_steps: int | None = None, render_mode: str | None = None,
                 autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
                 dreams: Dreams | None = None):  # fmt: skip
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or rgb_array, got {render_mode!r}")
        if num_envs < 1 or (max_episode_steps is not None and max_episode_steps < 1):
            raise ValueError(f"num_envs and max_episode_steps must be at least 1, got {num_envs} "
                             f"and {max_episode_steps}")  # fmt: skip
        self.render_mode, self.max_episode_steps = render_mode, max_episode_steps
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.dreams = dreams or make_dreams(
            num_envs, game, weights, device, starts, temperature, observation, episodic_life
        )
        self.num_envs = self.dreams.num_dreams
        fps = self.dreams.starts.emulator.steps_per_second
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps,
                         "autoreset_mode": self.autoreset_mode}  # fmt: skip
        self.single_observation_space = _space(self.dreams)
        self.single_action_space = Discrete(self.dreams.engine.num_actions)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rngs: list[np.random.Generator] = []
        self._is_over = np.zeros(self.num_envs, bool)

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict | None = None):
        """Begin all dreams, or those of `options["reset_mask"]`; dream k takes `seed + k`."""
        self._check_open()
        options = dict(options or {})
        rows = np.flatnonzero(self._mask(options.pop("reset_mask", None)))
        self._seed(seed, rows)
        self._begin(rows, options)
        return self.dreams.observations(), self._info(np.isin(np.arange(self.num_envs), rows))

    def step(self, actions):
        """Take an action in each dream; see the class for what follows an episode's end."""
        self._check_open()
        if self.dreams.engine.history is None:
            raise ResetNeeded("no game runs in these dreams: call reset() first")
        _check_action(self.action_space, actions)
        begins = self._is_over
        if self.autoreset_mode == AutoresetMode.DISABLED and begins.any():
            raise ResetNeeded(f"dreams {np.flatnonzero(begins).tolist()} are over: reset them")
        rewards, terminated = self.dreams.step(np.asarray(actions))
        truncated = self.dreams.ages >= (self.max_episode_steps or np.inf)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP and begins.any():
            self._begin(np.flatnonzero(begins))
            rewards = np.where(begins, 0.0, rewards)
            terminated, truncated = terminated & ~begins, truncated & ~begins
        self._is_over = terminated | truncated
        final: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._is_over.any():
            final = self._final(self._is_over)
            self._begin(np.flatnonzero(self._is_over))
        info = self._info(np.ones(self.num_envs, bool)) | final
        return self.dreams.observations(), rewards, terminated, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return a frame of each dream, as `DreamAtariEnv.render` does."""
        if self.render_mode is None:
            return None
        return tuple(map(_enlarged, self.dreams.frames()))

    def _begin(self, rows: np.ndarray, options: dict | None = None) -> None:
        picks = [self.dreams.draw(self._rngs[row], options) for row in rows]
        self.dreams.begin(rows, np.array(picks))
        self._is_over = self._is_over & ~np.isin(np.arange(self.num_envs), rows)

    def _final(self, is_over: np.ndarray) -> dict[str, Any]:
        """Return the last observations and infos of the episodes that end."""
        seen = np.full(self.num_envs, None, object)
        for row, observation in enumerate(self.dreams.observations()):
            seen[row] = observation if is_over[row] else None
        return {"final_obs": seen, "_final_obs": is_over.copy(),
                "final_info": self._info(is_over), "_final_info": is_over.copy()}  # fmt: skip

    def _info(self, mask: np.ndarray) -> dict[str, Any]:
        known = self.dreams.info()
        return known | {f"_{name}": mask.copy() for name in known}

    def _mask(self, mask: np.ndarray | None) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, bool)
        is_one = isinstance(mask, np.ndarray) and mask.dtype == np.bool_
        if not is_one or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"reset_mask must be {self.num_envs} booleans, some true: {mask!r}")
        if self.dreams.engine.history is None:
            raise ResetNeeded("reset all dreams before some of them")
        return mask

    def _seed(self, seed, rows: np.ndarray) -> None:
        """Seed the dreams that are reset; one whose seed is None keeps its generator."""
        if seed is None and self._rngs:
            return
        seeds = [seed] * self.num_envs if seed is None else seed
        if not isinstance(seeds, Sequence):
            gymnasium.utils.seeding.np_random(seeds)  # refuses what is no seed
            seeds = [seeds + k for k in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be a number or {self.num_envs} of them, got {len(seeds)}")
        made = [gymnasium.utils.seeding.np_random(each) for each in seeds]
        is_first = not self._rngs
        self._rngs = self._rngs or [rng for rng, _ in made]
        for row in rows:
            if seeds[row] is not None:
                self._rngs[row] = made[row][0]
        if is_first or (len(rows) == self.num_envs and seeds[0] is not None):
            self._np_random, self._np_random_seed = made[0]
            self.dreams.seed(made[0][1])  # what tokens are sampled by, which all dreams share

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("these dreams are closed: make others")


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    for known in AutoresetMode:
        if mode in (known, known.name, known.value):
            return known
    names = ", ".join(AutoresetMode.__members__)
    raise ValueError(f"autoreset_mode must be one of {names}, got {mode!r}")


def _check_action(space, action) -> None:
    if not space.contains(np.asarray(action) if space.shape else action):
        raise ValueError(f"action must be in {space}, got {action!r}")


def _enlarged(frame: np.ndarray) -> np.ndarray:
    return frame.repeat(RENDER_SCALE, 0).repeat(RENDER_SCALE, 1)


class _Window:
    """Where the mode `human` shows its frames, in the game's time."""

    def __init__(self, title: str):
        import pygame

        self.pygame = pygame
        pygame.display.init()
        height, width = FRAME_SHAPE[0] * RENDER_SCALE, FRAME_SHAPE[1] * RENDER_SCALE
        self.screen = pygame.display.set_mode((width, height))
        pygame.display.set_caption(title)
        self.clock = pygame.time.Clock()

    def show(self, frame: np.ndarray, fps: float) -> None:
        self.pygame.event.pump()
        self.screen.blit(self.pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        self.pygame.display.flip()
        self.clock.tick(fps)

    def close(self) -> None:
        self.pygame.display.quit()


gymnasium.register(
    ENV_ID,
    entry_point="v2.dream_env:DreamAtariEnv",
    vector_entry_point="v2.dream_env:DreamAtariVectorEnv",
)
