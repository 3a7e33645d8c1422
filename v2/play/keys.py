"""The table of keys, and from keys to actions: held keys, actions of a game, scripts of keys.

Contract: `PLAY_KEYS` and `REPLAY_KEYS` alone say which key does what; the window, the help, the
hint and README's table follow from them. A game's actions are found by their meanings (RIGHTFIRE is
RIGHT and FIRE together), never by index, so every ALE game has its keys. Where nothing is pressed a
game without NOOP, such as Backgammon, takes its first action. Knows nothing of pygame, emulators or
models.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

INPUTS = ("UP", "DOWN", "LEFT", "RIGHT", "FIRE")
OPPOSITES = {"UP": "DOWN", "DOWN": "UP", "LEFT": "RIGHT", "RIGHT": "LEFT"}
ALIASES = {"pong": {"UP": "RIGHT", "DOWN": "LEFT"}}  # its paddle goes up with RIGHT
MAX_SCRIPT_STEPS = 1_000_000
REDRAW = "redraw"  # no command: the window has changed
WRITTEN = {"PERIOD": ".", "ESCAPE": "ESC"}  # keys that are written in another way than named


@dataclass(frozen=True)
class KeyRow:
    """One line of the table."""

    does: Mapping[str, str]  # key, named as in pygame's K_ constants -> command, or one of INPUTS
    help: str
    hint: str = ""  # its words in the one-line hint; empty: not in it
    label: str = ""  # how its keys are written; empty: one after another

    @property
    def keys(self) -> str:
        """How the keys are written."""
        return self.label or ", ".join(_written(key) for key in self.does)


PLAY_KEYS: tuple[KeyRow, ...] = (
    KeyRow(
        {"LEFT": "LEFT", "RIGHT": "RIGHT", "UP": "UP", "DOWN": "DOWN",
         "A": "LEFT", "D": "RIGHT", "W": "UP", "S": "DOWN"},
        "move", label="arrows, A D W S",
    ),
    KeyRow({"SPACE": "FIRE"}, "fire (serves in Breakout)"),
    KeyRow({"P": "pause"}, "pause"),
    KeyRow({"PERIOD": "one step"}, "one step while paused"),
    KeyRow({"R": "sync"}, "sync the dream to the real game", hint="sync"),
    KeyRow({"TAB": "mode"}, "both / dream only / real only", hint="view"),
    KeyRow({"M": "controller"}, "who plays: human, random, scripted, agent", hint="who plays"),
    KeyRow({"F": "branches"}, "counterfactual branches: what each action leads to",
           hint="branches"),
    KeyRow({"BACKSPACE": "rewind"}, "rewind both by 30 steps"),
    KeyRow({"V": "clip"}, "save the last 10 seconds as video", hint="clip"),
    KeyRow({"H": "help"}, "show or hide these keys", hint="keys"),
    KeyRow({"Q": "quit", "ESCAPE": "quit"}, "quit", hint="quit"),
)  # fmt: skip
REPLAY_KEYS: tuple[KeyRow, ...] = (
    KeyRow({"SPACE": "pause", "P": "pause"}, "play or stop", hint="play"),
    KeyRow({"LEFT": "back", "RIGHT": "on"}, "one step back or on", hint="step"),
    KeyRow({"DOWN": "far back", "UP": "far on"}, "30 steps back or on", hint="30 steps"),
    KeyRow({"HOME": "first", "END": "last"}, "first or last frame"),
    KeyRow({"R": "sync"}, "open loop starts here", hint="open loop from here"),
    KeyRow({"N": "next", "B": "previous"}, "next or previous episode"),
    KeyRow({"V": "clip"}, "save what was shown as video"),
    KeyRow({"H": "help"}, "show or hide these keys", hint="keys"),
    KeyRow({"Q": "quit", "ESCAPE": "quit"}, "quit"),
)


def commands_of(rows: Sequence[KeyRow]) -> dict[str, str]:
    """Return key -> command, without the keys of the game."""
    return {key: does for key, does in _all_keys(rows).items() if does not in INPUTS}


def inputs_of(rows: Sequence[KeyRow]) -> dict[str, str]:
    """Return key -> game input."""
    return {key: does for key, does in _all_keys(rows).items() if does in INPUTS}


def help_rows(rows: Sequence[KeyRow]) -> tuple[tuple[str, str], ...]:
    """Return (keys, what they do) as the help shows them."""
    return tuple((row.keys, row.help) for row in rows)


def hint_line(rows: Sequence[KeyRow]) -> str:
    """Return the line below the picture, H first: a narrow window cuts its end."""
    shown = sorted((row for row in rows if row.hint), key=lambda row: "help" not in _does(row))
    keys = [dict.fromkeys(key_of(rows, does) for does in _does(row)) for row in shown]
    return "  ·  ".join(f"{' '.join(k)} {row.hint}" for k, row in zip(keys, shown, strict=True))


def key_of(rows: Sequence[KeyRow], command: str) -> str:
    """Return how the first key of a command is written."""
    return next(_written(key) for key, does in _all_keys(rows).items() if does == command)


def _all_keys(rows: Sequence[KeyRow]) -> dict[str, str]:
    return {key: does for row in rows for key, does in row.does.items()}


def _does(row: KeyRow) -> tuple[str, ...]:
    return tuple(row.does.values())


def _written(key: str) -> str:
    return WRITTEN.get(key, key)


class ActionMap:
    """Turn the keys that are down into one of a game's actions."""

    def __init__(self, meanings: Sequence[str], aliases: Mapping[str, str] | None = None):
        """Args:
        meanings: the game's action names, such as NOOP, FIRE, RIGHT, LEFT, UPRIGHTFIRE.
        aliases: input -> the input that it stands for in this game; see `ALIASES`.
        """
        self.meanings, self._aliases = list(meanings), aliases or {}
        self._actions: dict[frozenset[str], int] = {}
        for index, name in enumerate(self.meanings):
            if is_played_by_keys(name):
                self._actions.setdefault(_inputs_in(name), index)
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
        name = self.meanings[action]
        return _inputs_in(name) if is_played_by_keys(name) else frozenset()

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
        name = match[1].upper().replace("+", "").replace("SPACE", "FIRE") if match else ""
        count = int(min(float(match[2] or 1), MAX_SCRIPT_STEPS + 1)) if match else 0
        if count < 1 or not is_played_by_keys(name) or _inputs_in(name) not in self._actions:
            raise ValueError(
                f"--keys: {part.strip()!r} is not NAME or NAME*COUNT with a name of "
                f"{', '.join(self.meanings)}"
            )
        return self._actions[_inputs_in(name)], count


def is_played_by_keys(name: str) -> bool:
    """Tell whether an action's name is NOOP or made of `INPUTS` alone, no two of them opposite."""
    is_made_of = re.fullmatch(f"NOOP|({'|'.join(INPUTS)})+", name) is not None
    inputs = _inputs_in(name)
    return is_made_of and not any(OPPOSITES.get(each) in inputs for each in inputs)


def _inputs_in(meaning: str) -> frozenset[str]:
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
