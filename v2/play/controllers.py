"""Who plays: a person, random held keys, or a script that reads RAM or the dreamed picture.

Contract: a controller sees what the mode lets it see: the real game's memory where that game runs,
and nothing but the dreamed frame in a dream. Knows nothing of windows.
"""

from collections.abc import Sequence

import numpy as np

from v2.data.policies import MIXES, SCRIPTED, STICKY, Policy, make_policy
from v2.eval.objects import detector
from v2.play.keys import ActionMap
from v2.play.session import PlaySession


def controller_names(game: str) -> tuple[str, ...]:
    """Return who can play a game, a person first."""
    has_script = SCRIPTED in MIXES.get(game, ())
    return ("human", "random", *(["scripted"] if has_script else []))


class Controllers:
    """All controllers of a game, one of them in charge.

    Args:
        name: who begins; one of `controller_names`.

    Raises:
        ValueError: a controller that the game lacks.
    """

    def __init__(self, game: str, actions: ActionMap, name: str, seed: int):
        self.game, self.actions = game, actions
        self.names = controller_names(game)
        if name not in self.names:
            known = ", ".join(self.names)
            raise ValueError(f"--policy: {game} has no {name} controller: use {known}")
        self.name = name
        rng = np.random.default_rng(seed)
        policies = {"random": STICKY, "scripted": SCRIPTED}
        self._policies: dict[str, Policy] = {
            key: make_policy(policies[key], game, actions.meanings, rng) for key in self.names[1:]
        }

    def next(self) -> str:
        """Hand over to the next controller and return its name."""
        self.name = self.names[(self.names.index(self.name) + 1) % len(self.names)]
        return self.name

    def act(self, session: PlaySession, inputs: Sequence[str]) -> int:
        """Choose the action of this step; `inputs` are a person's keys."""
        ram = session.ram
        if self.name == "scripted" and session.mode == "dream":
            _, memory = detector.seen_memory(self.game, session.moment.dream_frame[None])
            ram = memory[0]
        if self.name == "human":
            return self.actions.action(inputs)
        return self._policies[self.name].act(ram)
