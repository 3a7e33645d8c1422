"""Who plays: a person, random held keys, or a script that reads RAM or the dreamed picture.

Contract: a player sees what the mode lets it see: the real game's memory where that game runs, and
nothing but the dreamed frame in a dream. Knows nothing of windows.
"""

from collections.abc import Sequence

import numpy as np

from v2.controls import ActionMap
from v2.data.atari_dataset import NUM_RAM_BYTES
from v2.data.policies import MIXES, SCRIPTED, STICKY, Policy, make_policy
from v2.eval import truth
from v2.play_session import PlaySession


def player_names(game: str) -> tuple[str, ...]:
    """Return who can play a game."""
    has_script = SCRIPTED in MIXES.get(game, ())
    return ("human", "random", *(["scripted"] if has_script else []))


class Players:
    """All players of a game, one of them in charge.

    Args:
        name: who begins; one of `player_names`.
    """

    def __init__(self, game: str, actions: ActionMap, name: str, seed: int):
        self.game, self.actions = game, actions
        self.names = player_names(game)
        if name not in self.names:
            raise ValueError(f"--policy: {game} has no {name} player: use {', '.join(self.names)}")
        self.name = name
        rng = np.random.default_rng(seed)
        policies = {"random": STICKY, "scripted": SCRIPTED}
        self._policies: dict[str, Policy] = {
            key: make_policy(policies[key], game, actions.meanings, rng) for key in self.names[1:]
        }

    def next(self) -> str:
        """Hand over to the next player and return its name."""
        self.name = self.names[(self.names.index(self.name) + 1) % len(self.names)]
        return self.name

    def act(self, session: PlaySession, inputs: Sequence[str]) -> int:
        """Choose the action of this step; `inputs` are a person's keys.

        In a dream that it cannot read the script hands over to the random player.
        """
        ram = session.ram
        if self.name == "scripted" and session.mode == "dream":
            if self.game in FRAME_READERS:
                ram = FRAME_READERS[self.game](session.moment.dream_frame)
            else:
                self.name = "random"
        if self.name == "human":
            return self.actions.action(inputs)
        return self._policies[self.name].act(ram)


def breakout_ram(frame: np.ndarray) -> np.ndarray:
    """Return the bytes that the scripted player reads, as seen in a frame; uint8 (128,)."""
    objects = truth.read_frames("breakout", frame[None])
    ram = np.zeros(NUM_RAM_BYTES, np.uint8)
    x, y = objects.ball[0] * truth.NATIVE_PIXELS
    if not np.isnan(x):
        ram[99] = np.clip(round(x - 1) + 49, 0, 255)  # the ball is 2 wide and 4 high
        ram[101] = np.clip(round(y - 2) - 9, 1, 255)
    paddle = objects.paddle[0] * truth.NATIVE_PIXELS
    if not np.isnan(paddle):
        ram[72] = np.clip(round(paddle - 8) + 47, 0, 255)
    return ram


FRAME_READERS = {"breakout": breakout_ram}
