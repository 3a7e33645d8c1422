"""Rebuild a game's frozen evaluation set from the emulator, bit for bit.

    python v2/eval/build_gold.py --game breakout --out /tmp/breakout.npz

Games come from reserved seeds through the collector's own recorder. Branches replay a recorded
game from its start, which proves that it is exact, and continue saved states under every action.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import dataclasses

import numpy as np
from tqdm import tqdm

from v2.data.atari_dataset import GOLD_SEED_START, GameData
from v2.data.collector import SEEDS_PER_POLICY, GameJob, Segment, join_segments, record_game
from v2.data.emulator import emulator_version, make_atari_env
from v2.data.games import EmulatorConfig, emulator_dict
from v2.data.policies import CLUMSY, REWIND, SCRIPTED, STICKY, UNIFORM, PolicyConfig
from v2.eval.branches import BRANCH_STEPS, Branches
from v2.eval.gold import gold_arrays, gold_path, save_gold
from v2.eval.replays import Recorder
from v2.eval.starts import HISTORY, stratified_starts
from v2.runtime.files import check_output

MIN_CLIP_FRAMES = 250
ROLLOUT_STEPS = 200
STARTS_PER_STRATUM = 8
NUM_BRANCHED = 208
BRANCH_SPACING = 15  # steps between two branched states of a game, one second
GAMES = {  # policy, games, steps a game
    "breakout": (
        (SCRIPTED, 12, 600), (CLUMSY, 8, 500), (REWIND, 10, 6000), (STICKY, 8, 400),
        (UNIFORM, 6, 400),
    ),
    "pong": ((SCRIPTED, 12, 600), (CLUMSY, 8, 500), (STICKY, 5, 1500), (UNIFORM, 3, 1500)),
}  # fmt: skip
BALL_BYTES = {"breakout": 101, "pong": 54}  # of the memory: zero while there is no ball


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", choices=sorted(GAMES), default="breakout")
    parser.add_argument("--out", type=cli.path,
                        help="file (default: the set in the repository)")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    emulator = EmulatorConfig(args.game)
    path = args.out or gold_path(emulator.game)
    check_output(path)
    arrays, meta = build(emulator, GAMES[emulator.game], STARTS_PER_STRATUM, NUM_BRANCHED)
    digest = save_gold(path, arrays, meta)
    counts = {name: len(arrays[name]) for name in ("frames", "start_rows", "fork_seeds")}
    print(f"{counts['frames']} frames, {counts['start_rows']} starts, {counts['fork_seeds']} "
          f"branched states, {path.stat().st_size / 1e6:.1f} MB: {path}")  # fmt: skip
    print(f"sha256 {digest}")
    return 0


def build(
    emulator: EmulatorConfig, games: tuple, per_stratum: int, num_branched: int
) -> tuple[dict[str, np.ndarray], dict]:
    """Play, choose starts, branch; equal arguments give equal arrays."""
    segments = record_games(emulator, games)
    arrays, episodes = join_segments([s for s in segments if len(s) >= MIN_CLIP_FRAMES], 0)
    meta = {
        "format": 1, "game": emulator.game, "emulator": emulator_dict(emulator),
        "action_meanings": make_atari_env(config=emulator).action_meanings,
        "ale_py": emulator_version(), "episodes": episodes,
        "mix": {policy.name: [count, steps] for policy, count, steps in games},
    }  # fmt: skip
    data = GameData(**arrays, meta=meta)
    rng = np.random.default_rng(GOLD_SEED_START)
    starts, strata = stratified_starts(data, per_stratum, ROLLOUT_STEPS, rng)
    branches = record_branches(emulator, _replayable(segments), num_branched, rng)
    return gold_arrays(data, starts, strata, branches), meta


def record_games(emulator: EmulatorConfig, games: tuple) -> list[Segment]:
    """Play all games through the collector's recorder, each from a reserved seed."""
    jobs = [
        GameJob(emulator, _alone(policy), GOLD_SEED_START + SEEDS_PER_POLICY * k + game, steps)
        for k, (policy, count, steps) in enumerate(games)
        for game in range(count)
    ]
    return [s for job in tqdm(jobs, unit="game", disable=None) for s in record_game(job)]


def _alone(policy: PolicyConfig) -> PolicyConfig:
    return dataclasses.replace(policy, share=1.0)


def _replayable(segments: list[Segment]) -> list[Segment]:
    """Keep each game's first segment, which alone begins at a reset, if it is long enough."""
    firsts: dict[int, Segment] = {}
    for segment in segments:
        firsts.setdefault(segment.seed, segment)
    return [s for s in firsts.values() if len(s) > HISTORY + 2 * BRANCH_SPACING]


def record_branches(
    emulator: EmulatorConfig, segments: list[Segment], num_branched: int, rng: np.random.Generator
) -> Branches:
    """Replay games and continue evenly many of their states under every held action.

    Raises:
        ValueError: too few states, or a game that does not repeat itself.
    """
    candidates = [
        (index, t)
        for index, segment in enumerate(segments)
        for t in range(BRANCH_SPACING, len(segment) - BRANCH_STEPS - 1, BRANCH_SPACING)
        if segment.ram[t][BALL_BYTES[emulator.game]] > 0
    ]
    if len(candidates) < num_branched:
        raise ValueError(f"{len(candidates)} states to branch, not {num_branched}: play more")
    chosen = sorted(candidates[k] for k in rng.choice(len(candidates), num_branched, replace=False))
    recorder = Recorder(make_atari_env(config=emulator))
    for index, segment in enumerate(tqdm(segments, unit="game", disable=None, desc="branches")):
        times = {t for k, t in chosen if k == index}
        if times and not recorder.add_game(segment.seed, segment.frames, segment.actions, times):
            raise ValueError(f"game {segment.seed} does not repeat itself")
    return recorder.branches()


if __name__ == "__main__":
    cli.run(main)
