"""What is evaluated on: the frozen set of a game, or the held-out games of a recording.

Contract: a frozen set is loaded only if its sha256 is the one written here, so that two results
name the same data. It holds no pixels (v2/eval/gold_replay.py) and is made by
`v2/eval/build_gold.py`. Knows nothing of models.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2.data.atari_dataset import (
    GameData,
    data_sha256,
    hold_out_end,
    load_game_data,
    split_of,
    split_of_game,
    with_ram,
)
from v2.data.games import game_directory
from v2.data.recordings import Data, shown
from v2.data.tokens import recordings_sha256
from v2.eval.branches import Branches
from v2.eval.gold_replay import load_games, read_games
from v2.eval.replays import recorded_branches
from v2.eval.rollouts import HORIZONS
from v2.eval.starts import ANY, HISTORY, random_starts, strata_of, stratified_starts
from v2.runtime.commands import command
from v2.runtime.files import file_sha256

MIN_WINDOWS = 8  # of rollouts; where a recording has fewer of a length, they are shorter
GOLD_DIRECTORY = Path(__file__).resolve().parent / "gold"
GOLD_SHA256 = {  # by the name of the file
    "breakout-2": "ef5f9535e75149eef380453066851d8090b75065a9c05e1388cd50216ad3cf6f",
    "pong-2": "c66cc964d7cb250c181d54fbb43995f313ef3b76bf629fe3c4164055782bc5bb",
}
GOLD_GAMES = ("breakout", "pong")


@dataclass
class EvaluationSet:
    """Clips and branches of one game; `is_gold` only if it is a frozen set."""

    data: GameData
    starts: np.ndarray  # int64 (S,)
    strata: list[str]
    long_starts: np.ndarray  # int64 (L,): of the few long rollouts
    long_strata: list[str]
    branches: Branches | None
    is_gold: bool
    sha256: str
    source: str
    rollout_steps: int | None = None  # None: as many as a tier asks for


def gold_path(game: str) -> Path:
    return GOLD_DIRECTORY / f"{game}-2.npz"  # the second edition's


def load_gold(game: str) -> EvaluationSet:
    """Load the frozen set of a game.

    Raises:
        FileNotFoundError: the game has none.
        ValueError: the file is not the one that the code names, or the emulator plays otherwise.
    """
    path = gold_path(game)
    if path.stem not in GOLD_SHA256 or not path.exists():
        raise FileNotFoundError(
            f"no gold set for {game} at {path}: give --data FILE of v2/data/collect_atari.py"
        )
    found = file_sha256(path)
    if found != GOLD_SHA256[path.stem]:
        raise ValueError(
            f"{path} has sha256 {found[:12]}, not {GOLD_SHA256[path.stem][:12]}: restore it with "
            f"git checkout, or rebuild it with {command('eval/build_gold.py')}"
        )
    gold = read_set(path, game_directory(game))
    gold.is_gold, gold.source = True, f"gold set {path.name} {found[:12]}"
    return gold


def read_set(path: Path, folder: Path) -> EvaluationSet:
    """Read a set whatever its hash, its replay kept in a folder."""
    games = read_games(path)
    _check_split(path, games.meta)
    data, branches = load_games(games, folder)
    return EvaluationSet(
        data, games.starts, games.strata, games.long_starts, games.long_strata, branches,
        is_gold=False, sha256=games.sha256, source=str(path),
    )  # fmt: skip


def _check_split(path: Path, meta: dict) -> None:
    if any(split_of_game(episode["seed"]) != "gold" for episode in meta["episodes"]):
        raise ValueError(f"{path} holds games of other splits; make it with build_gold.py")


def load_recorded(
    path: Data, game: str, num_rollouts: int, rollout_steps: int, which: str = "strata",
    learnt: Collection[Sequence[str]] = (), long_rollouts: int = 0, long_steps: int = 0,
    num_branched: int = 0,
) -> EvaluationSet:  # fmt: skip
    """Take what recordings hold out, or all of them where they hold nothing out.

    Rollouts are as long as asked for, or as its episodes allow; long ones as asked for, or none.

    Args:
        num_branched: states to branch, where the emulator plays the recording again; 0: none.
        which: `strata`: as many rollouts begin before each kind of bounce; `any`: at any moment.
        learnt: what the models were trained on, run by run: the hash of all, then of each
            recording; of that only what was held out is taken.
    Raises:
        ValueError: a recording is of another game, or too short.
    """
    data, name = load_game_data(path), shown(path)
    if data.meta["game"] != game:
        raise ValueError(f"{name} holds {data.meta['game']}, not {game}: give --game or other data")
    digest, own = data_sha256(data.meta), set(recordings_sha256(path))
    if not _has_held_out(data):  # so each training held out the end of all that it was given
        if any(whole != digest and own & set(parts) for whole, *parts in learnt):
            raise ValueError(
                f"{name} is not all of what the weights learnt from: give all of its recordings to "
                "--data, in that order"
            )
        if digest in (whole for whole, *_ in learnt):
            hold_out_end(data)
    rows, split = np.arange(len(data)), "all games"
    if _has_held_out(data):
        rows, split = data.rows_of("val"), "what is held out"
    arrays = {name: array[rows] for name, array in data.arrays().items()}
    data = GameData(**with_ram(arrays), meta=data.meta)
    rng = np.random.default_rng(0)
    rollout_steps = _fitting_steps(data, rollout_steps)
    has_long = long_rollouts and _fitting_steps(data, long_steps) == long_steps
    try:
        starts, strata = _starts(data, num_rollouts, rollout_steps, which, rng)
        long_starts, long_strata = starts[:0], strata[:0]
        if has_long:
            long_starts, long_strata = _starts(data, long_rollouts, long_steps, which, rng)
    except ValueError as error:
        raise ValueError(f"{name}: {error}; collect more frames") from error
    source = f"NOT the gold set but {split} of {name}"
    branches = recorded_branches(data, num_branched)
    return EvaluationSet(
        data, starts, strata, long_starts, long_strata, branches, False, digest, source,
        rollout_steps,
    )  # fmt: skip


def _has_held_out(data: GameData) -> bool:
    return any(split_of(episode) == "val" for episode in data.meta["episodes"])


def _fitting_steps(data: GameData, most: int) -> int:
    """Return the longest rollout, up to `most`, that enough windows have; else `most`."""
    lengths = np.bincount(data.episode_ids)
    for steps in (most, *(h for h in reversed(HORIZONS) if h < most)):
        if (lengths - HISTORY - steps + 1).clip(0).sum() >= MIN_WINDOWS:
            return steps
    return most


def _starts(
    data: GameData, num_rollouts: int, steps: int, which: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    if which == "any":
        starts = random_starts(data, num_rollouts, steps, rng)
        return starts, [ANY] * len(starts)
    each = -(-num_rollouts // len(strata_of(data.meta["game"])))
    return stratified_starts(data, each, steps, rng)
