"""Who plays from pixels alone: saved agents, scripts with errors, held keys and chance.

Contract: a player sees frames, of the game or of a dream, and nothing else, so that it is the same
inside and outside. It plays B games at once; all of its luck comes from a seed. Knows nothing of
emulators, dreams or training.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from v2.data.atari_dataset import NUM_RAM_BYTES
from v2.data.frames import grey_frames
from v2.data.games import differing_settings, game_directory
from v2.data.policies import MIXES, SCRIPTED, STICKY, Policy, make_policy
from v2.eval.objects import detector
from v2.models.agent_network import AgentNetwork
from v2.models.weights import load_agent
from v2.runtime.run_dir import find_checkpoint, shown_path

# share of the steps after which a random key is held, native pixels around the paddle's middle
SCRIPT_ERRORS = ((0.0, 3.0), (0.02, 5.0), (0.05, 8.0), (0.12, 12.0), (0.3, 20.0))


class Player(Protocol):
    def begin(self, num_games: int, seed: int) -> None:
        """Forget what was seen: so many games begin."""

    def act(self, frames: np.ndarray) -> np.ndarray:
        """Choose the actions of all games, int (B,), from their frames, (B, 84, 64, 3)."""


class AgentPlayer:
    """A saved agent; its actions are drawn from its policy, as in training.

    Args:
        is_greedy: take the likeliest action instead.
    """

    def __init__(self, network: AgentNetwork, is_greedy: bool = False):
        self.network, self.is_greedy = network.eval(), is_greedy

    def begin(self, num_games: int, seed: int) -> None:
        config = self.network.config
        self.stack = np.zeros((num_games, config.stacked_frames, config.height, config.width),
                              np.uint8)  # fmt: skip
        self.rng = np.random.default_rng(seed)

    def act(self, frames: np.ndarray) -> np.ndarray:
        self.stack = np.roll(self.stack, -1, axis=1)
        self.stack[:, -1] = grey_frames(frames)[..., 0]
        with torch.inference_mode():
            logits, _ = self.network(torch.from_numpy(self.stack).float() / 255)
        if self.is_greedy:
            return logits.argmax(1).numpy()
        chance = self.rng.gumbel(size=logits.shape)  # the largest sum is a draw from the softmax
        return (logits.double().numpy() + chance).argmax(1)


class HeldKey:
    def __init__(self, action: int):
        self.action = action

    def begin(self, num_games: int, seed: int) -> None:
        pass

    def act(self, frames: np.ndarray) -> np.ndarray:
        return np.full(len(frames), self.action)


class PolicyPlayer:
    """A policy of `v2.data.policies` in each game; its memory is written from what frames show.

    Args:
        make: a generator -> the policy.
        is_blind: it reads no memory.
    """

    def __init__(self, game: str, make: Callable[[np.random.Generator], Policy],
                 is_blind: bool = False):  # fmt: skip
        self.game, self.make, self.is_blind = game, make, is_blind

    def begin(self, num_games: int, seed: int) -> None:
        self.policies = [self.make(rng) for rng in np.random.default_rng(seed).spawn(num_games)]

    def act(self, frames: np.ndarray) -> np.ndarray:
        memory = np.zeros((len(frames), NUM_RAM_BYTES), np.uint8)
        if not self.is_blind:
            _, memory = detector.seen_memory(self.game, frames)
        pairs = zip(self.policies, memory, strict=True)
        return np.array([policy.act(ram) for policy, ram in pairs])


@dataclass(frozen=True)
class Named:
    name: str
    player: Player
    emulator: dict | None = None  # settings that an agent learnt with; None: any

    def check_learnt_with(self, settings: dict, where: str) -> None:
        """Check that it learnt with the settings of a game or a dream; a ValueError with both."""
        if differing := differing_settings(self.emulator or settings, settings):
            raise ValueError(f"{self.name} learnt with {'; '.join(differing)} as in {where}")


def graded_players(game: str, action_meanings: list[str]) -> list[Named]:
    """Return players from no skill to as much as a script has."""
    made = [Named(f"holds {name}", HeldKey(action_meanings.index(name)))
            for name in ("NOOP", "RIGHT") if name in action_meanings]  # fmt: skip
    made.append(random_player(game, action_meanings))
    if has_script(game):
        made += [_script(game, action_meanings, *errors) for errors in reversed(SCRIPT_ERRORS)]
    return made


def random_player(game: str, action_meanings: list[str]) -> Named:
    """Return the player who holds random keys for a while, as people do."""
    make = lambda rng: make_policy(STICKY, game, action_meanings, rng)  # noqa: E731
    return Named("random", PolicyPlayer(game, make, is_blind=True))


def scripted_player(game: str, action_meanings: list[str]) -> Named:
    """Return the script of the collector, which here sees pixels only."""
    return _script(game, action_meanings, SCRIPTED.error_prob, SCRIPTED.aim_sd)


def has_script(game: str) -> bool:
    return SCRIPTED in MIXES.get(game, ()) and detector.has_truth(game)


def _script(game: str, action_meanings: list[str], error_prob: float, aim_sd: float) -> Named:
    config = replace(SCRIPTED, error_prob=error_prob, aim_sd=aim_sd)
    name = f"script, errors {error_prob:g}, aim {aim_sd:g} px"
    make = lambda rng: make_policy(config, game, action_meanings, rng)  # noqa: E731
    return Named(name, PolicyPlayer(game, make))


def load_agent_player(name: str, game: str, num_actions: int, is_greedy: bool = False) -> Named:
    """Load an agent of a game: a file, a run's folder or name, or `latest`.

    Raises:
        FileNotFoundError, ValueError: no such agent, or one of another game.
    """
    advice = f"train one: python v2/train/train_agent.py --game {game}"
    path = find_checkpoint(name, "agent", game_directory(game), advice)
    network, info = load_agent(path)
    if info.get("game") != game or network.config.num_actions != num_actions:
        raise ValueError(
            f"{shown_path(path)} plays {info.get('game')} with {network.config.num_actions} "
            f"actions, not {game} with {num_actions}: give --game {info.get('game')}"
        )
    return Named(shown_path(path), AgentPlayer(network, is_greedy), info.get("emulator"))
