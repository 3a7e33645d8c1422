"""Games for stable-baselines3: a batch of dreams, or as many emulators, as one of its VecEnvs.

Contract: an observation is the last four grey frames, a channel each; the reward is the sign of the
score; a lost life ends an episode where lives are known. Episodes are counted by VecMonitor alike
in both. Dreams never touch the emulator.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.atari_wrappers import ClipRewardEnv, EpisodicLifeEnv, NoopResetEnv
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecMonitor

from v2.data.emulator import make_atari_env
from v2.data.frames import FRAME_SHAPE, grey_frames
from v2.data.games import EmulatorConfig
from v2.dream_env import DreamAtariVectorEnv
from v2.models.agent_network import AgentConfig

NOOP_STEPS = 30  # an emulator's game begins with up to so many no-ops
MAX_GAME_STEPS = 27_000  # half an hour: an agent that never serves would go on for ever


class OfVectorEnv(VecEnv):
    """A Gymnasium VectorEnv, which must reset in the same step, as a VecEnv."""

    def __init__(self, env: VectorEnv):
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"a VecEnv resets in the same step, the environment has {mode}")
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self):
        seeds: Any = self._seeds if self._seeds[0] is not None else None
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ValueError("a batch of games is reset with the same options for each")
        seen, info = self.env.reset(seed=seeds, options=options or None)
        self.reset_infos = self._infos(info)
        self._reset_seeds()
        self._reset_options()
        return seen

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self):
        seen, rewards, terminated, truncated, info = self.env.step(self._actions)
        is_over = terminated | truncated
        infos, final = self._infos(info), self._infos(info.get("final_info", {}))
        for k in np.flatnonzero(is_over):
            infos[k] = final[k] | {
                "terminal_observation": info["final_obs"][k],
                "TimeLimit.truncated": bool(truncated[k] and not terminated[k]),
            }
        return seen, rewards.astype(np.float32), is_over, infos

    def _infos(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what an info of arrays says of each game."""
        known = {name: (values, info[f"_{name}"]) for name, values in info.items()
                 if f"_{name}" in info and name not in ("final_obs", "final_info")}  # fmt: skip
        return [{name: values[k] for name, (values, mask) in known.items() if mask[k]}
                for k in range(self.num_envs)]  # fmt: skip

    def get_images(self):
        return self.env.render() or [None] * self.num_envs

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices=None) -> list:
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value, indices=None) -> None:
        raise NotImplementedError("a batch of games has one state: make another")

    def env_method(self, method_name: str, *args, indices=None, **kwargs) -> list:
        raise NotImplementedError("a batch of games has no methods of a single one")

    def env_is_wrapped(self, wrapper_class, indices=None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))


def dream_games(num_envs: int, max_episode_steps: int, **flags) -> VecEnv:
    """Return dreams in one batch; flags are those of `DreamAtariVectorEnv`."""
    env = DreamAtariVectorEnv(num_envs, observation="grey", max_episode_steps=max_episode_steps,
                              **flags)  # fmt: skip
    return _stacked(env)


def real_games(num_envs: int, config: EmulatorConfig, episodic_life: bool) -> VecEnv:
    """Return emulators, stepped one after another."""

    def make() -> gymnasium.Env:
        game = make_atari_env(config=config)
        env: gymnasium.Env = NoopResetEnv(game, NOOP_STEPS) if game.noop == 0 else game
        env = gymnasium.wrappers.TimeLimit(env, MAX_GAME_STEPS)
        env = EpisodicLifeEnv(env) if episodic_life else env
        return Grey(ClipRewardEnv(env))

    return _stacked(SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP))


class Grey(gymnasium.ObservationWrapper):
    """Frames as luminance, as a dream's observation `grey` is."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 255, (*FRAME_SHAPE[:2], 1), np.uint8)

    def observation(self, observation):
        return grey_frames(observation)


def _stacked(env: VectorEnv) -> VecEnv:
    return VecFrameStack(VecMonitor(OfVectorEnv(env)), AgentConfig.stacked_frames, "last")
