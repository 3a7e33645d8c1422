"""From keys to actions: names of held keys, actions of a game, scripts of keys, the table of keys.

Contract: a game's actions are found by their meanings (RIGHTFIRE is RIGHT and FIRE together), never
by index, so every ALE game has its keys. Where nothing is pressed a game without NOOP, such as
Backgammon, takes its first action. Knows nothing of pygame, emulators or models.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

INPUTS = ("UP", "DOWN", "LEFT", "RIGHT", "FIRE")
OPPOSITES = {"UP": "DOWN", "DOWN": "UP", "LEFT": "RIGHT", "RIGHT": "LEFT"}
ALIASES = {"pong": {"UP": "RIGHT", "DOWN": "LEFT"}}  # its paddle goes up with RIGHT
MAX_SCRIPT_STEPS = 1_000_000

PLAY_KEYS = (
    ("arrows, A D W S", "move"),
    ("SPACE", "fire (serves in Breakout)"),
    ("P", "pause"),
    (".", "one step while paused"),
    ("R", "sync the dream to the real game"),
    ("TAB", "both / dream only / real only"),
    ("M", "who plays: human, random, scripted"),
    ("F", "branches: what each action leads to"),
    ("BACKSPACE", "rewind both by 30 steps"),
    ("V", "save the last 10 seconds as video"),
    ("H", "show or hide these keys"),
    ("Q, ESC", "quit"),
)
REPLAY_KEYS = (
    ("SPACE, P", "play or stop"),
    ("LEFT, RIGHT", "one step back or on"),
    ("DOWN, UP", "30 steps back or on"),
    ("HOME, END", "first or last frame"),
    ("R", "open loop starts here"),
    ("N, B", "next or previous episode"),
    ("V", "save what was shown as video"),
    ("H", "show or hide these keys"),
    ("Q, ESC", "quit"),
)


class ActionMap:
    """Turn the keys that are down into one of a game's actions."""

    def __init__(self, meanings: Sequence[str], aliases: Mapping[str, str] | None = None):
        """Args:
        meanings: the game's action names, such as NOOP, FIRE, RIGHT, LEFT, UPRIGHTFIRE.
        aliases: input -> the input that it stands for in this game; see `ALIASES`.
        """
        self.meanings, self._aliases = list(meanings), aliases or {}
        self._actions = {_inputs_of(name): index for index, name in enumerate(self.meanings)}
        self._known_inputs = frozenset().union(*self._actions)
        self._actions.setdefault(frozenset(), 0)  # a game without NOOP

    def action(self, inputs: Sequence[str]) -> int:
        """Return the action of the inputs that are down, oldest first.

        Of two opposite keys the newer one counts. A combination that the game lacks loses its
        oldest key until it has it: SPACE while RIGHT is held serves in Breakout. Keys that no
        action uses count for nothing; no known key is NOOP, or the first action.
        """
        chosen: list[str] = []
        meant = [self._aliases.get(name, name) for name in inputs]
        for name in [name for name in meant if name in self._known_inputs]:
            chosen = [other for other in chosen if other not in (name, OPPOSITES.get(name))]
            chosen.append(name)
        while chosen and frozenset(chosen) not in self._actions:
            chosen.pop(0)
        return self._actions[frozenset(chosen)]

    def inputs(self, action: int) -> frozenset[str]:
        """Return the keys that an action stands for."""
        return _inputs_of(self.meanings[action])

    def script(self, text: str) -> Iterator[int]:
        """Read a script of actions such as `RIGHT*10,NOOP*5,FIRE`.

        Raises:
            ValueError: at once, for a name that the game lacks, a count below 1, or too many steps.
        """
        parts = [self._script_part(part) for part in text.split(",")]
        if sum(count for _, count in parts) > MAX_SCRIPT_STEPS:
            raise ValueError(f"--keys: more than {MAX_SCRIPT_STEPS:,} steps in all")
        return iter([action for action, count in parts for _ in range(count)])

    def _script_part(self, part: str) -> tuple[int, int]:
        match = re.fullmatch(r"\s*([A-Za-z+]+)\s*(?:\*\s*(\d+))?\s*", part)
        name = match[1].upper().replace("+", "").replace("SPACE", "FIRE") if match else None
        count = int(min(float(match[2] or 1), MAX_SCRIPT_STEPS + 1)) if match else 0
        if count < 1 or not _is_combination(name) or _inputs_of(name) not in self._actions:
            raise ValueError(
                f"--keys: {part.strip()!r} is not NAME or NAME*COUNT with a name of "
                f"{', '.join(self.meanings)}"
            )
        return self._actions[_inputs_of(name)], count


def _is_combination(name: str) -> bool:
    return re.fullmatch(f"NOOP|({'|'.join(INPUTS)})+", name) is not None


def _inputs_of(meaning: str) -> frozenset[str]:
    return frozenset(name for name in INPUTS if name in meaning)


class HeldInputs:
    """The game keys that are down, oldest first; a tap between two steps counts for one step."""

    def __init__(self):
        self._held: dict[int, str] = {}  # physical key -> input; two keys may mean the same
        self._tapped: list[str] = []

    def press(self, key: int, name: str) -> None:
        self._held.pop(key, None)
        self._held[key] = name
        self._tapped.append(name)

    def release(self, key: int) -> None:
        self._held.pop(key, None)

    def release_all(self) -> None:
        self._held.clear()
        self._tapped.clear()

    def peek(self) -> list[str]:
        """Return what the next step would see."""
        held = list(self._held.values())
        return held + [name for name in dict.fromkeys(self._tapped) if name not in held]

    def take(self) -> list[str]:
        """Return what this step sees; taps are then forgotten, so that input never queues."""
        seen = self.peek()
        self._tapped.clear()
        return seen
