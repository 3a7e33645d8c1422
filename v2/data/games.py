"""Games by name: how each is spelt, its settings, and where its data and weights are.

Contract: one spelling of every game (`game_id`) and one frozen set of emulator settings, which
every data file and checkpoint holds. A game is one of Atari or, by its id such as CartPole-v1, any
environment of Gymnasium. Imports no emulator: `v2.data.emulator` makes one.
"""

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from v2.runtime.run_dir import find_checkpoint

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints" / "v2"
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


OF_ATARI = ("game", "frameskip", "repeat_action_probability", "full_action_space", "max_pool")
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
        if not 1 <= self.frameskip <= 60:
            raise ValueError(f"frameskip must be 1 to 60, got {self.frameskip}")
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


def game_id(name: str) -> str:
    """Turn `Breakout`, `breakout` or `ALE/Breakout-v5` into `breakout`.

    An id of another Gymnasium environment, with its version or namespace, is left as it is.

    Raises:
        ValueError: no such ROM; names the closest ones. An id that names settings as well, such as
            `BreakoutNoFrameskip-v4`: says which are in force.
    """
    short = re.sub(r"-v\d+$", "", name.removeprefix("ALE/"))
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
    """Return the directory of a game's data and weights; `atari` is Breakout's."""
    name = re.sub(r"[^\w.-]", "_", game_id(game))
    return CHECKPOINTS / ("atari" if name == "breakout" else name)


def emulator_dict(config: EmulatorConfig) -> dict:
    """Return the settings as they are stored: of Atari always the same ones."""
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


def find_weights(name: str, kind: str, game: str) -> Path:
    """Resolve a name to a checkpoint of a game; see `v2.runtime.run_dir.find_checkpoint`.

    Args:
        name: `latest`, `shipped`, a run's name, a run's folder or a file.
        kind: vqvae or world_model.
    """
    return find_checkpoint(
        name, kind, game_directory(game), f"run make train GAME={game_id(game)}"
    )
