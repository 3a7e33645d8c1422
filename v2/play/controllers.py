"""Who plays: a person, random held keys, a script that reads RAM or the dreamed picture, an agent.

Contract: a controller sees what the mode lets it see: the real game's memory where that game runs,
and nothing but the dreamed frame in a dream; an agent sees frames alone. Knows nothing of windows.
"""

from collections.abc import Sequence

import numpy as np

from v2.agents.players import Player, has_script
from v2.data.policies import SCRIPTED, STICKY, Policy, make_policy
from v2.eval.objects import detector
from v2.play.keys import ActionMap
from v2.play.session import PlaySession

AGENT = "agent"


def controller_names(game: str) -> tuple[str, ...]:
    """Return who can play any time, a person first; a saved agent may join them."""
    return ("human", "random", *(["scripted"] if has_script(game) else []))


class Controllers:
    """All controllers of a game, one of them in charge.

    Args:
        name: who begins; one of `controller_names`, or `agent`.
        agent: a saved agent, which then is the last of them.

    Raises:
        ValueError: a controller that the game lacks.
    """

    def __init__(self, game: str, actions: ActionMap, name: str, seed: int,
                 agent: Player | None = None):  # fmt: skip
        self.game, self.actions, self.agent = game, actions, agent
        of_game = controller_names(game)
        self.names = (*of_game, *([AGENT] if agent else []))
        if name not in self.names:
            known = ", ".join(self.names)
            raise ValueError(f"--policy: {game} has no {name} controller: use {known}")
        self.name = name
        rng = np.random.default_rng(seed)
        policies = {"random": STICKY, "scripted": SCRIPTED}
        self._policies: dict[str, Policy] = {
            key: make_policy(policies[key], game, actions.meanings, rng) for key in of_game[1:]
        }
        if agent:
            agent.begin(1, seed)

    def next(self) -> str:
        """Hand over to the next controller and return its name."""
        self.name = self.names[(self.names.index(self.name) + 1) % len(self.names)]
        return self.name

    def act(self, session: PlaySession, inputs: Sequence[str]) -> int:
        """Choose the action of this step; `inputs` are a person's keys."""
        if self.agent and self.name == AGENT:
            return int(self.agent.act(self._seen(session))[0])
        ram = session.ram
        if self.name == "scripted" and session.mode == "dream":
            _, memory = detector.seen_memory(self.game, session.moment.dream_frame[None])
            ram = memory[0]
        if self.name == "human":
            return self.actions.action(inputs)
        return self._policies[self.name].act(ram)

    def _seen(self, session: PlaySession) -> np.ndarray:
        moment = session.moment
        return (moment.dream_frame if session.mode == "dream" else moment.real_frame)[None]
