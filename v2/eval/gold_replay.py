"""A gold set without pixels: seeds, policies and actions, from which the emulator makes it again.

Contract: what the emulator makes is what the set's hashes say, or it is refused in one line that
names the game. What it made is kept in a folder and read from there next time. Knows neither how
games and starts were chosen (v2/eval/build_gold.py) nor which sets there are (v2/eval/gold.py).
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from v2.data.atari_dataset import NUM_RAM_BYTES, GameData, load_game_data
from v2.data.emulator import emulator_version, make_atari_env
from v2.data.frames import FRAME_SHAPE
from v2.data.games import EmulatorConfig
from v2.data.npz import read_npz, write_npz
from v2.data.recordings import OF_GOLD
from v2.data.validation import array_sha256, check_episodes, check_hashes
from v2.eval.branches import BRANCH_STEPS, Branches
from v2.eval.replays import Recorder
from v2.eval.starts import HISTORY, strata_of
from v2.runtime.files import disk_explained, file_sha256

META_FIELDS: dict[str, type] = {
    "game": str, "emulator": dict, "action_meanings": list, "episodes": list, "ale_py": str,
    "branches_sha256": str,
}  # fmt: skip


@dataclass
class GoldGames:
    """What a set without pixels holds; rows count the frames of all its games."""

    path: Path
    sha256: str
    meta: dict  # of the games, each with the sha256 of what the emulator makes of it
    actions: np.ndarray  # uint8 (M,), of each game's last frame 0
    starts: np.ndarray  # int64 (S,), rows
    strata: list[str]
    long_starts: np.ndarray  # int64 (L,): of the few long rollouts
    long_strata: list[str]
    branch_rows: np.ndarray  # int64 (B,), ascending

    def __len__(self) -> int:
        return len(self.actions)


def write_games(path: Path, games: GoldGames) -> str:
    """Write a set and return its sha256."""
    known = strata_of(games.meta["game"])
    arrays = {"actions": games.actions, "branch_rows": games.branch_rows}
    for name, starts, strata in (
        ("start", games.starts, games.strata),
        ("long", games.long_starts, games.long_strata),
    ):
        arrays[f"{name}_rows"] = np.asarray(starts, np.int64)
        arrays[f"{name}_strata"] = np.array([known.index(s) for s in strata], np.uint8)
    write_npz(path, arrays, games.meta)
    return file_sha256(path)


def read_games(path: Path) -> GoldGames:
    """Read a set whatever its hash.

    Raises:
        FileNotFoundError, ValueError: with the path and what is wrong.
    """
    single, meta = read_npz(path, {"actions": (np.uint8, ())}, META_FIELDS)
    check_episodes(path, meta)
    num_frames = sum(episode["frames"] for episode in meta["episodes"])
    if num_frames != len(single["actions"]) or num_frames == 0:
        raise ValueError(
            f"{path}: {len(single['actions'])} actions of games of {num_frames} frames; restore it"
        )
    starts, strata = _read_starts(path, "start", meta["game"])
    long_starts, long_strata = _read_starts(path, "long", meta["game"])
    branched, _ = read_npz(path, {"branch_rows": (np.int64, ())})
    return GoldGames(path, file_sha256(path), meta, single["actions"], starts, strata, long_starts,
                     long_strata, branched["branch_rows"])  # fmt: skip


def _read_starts(path: Path, name: str, game: str) -> tuple[np.ndarray, list[str]]:
    fields = {f"{name}_rows": (np.int64, ()), f"{name}_strata": (np.uint8, ())}
    arrays, _ = read_npz(path, fields)
    known = strata_of(game)
    return arrays[f"{name}_rows"], [known[k] for k in arrays[f"{name}_strata"]]


def load_games(games: GoldGames, folder: Path) -> tuple[GameData, Branches]:
    """Return what the emulator makes of a set: as it was kept in a folder, else played again.

    Raises:
        ValueError: the emulator plays otherwise than the one that the set was made with.
    """
    kept = folder / f"gold-{games.path.stem}-{games.sha256[:12]}.npz"
    if kept.exists():
        try:
            return _read_kept(kept, games)
        except ValueError as error:
            print(f"{error}; instead its games are played again")
    print(f"playing the {len(games)} frames of {games.path.name} again: about a minute, once")
    data, branches = play_again(games, folder)
    arrays = data.arrays() | _branch_arrays(branches)
    hashes = {name: array_sha256(array) for name, array in arrays.items()}
    try:
        write_npz(kept, arrays, games.meta | {"sha256": hashes, OF_GOLD: games.sha256})
    except OSError as error:
        print(f"{error}: the next evaluation plays these games again")
    return data, branches


def _read_kept(path: Path, games: GoldGames) -> tuple[GameData, Branches]:
    """Read what was made before, its frames mapped from a nameless file."""
    data = load_game_data(path)
    if data.meta.get(OF_GOLD) != games.sha256:
        raise ValueError(f"{path} is of another gold set; remove it")
    arrays, meta = read_npz(path, branch_fields(data.num_actions))
    check_hashes(path, arrays, meta)
    return data, branches_of(games.meta["game"], arrays)


def play_again(games: GoldGames, folder: Path) -> tuple[GameData, Branches]:
    """Make frames, memory, rewards, ends and branches of all games, and check their hashes.

    A game without a hash is not checked. Frames lie in a nameless file, in the folder if that can
    be written, so that memory need not hold them.

    Raises:
        ValueError: the emulator plays a game otherwise.
        OSError: too little room on the disk.
    """
    meta = games.meta
    recorder = Recorder(make_atari_env(config=EmulatorConfig(**meta["emulator"])))
    place = folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
    played: dict[str, list[np.ndarray]] = {"rewards": [], "terminated": [], "ram": []}
    first = 0
    with tempfile.TemporaryFile(dir=place) as file:
        for episode in tqdm(meta["episodes"], unit="game", disable=None):
            actions = games.actions[first : first + episode["frames"]]
            rows = games.branch_rows - first
            branched = set(rows[(rows >= 0) & (rows < len(actions))].tolist())
            one = _play(recorder, actions, branched, episode["seed"])
            _check(episode, _digest(one.values()), games)
            with disk_explained(place / "frames of the gold set"):
                file.write(one.pop("frames").data)
                file.flush()
            for name, arrays in played.items():
                arrays.append(one[name])
            first += len(actions)
        frames = np.memmap(file, np.uint8, "r+", shape=(first, *FRAME_SHAPE))
    branches = recorder.branches()
    _check({"seed": "branched states", "sha256": meta.get("branches_sha256")},
           branches_digest(branches), games)  # fmt: skip
    return _as_data(games, frames, played), branches


def _play(
    recorder: Recorder, actions: np.ndarray, branched: set[int], seed: int
) -> dict[str, np.ndarray]:
    """Play one game from its reset, and branch some of its steps."""
    env = recorder.env
    frames, ram = [env.reset()[0]], [env.ram]
    rewards, terminated = np.zeros(len(actions), np.float32), np.zeros(len(actions), np.bool_)
    for t in range(len(actions) - 1):
        if t in branched:
            recorder.add(np.stack(frames[-HISTORY:]), actions[t - HISTORY + 1 : t], seed)
        frame, rewards[t], terminated[t], _, _ = env.step(int(actions[t]))
        frames.append(frame)
        ram.append(env.ram)
    return {
        "frames": np.stack(frames), "rewards": rewards, "terminated": terminated,
        "ram": np.stack(ram),
    }  # fmt: skip


def _digest(arrays) -> str:
    return hashlib.sha256("".join(map(array_sha256, arrays)).encode()).hexdigest()


def game_digests(data: GameData) -> list[str]:
    """Return the sha256 of what the emulator made of each game."""
    fields = (data.frames, data.rewards, data.terminated, data.ram)
    cuts = np.flatnonzero(np.diff(data.episode_ids)) + 1
    spans = zip([0, *cuts], [*cuts, len(data)], strict=True)
    return [_digest(array[first:last] for array in fields) for first, last in spans]


def branches_digest(branches: Branches) -> str:
    return _digest(_branch_arrays(branches).values())


def _check(made: dict, digest: str, games: GoldGames) -> None:
    if made.get("sha256") not in (None, digest):
        version, known = emulator_version(), games.meta["ale_py"]
        raise ValueError(
            f"ale-py {version} does not play game {made['seed']} of {games.path} as ale-py {known} "
            f"did: pip install ale-py=={known}, or restore the file with git checkout"
        )


def _as_data(games: GoldGames, frames: np.ndarray, played: dict[str, list]) -> GameData:
    lengths = [episode["frames"] for episode in games.meta["episodes"]]
    last = np.cumsum(lengths) - 1
    arrays = {name: np.concatenate(parts) for name, parts in played.items()}
    has_action, truncated = np.ones(len(games), np.bool_), np.zeros(len(games), np.bool_)
    has_action[last] = False
    truncated[last - 1] = ~arrays["terminated"][last - 1]
    ids = np.array([episode["id"] for episode in games.meta["episodes"]], np.int32)
    return GameData(
        frames=frames, actions=games.actions, truncated=truncated, has_action=has_action,
        episode_ids=ids.repeat(lengths), meta=games.meta, **arrays,
    )  # fmt: skip


def branch_fields(num_actions: int) -> dict[str, tuple]:
    return {
        "fork_history": (np.uint8, (HISTORY, *FRAME_SHAPE)),
        "fork_past_actions": (np.uint8, (HISTORY - 1,)),
        "fork_frames": (np.uint8, (num_actions, BRANCH_STEPS, *FRAME_SHAPE)),
        "fork_ram": (np.uint8, (num_actions, BRANCH_STEPS, NUM_RAM_BYTES)),
        "fork_seeds": (np.int64, ()),
    }


def branches_of(game: str, arrays: dict[str, np.ndarray]) -> Branches:
    return Branches(game, *(arrays[name] for name in branch_fields(1)))


def _branch_arrays(branches: Branches) -> dict[str, np.ndarray]:
    values = (branches.history, branches.past_actions, branches.frames, branches.ram,
              branches.episodes)  # fmt: skip
    return dict(zip(branch_fields(1), values, strict=True))
