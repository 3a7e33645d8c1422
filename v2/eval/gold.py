"""What is evaluated on: the frozen set of a game, or the held-out games of a recording.

Contract: `gold/<game>.npz` holds clips, rollout starts and branches, and is loaded only if its
sha256 is the one written here, so that two results name the same data. `v2/eval/build_gold.py`
makes it. Knows nothing of models.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2.data.atari_dataset import (
    ARRAY_FIELDS,
    NUM_RAM_BYTES,
    GameData,
    data_sha256,
    load_game_data,
    split_of_game,
)
from v2.data.frames import FRAME_SHAPE
from v2.data.npz import read_npz, write_npz
from v2.data.validation import array_sha256
from v2.eval.branches import BRANCH_STEPS, Branches
from v2.eval.replays import branches_of
from v2.eval.rollouts import HORIZONS
from v2.eval.starts import ANY, HISTORY, random_starts, strata_of, stratified_starts
from v2.runtime.files import file_sha256

MIN_WINDOWS = 8  # of rollouts; where a recording has fewer of a length, they are shorter
GOLD_DIRECTORY = Path(__file__).resolve().parent / "gold"
GOLD_SHA256 = {
    "breakout": "b9b1dc159be11b9a2a86640f5ced9fbbbcb4cb882e4048b71f65beac87c95c70",
    "pong": "54630cf68c7ac22fe637ee7fc67d61156758028734c27dfa8a4c979c538a5b24",
}
START_FIELDS = {"start_rows": (np.int64, ()), "start_strata": (np.uint8, ())}


@dataclass
class EvaluationSet:
    """Clips and branches of one game; `is_gold` only if it is the frozen set."""

    data: GameData
    starts: np.ndarray  # int64 (S,)
    strata: list[str]
    branches: Branches | None
    is_gold: bool
    sha256: str
    source: str
    rollout_steps: int | None = None  # None: as many as a tier asks for


def gold_path(game: str) -> Path:
    return GOLD_DIRECTORY / f"{game}.npz"


def gold_arrays(data: GameData, starts, strata, branches: Branches) -> dict[str, np.ndarray]:
    """Return all arrays of a gold file, by the names that its hash was taken with."""
    known = strata_of(data.meta["game"])
    return data.arrays() | {
        "start_rows": np.asarray(starts, np.int64),
        "start_strata": np.array([known.index(stratum) for stratum in strata], np.uint8),
        "fork_history": branches.history,
        "fork_past_actions": branches.past_actions,
        "fork_frames": branches.frames,
        "fork_ram": branches.ram,
        "fork_seeds": branches.episodes.astype(np.int64),
    }


def save_gold(path: Path, arrays: dict[str, np.ndarray], meta: dict) -> str:
    """Write a gold file and return its sha256."""
    hashes = {name: array_sha256(array) for name, array in arrays.items()}
    write_npz(path, arrays, meta | {"sha256": hashes})
    return file_sha256(path)


def load_gold(game: str) -> EvaluationSet:
    """Load the frozen set of a game.

    Raises:
        FileNotFoundError: the game has none.
        ValueError: the file is not the one that the code names.
    """
    path = gold_path(game)
    if game not in GOLD_SHA256 or not path.exists():
        raise FileNotFoundError(
            f"no gold set for {game} at {path}: give --data FILE of v2/data/collect_atari.py"
        )
    found = file_sha256(path)
    if found != GOLD_SHA256[game]:
        raise ValueError(
            f"{path} has sha256 {found[:12]}, not {GOLD_SHA256[game][:12]}: restore it with "
            "git checkout, or rebuild it with python v2/eval/build_gold.py"
        )
    gold = read_gold(path)
    gold.is_gold, gold.sha256, gold.source = True, found, f"gold set {path.name} {found[:12]}"
    return gold


def load_recorded(
    path: Path, game: str, num_rollouts: int, rollout_steps: int, which: str = "strata",
    num_branched: int = 0,
) -> EvaluationSet:  # fmt: skip
    """Take a recording's validation games, or all of it where it has none apart.

    Rollouts are as long as asked for, or as its episodes allow.

    Args:
        num_branched: states to branch, where the emulator plays the recording again; 0: none.
        which: `strata`: as many rollouts begin before each kind of bounce; `any`: at any moment.
    Raises:
        ValueError: the recording is of another game, or too short.
    """
    data = load_game_data(path)
    if data.meta["game"] != game:
        raise ValueError(f"{path} holds {data.meta['game']}, not {game}: give --game or other data")
    digest = data_sha256(data.meta)
    rows, split = np.arange(len(data)), "all games"
    if any(split_of_game(episode["seed"]) == "val" for episode in data.meta["episodes"]):
        rows, split = data.rows_of("val"), "held-out games"
    arrays = {name: array[rows] for name, array in data.arrays().items()}
    data = GameData(**arrays, meta=data.meta)
    rng = np.random.default_rng(0)
    rollout_steps = _fitting_steps(data, rollout_steps)
    try:
        if which == "any":
            starts = random_starts(data, num_rollouts, rollout_steps, rng)
            strata = [ANY] * len(starts)
        else:
            each = -(-num_rollouts // len(strata_of(game)))
            starts, strata = stratified_starts(data, each, rollout_steps, rng)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; collect more frames") from error
    source = f"NOT the gold set but {split} of {path}"
    branches = branches_of(data, num_branched)
    return EvaluationSet(data, starts, strata, branches, False, digest, source, rollout_steps)


def _fitting_steps(data: GameData, most: int) -> int:
    """Return the longest rollout, up to `most`, that enough windows have; else `most`."""
    lengths = np.bincount(data.episode_ids)
    for steps in (most, *(h for h in reversed(HORIZONS) if h < most)):
        if (lengths - HISTORY - steps + 1).clip(0).sum() >= MIN_WINDOWS:
            return steps
    return most


def read_gold(path: Path) -> EvaluationSet:
    """Read a gold file whatever its hash."""
    arrays, meta = read_npz(path, ARRAY_FIELDS)
    starts, _ = read_npz(path, START_FIELDS)
    num_actions = len(meta["action_meanings"])
    branches, _ = read_npz(path, _branch_fields(num_actions))
    data = GameData(**arrays, meta=meta)
    if any(split_of_game(episode["seed"]) != "gold" for episode in meta["episodes"]):
        raise ValueError(f"{path} holds games of other splits; make it with build_gold.py")
    strata = [strata_of(meta["game"])[k] for k in starts["start_strata"]]
    return EvaluationSet(
        data, starts["start_rows"], strata,
        Branches(meta["game"], *(branches[name] for name in _branch_fields(num_actions))),
        is_gold=False, sha256=file_sha256(path), source=str(path),
    )  # fmt: skip


def _branch_fields(num_actions: int) -> dict[str, tuple]:
    return {
        "fork_history": (np.uint8, (HISTORY, *FRAME_SHAPE)),
        "fork_past_actions": (np.uint8, (HISTORY - 1,)),
        "fork_frames": (np.uint8, (num_actions, BRANCH_STEPS, *FRAME_SHAPE)),
        "fork_ram": (np.uint8, (num_actions, BRANCH_STEPS, NUM_RAM_BYTES)),
        "fork_seeds": (np.int64, ()),
    }
