"""The emulator, made in one way for collecting, evaluating and playing.

Contract: an ALE game under `EmulatorConfig`'s settings whose observation is the model's frame. The
only module that imports gymnasium and ale_py. Knows nothing of data files, policies or models.
"""

import functools

import gymnasium
import numpy as np

from v2.data.frames import FRAME_SHAPE, downsample_screen
from v2.data.games import EmulatorConfig


def emulator_version() -> str:
    import ale_py

    return ale_py.__version__


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


class AtariFrameEnv(gymnasium.Wrapper):
    """An ALE game whose observation is the model's frame, uint8 (84, 64, 3)."""

    def __init__(self, env: gymnasium.Env, config: EmulatorConfig):
        super().__init__(env)
        self.config = config
        self.observation_space = gymnasium.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)

    @property
    def action_meanings(self) -> list[str]:
        return self.env.unwrapped.get_action_meanings()

    @property
    def ram(self) -> np.ndarray:
        """The emulator's memory, uint8 (128,)."""
        return self.env.unwrapped.ale.getRAM()

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        screen, info = self.env.reset(seed=seed, options=options)
        return downsample_screen(screen), info

    def step(self, action):
        if not self.config.max_pool:
            screen, reward, terminated, truncated, info = self.env.step(action)
            return downsample_screen(screen), float(reward), terminated, truncated, info
        total, previous, screen = 0.0, None, None
        for _ in range(self.config.frameskip):
            previous = screen
            screen, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        pooled = screen if previous is None else np.maximum(previous, screen)
        return downsample_screen(pooled), total, terminated, truncated, info


def make_atari_env(game: str = "breakout", config: EmulatorConfig | None = None) -> AtariFrameEnv:
    """Make the emulator as collecting, evaluating and playing all use it.

    Args:
        game: name in any common spelling; ignored when `config` is given.
    """
    config = config or EmulatorConfig(game=game)
    try:
        env = gymnasium.make(
            known_games()[config.game],
            obs_type="rgb",
            frameskip=1 if config.max_pool else config.frameskip,
            repeat_action_probability=config.repeat_action_probability,
            full_action_space=config.full_action_space,
            disable_env_checker=True,
        )
    except (gymnasium.error.Error, OSError) as error:
        raise FileNotFoundError(
            f"no ROM of {config.game} ({' '.join(str(error).split())}): ale-py carries it; "
            "unset ALE_ROMS_DIR, or pip install --force-reinstall -r requirements.txt"
        ) from error
    return AtariFrameEnv(env, config)
