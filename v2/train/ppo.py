"""PPO of stable-baselines3 (arXiv 1707.06347) for the agent: networks in, networks out.

Contract: what is learnt leaves as an `AgentNetwork`, so that playing an agent needs no
stable-baselines3 and unpickles nothing. Knows nothing of run folders and of where games come from.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv

from v2.models.agent_network import AgentConfig, AgentNetwork, AgentTrunk
from v2.train.recipe import AgentRecipe

LOGGED = ("entropy_loss", "value_loss", "approx_kl", "explained_variance")


class Features(BaseFeaturesExtractor):
    """The agent's trunk, as stable-baselines3 takes it."""

    def __init__(self, observation_space, config: AgentConfig):
        super().__init__(observation_space, config.hidden_dim)
        self.trunk = AgentTrunk(config)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.trunk(observations)


def make_ppo(games: VecEnv, config: AgentConfig, recipe: AgentRecipe, device, seed: int) -> PPO:
    policy = {"net_arch": [], "features_extractor_class": Features,
              "features_extractor_kwargs": {"config": config}}  # fmt: skip
    return PPO(
        "CnnPolicy", games, learning_rate=lambda share_left: recipe.lr * max(share_left, 0.0),
        n_steps=recipe.rollout_steps, batch_size=recipe.batch_size, n_epochs=recipe.passes,
        gamma=recipe.discount, gae_lambda=recipe.gae_lambda, clip_range=recipe.clip_range,
        ent_coef=recipe.entropy_weight, vf_coef=recipe.value_weight,
        max_grad_norm=recipe.max_grad_norm, device=device, seed=seed, policy_kwargs=policy,
    )  # fmt: skip


def network_of(ppo: PPO, config: AgentConfig) -> AgentNetwork:
    """Return what was learnt as a network of its own."""
    network = AgentNetwork(config)
    policy: Any = ppo.policy  # whose parts torch takes for tensors
    network.trunk.load_state_dict(policy.features_extractor.trunk.state_dict())
    network.to_logits.load_state_dict(policy.action_net.state_dict())
    network.to_value.load_state_dict(policy.value_net.state_dict())
    return network


def go_on_from(ppo: PPO, network: AgentNetwork, optimizer: dict, step: int) -> None:
    """Let PPO continue from what a run has saved."""
    policy: Any = ppo.policy
    policy.features_extractor.trunk.load_state_dict(network.trunk.state_dict())
    policy.action_net.load_state_dict(network.to_logits.state_dict())
    policy.value_net.load_state_dict(network.to_value.state_dict())
    policy.optimizer.load_state_dict(optimizer)
    ppo.num_timesteps = step


def learn(ppo: PPO, num_steps: int, on_step: Callable[[], bool],
          on_update: Callable[[int, dict], None]) -> None:  # fmt: skip
    """Learn until so many steps are done, or `on_step` returns False.

    Args:
        on_step: called after each step of all games.
        on_update: called with the steps and the figures after each update, and at the end.
    """
    remaining = num_steps - ppo.num_timesteps
    if remaining > 0:
        flags: Any = {"log_interval": None, "reset_num_timesteps": False}
        ppo.learn(remaining, _Calls(on_step, on_update), **flags)


class _Calls(BaseCallback):
    def __init__(self, on_step: Callable[[], bool], on_update: Callable[[int, dict], None]):
        super().__init__()
        self.on_step_done, self.on_update = on_step, on_update

    def _on_training_start(self) -> None:
        self.num_learnt = self.num_told = self.num_timesteps  # steps that updates have seen

    def _on_step(self) -> bool:
        return self.on_step_done()

    def _on_rollout_end(self) -> None:  # the update follows
        self.num_learnt = self.num_timesteps

    def _on_rollout_start(self) -> None:
        self._tell()

    def _on_training_end(self) -> None:
        self._tell()

    def _tell(self) -> None:
        if self.num_learnt > self.num_told:
            self.num_told = self.num_learnt
            self.on_update(self.num_learnt, self._figures())

    def _figures(self) -> dict:
        episodes = list(self.model.ep_info_buffer or ())  # the last hundred
        figures = {name: self.logger.name_to_value.get(f"train/{name}", np.nan) for name in LOGGED}
        means = {name: float(np.mean([e[key] for e in episodes])) if episodes else np.nan
                 for name, key in (("episode_return", "r"), ("episode_steps", "l"))}  # fmt: skip
        return means | figures
