"""Games by name: how each is spelt, its settings, and where its data and weights are.

Contract: one spelling of every game (`game_id`) and one frozen set of settings, of its emulator or
its recording, which every data file and checkpoint holds. A game is one of Atari, by its id such as
CartPole-v1 any environment of Gymnasium, or as own-NAME one that was only recorded. Imports no
emulator: `v2.data.emulator` makes one.
"""

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from v2.runtime.checks import whole_number
from v2.runtime.commands import IS_INSTALLED, PACKAGED, ROOT, command
from v2.runtime.run_dir import SHIPPED, find_checkpoint

# Of an installed package what you collect and train lies below the folder that you are in.
CHECKPOINTS = (Path() if IS_INSTALLED else ROOT) / "checkpoints" / "v2"
ATARI_GAMES = """
    adventure air_raid alien amidar assault asterix asteroids atlantis atlantis2 backgammon
    bank_heist basic_math battle_zone beam_rider berzerk blackjack bowling boxing breakout
    carnival casino centipede chopper_command crazy_climber crossbow darkchambers defender
    demon_attack donkey_kong double_dunk earthworld elevator_action enduro entombed et
    fishing_derby flag_capture freeway frogger frostbite galaxian gopher gravitar hangman
    haunted_house hero human_cannonball ice_hockey jamesbond journey_escape kaboom kangaroo
    keystone_kapers king_kong klax koolaid krull kung_fu_master laser_gates lost_luggage
    mario_bros miniature_golf montezuma_revenge mr_do ms_pacman name_this_game othello
    pacman phoenix pitfall pitfall2 pong pooyan private_eye qbert riverraid road_runner
    robotank seaquest sir_lancelot skiing solaris space_invaders space_war star_gunner
    superman surround tennis tetris tic_tac_toe_3d time_pilot trondead turmoil tutankham
    up_n_down venture video_checkers video_chess video_cube video_pinball wizard_of_wor
    word_zapper yars_revenge zaxxon
""".split()  # every ALE game, by the name of its ROM
OWN = "own-"  # begins the name of a game that was only recorded
OF_ATARI = ("game", "frameskip", "repeat_action_probability", "full_action_space", "max_pool")
MAX_ACTIONS = 256  # of a game: they are stored as uint8
ENVIRONMENT = re.compile(r"(?!ALE/).*(:|/|-v\d+$)")  # what an id of Gymnasium looks like
FITS = ("pad", "crop", "stretch")


@dataclass(frozen=True)
class EmulatorConfig:
    """Settings that make two recordings comparable; stored in every data file and checkpoint."""

    game: str = "breakout"  # snake_case ROM name, or the id of a Gymnasium environment
    frameskip: int = 4  # emulator frames a step; 60 / 4 = 15 steps a second
    repeat_action_probability: float = 0.0  # 0: the chosen action is the executed action
    full_action_space: bool = False
    max_pool: bool = False  # maximum of the last two emulator frames; for games that flicker
    # Of a Gymnasium environment alone; stored where they differ from these.
    env_args: str = ""  # further arguments of gymnasium.make, as JSON
    fit: str = "stretch"  # how a screen of another shape becomes a frame; see `FITS`
    native_fps: float = 60.0  # screens a second
    action_names: str = ""  # with commas between; empty: as the environment calls them
    package: str = ""  # whose the environment is, and its version; no part of what is comparable

    def __post_init__(self):
        object.__setattr__(self, "game", game_id(self.game))
        if self.game.startswith(OWN):
            raise ValueError(
                f"{self.game} was only recorded, there is no emulator of it: its data comes from "
                "v2/data/import_recordings.py"
            )
        object.__setattr__(self, "frameskip", whole_number(self.frameskip, 1, 60, "frameskip"))
        if not 0 <= self.repeat_action_probability < 1:
            raise ValueError(
                f"repeat_action_probability must be in [0, 1), got {self.repeat_action_probability}"
            )
        if self.repeat_action_probability and not self.is_atari:
            raise ValueError(f"{self.game} repeats no action by chance: only Atari's emulator does")
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, got {self.fit!r}")
        if not 0 < self.native_fps < math.inf:
            raise ValueError(f"native_fps must be finite and above 0, got {self.native_fps}")

    @property
    def is_atari(self) -> bool:
        return self.game in ATARI_GAMES

    @property
    def has_luck(self) -> bool:
        """Whether a game's seed decides how it goes; else all begin as the same one."""
        return not self.is_atari or self.repeat_action_probability > 0

    @property
    def steps_per_second(self) -> float:
        return self.native_fps / self.frameskip


@dataclass(frozen=True)
class RecordedConfig:
    """What is known of a game that was only recorded, in place of an emulator's settings."""

    game: str  # `own-` and a name
    steps_per_second: float  # of the recording
    package: ClassVar[str] = ""
    is_atari: ClassVar[bool] = False
    has_luck: ClassVar[bool] = True  # the next game is another

    def __post_init__(self):
        if not self.game.startswith(OWN):
            raise ValueError(f"the name of a recorded game begins with {OWN}, got {self.game!r}")
        object.__setattr__(self, "game", game_id(self.game))
        if not 0 < self.steps_per_second <= 1000:
            raise ValueError(f"steps_per_second must be in (0, 1000], got {self.steps_per_second}")


def stored_config(settings: dict) -> EmulatorConfig | RecordedConfig:
    """Rebuild the settings that a data file or checkpoint holds.

    Raises:
        TypeError, ValueError: settings of another version.
    """
    return (RecordedConfig if is_recorded(settings) else EmulatorConfig)(**settings)


def learnt_config(info: dict, source: object, game: str) -> EmulatorConfig | RecordedConfig:
    """Return the settings of what weights learnt from, which must be of this game.

    Args:
        info: what their checkpoint holds besides weights; source: what an error calls them.
    Raises:
        ValueError: settings of another version, or of another game.
    """
    game = game_id(game)
    try:
        config = stored_config(info.get("emulator") or {"game": game})
    except TypeError as error:
        raise ValueError(f"{source}: emulator settings of another version") from error
    if config.game != game:
        raise ValueError(f"{source} dreams of {config.game}: add --game {config.game}")
    return config


def is_recorded(settings: dict) -> bool:
    """Tell stored settings of a recording from those of an emulator."""
    return "steps_per_second" in settings


def game_id(name: str) -> str:
    """Turn `Breakout`, `breakout` or `ALE/Breakout-v5` into `breakout`; `own-...` stays.

    An id of another Gymnasium environment, with its version or namespace, is left as it is.

    Raises:
        ValueError: no such ROM; names the closest ones. An id that names settings as well, such as
            `BreakoutNoFrameskip-v4`: says which are in force.
    """
    if str(name).startswith(OWN):
        if not re.fullmatch(OWN + "[a-z0-9_-]{1,60}", name):
            raise ValueError(f"a recorded game is named {OWN}[a-z0-9_-], got {name!r}")
        return name
    if re.search(r"-v(?![045]$)\d+$", name) and ENVIRONMENT.match(name):  # no version of ALE's
        return name
    short = re.sub(r"-v\d+$", "", str(name).removeprefix("ALE/"))
    letters, known = re.sub(r"[\W_]", "", short).lower(), ATARI_GAMES
    spelt = {game.replace("_", ""): game for game in known}  # separators are free
    if letters not in spelt:
        plain = re.sub("(ram)?(noframeskip|deterministic)?$", "", letters)
        if plain in spelt:
            raise ValueError(
                f"no Atari game named {name!r}: did you mean {spelt[plain]}?; its settings are "
                f"frameskip {EmulatorConfig.frameskip}, repeat_action_probability "
                f"{EmulatorConfig.repeat_action_probability:g} and RGB frames, whatever its name"
            )
        if ENVIRONMENT.match(name):
            return name
        close = [spelt[match] for match in difflib.get_close_matches(letters, spelt, n=3)]
        hint = f"did you mean {' or '.join(close)}?" if close else f"e.g. {', '.join(known[:4])}"
        raise ValueError(
            f"no Atari game named {name!r}: {hint} (an environment of Gymnasium is named with its "
            "version, as CartPole-v1)"
        )
    return spelt[letters]


def shown_name(game: str) -> str:
    """Return a game's name as people write it; ids stay as they are."""
    return game.replace("_", " ").title() if game in ATARI_GAMES else game


def game_directory(game: str) -> Path:
    """Return the directory of a game's data and runs; `atari` is Breakout's."""
    name = re.sub(r"[^\w.-]", "_", game_id(game))
    return CHECKPOINTS / ("atari" if name == "breakout" else name)


def shipped_directory(game: str) -> Path:
    """Return the directory of a game's shipped weights: your own, else those of the package."""
    own = game_directory(game)
    packaged = PACKAGED / own.name
    is_own = any((own / name).exists() for name in SHIPPED.values())
    return packaged if packaged.is_dir() and not is_own else own


def emulator_dict(config: EmulatorConfig | RecordedConfig) -> dict:
    """Return the settings as they are stored: of Atari and of recordings always the same ones."""
    return {
        field.name: value for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default or field.name in OF_ATARI
    }  # fmt: skip


def differing_settings(known: dict, held: dict) -> list[str]:
    """Return each setting of two recordings that differs, but for the version of a package.

    A setting that is not stored has its default.
    """
    usual = {field.name: field.default for field in dataclasses.fields(EmulatorConfig)}
    known, held = usual | known, usual | held
    return [
        f"{key} {known.get(key)}, not {held.get(key)}"
        for key in sorted((known.keys() | held.keys()) - {"package"})
        if known.get(key) != held.get(key)
    ]


def find_weights(name: str, kind: str, game: str, home: Path | None = None) -> Path:
    """Resolve a name to a checkpoint of a game; see `v2.runtime.run_dir.find_checkpoint`.

    Args:
        name: `latest`, `shipped`, a run's name, a run's folder, a home or a file.
        kind: vqvae or world_model.
        home: a directory of runs/ that was named, where `latest` is looked for first.
    """
    train = f"make train GAME={game_id(game)}"
    if IS_INSTALLED:
        train = command("train/pipeline.py", game=game_id(game))
    shipped = shipped_directory(game)
    return find_checkpoint(name, kind, game_directory(game), f"run {train}", home, shipped)
