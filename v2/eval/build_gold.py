"""Rebuild a game's frozen evaluation set from the emulator, bit for bit.

    python v2/eval/build_gold.py --game breakout --out /tmp/breakout-2.npz

Games come from reserved seeds through the collector's own recorder, and every one begins at a
reset: of a rewinding game its one course that was never undone. All are played again from their
actions, which proves that they are exact, and saved states are continued under every action.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import collections
import dataclasses
import tempfile

import numpy as np
from tqdm import tqdm

from v2.data.atari_dataset import GOLD_SEED_START, GameData
from v2.data.collector import SEEDS_PER_POLICY, GameJob, Segment, record_game
from v2.data.emulator import emulator_version, make_atari_env
from v2.data.games import EmulatorConfig, emulator_dict
from v2.data.policies import CLUMSY, REWIND, SCRIPTED, STICKY, UNIFORM
from v2.eval.branches import BRANCH_STEPS
from v2.eval.gold import GOLD_GAMES, gold_path
from v2.eval.gold_replay import (
    GoldGames,
    branches_digest,
    game_digests,
    play_again,
    write_games,
)
from v2.eval.objects import detector
from v2.eval.starts import HISTORY, stratified_starts
from v2.eval.turns import turn_starts
from v2.runtime.files import check_output

FIRST_SEED = GOLD_SEED_START + 100_000_000  # the first edition's games lie below
ROLLOUT_STEPS, LONG_STEPS = 50, 200
STARTS_PER_STRATUM, LONG_PER_STRATUM = 40, 8
MIN_GAME_FRAMES, MAX_GAME_FRAMES = HISTORY + ROLLOUT_STEPS, 3000
MIN_TURNS = 240  # windows of every kind
NUM_BRANCHED = 208
BRANCH_SPACING = 15  # steps between two branched states of a game, one second
GAMES = {  # policy, games, steps a game
    "breakout": (
        (SCRIPTED, 10, 500), (CLUMSY, 8, 600), (REWIND, 10, 6000), (STICKY, 12, 400),
        (UNIFORM, 36, 400),
    ),
    "pong": ((SCRIPTED, 12, 1200), (CLUMSY, 10, 1200), (STICKY, 5, 900), (UNIFORM, 4, 900)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Size:
    """How many rollouts begin in each stratum, how long they are, and how many states branch."""

    per_stratum: int = STARTS_PER_STRATUM
    long_per_stratum: int = LONG_PER_STRATUM
    branched: int = NUM_BRANCHED
    steps: int = ROLLOUT_STEPS
    long_steps: int = LONG_STEPS


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", choices=GOLD_GAMES, default="breakout")
    parser.add_argument("--out", type=cli.path,
                        help="file (default: the set in the repository)")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    emulator = EmulatorConfig(args.game)
    path = args.out or gold_path(emulator.game)
    check_output(path)
    games, data = build(path, emulator, GAMES[emulator.game], Size())
    kinds = turn_starts(emulator.game, data.ram, data.episode_ids, per_kind=len(data))[1]
    turns, strata = collections.Counter(kinds), collections.Counter(games.strata)
    print(f"starts {dict(strata)}, long {dict(collections.Counter(games.long_strata))}")
    print(f"windows of turns {dict(turns)}")
    if min(turns.values()) < MIN_TURNS:
        raise ValueError(f"fewer than {MIN_TURNS} windows of a kind of turn: play more games")
    digest = write_games(path, games)
    print(f"{len(games.meta['episodes'])} games, {len(games)} frames, {len(games.branch_rows)} "
          f"branched states, {path.stat().st_size / 1e3:.0f} kB: {path}")  # fmt: skip
    print(f"sha256 {digest}")
    return 0


def build(
    path: Path, emulator: EmulatorConfig, games: tuple, size: Size
) -> tuple[GoldGames, GameData]:
    """Play, play again, choose starts and states; equal arguments give equal sets."""
    played = [game for game in record_games(emulator, games) if len(game) >= MIN_GAME_FRAMES]
    rng = np.random.default_rng(FIRST_SEED)
    rows = _branch_rows(emulator.game, played, size.branched, rng)
    chosen = GoldGames(path, "", _meta(emulator, games, played), _actions(played),
                       rows[:0], [], rows[:0], [], rows)  # fmt: skip
    data, branches = play_again(chosen, Path(tempfile.gettempdir()))
    if not np.array_equal(data.ram, np.concatenate([game.ram for game in played])):
        raise ValueError("the emulator does not repeat the games that it played")
    for episode, digest in zip(chosen.meta["episodes"], game_digests(data), strict=True):
        episode["sha256"] = digest
    chosen.meta["branches_sha256"] = branches_digest(branches)
    chosen.starts, chosen.strata = stratified_starts(data, size.per_stratum, size.steps, rng)
    chosen.long_starts, chosen.long_strata = stratified_starts(
        data, size.long_per_stratum, size.long_steps, rng
    )
    return chosen, data


def record_games(emulator: EmulatorConfig, mix: tuple) -> list[Segment]:
    """Play all games through the collector's recorder, each from a reserved seed."""
    jobs = [
        GameJob(emulator, dataclasses.replace(policy, share=1.0),
                FIRST_SEED + SEEDS_PER_POLICY * k + game, steps)
        for k, (policy, count, steps) in enumerate(mix)
        for game in range(count)
    ]  # fmt: skip
    games = (_one_course(record_game(job)) for job in tqdm(jobs, unit="game", disable=None))
    return [game.cut(MAX_GAME_FRAMES) for game in games]


def _one_course(segments: list[Segment]) -> Segment:
    """Join the segments of a rewinding game into the course that was never undone, frameless."""
    first, *others = segments
    ram, actions, rewards = list(first.ram), list(first.actions), list(first.rewards)
    is_over = first.terminated
    for segment in others:
        back = next(t for t in reversed(range(len(ram))) if np.array_equal(ram[t], segment.ram[0]))
        ram[back:], actions[back:] = segment.ram, segment.actions
        rewards[back:], is_over = segment.rewards, segment.terminated
    return Segment(first.seed, first.policy, np.zeros(len(ram)), np.stack(ram),
                   np.array(actions, np.uint8), np.array(rewards), is_over)  # fmt: skip


def _branch_rows(
    game: str, played: list[Segment], count: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw states with a ball in play, over the rows of all games.

    Raises:
        ValueError: too few.
    """
    firsts = np.cumsum([0, *map(len, played)])
    found = [
        np.arange(first + BRANCH_SPACING, last - BRANCH_STEPS - 1, BRANCH_SPACING)
        for first, last in zip(firsts, firsts[1:], strict=False)
    ]
    rows = np.concatenate(found)
    ball = detector.read_ram(game, np.concatenate([one.ram for one in played])).ball
    rows = rows[~np.isnan(ball[rows, 0])]
    if len(rows) < count:
        raise ValueError(f"{len(rows)} states to branch, not {count}: play more")
    return np.sort(rng.choice(rows, count, replace=False)).astype(np.int64)


def _meta(emulator: EmulatorConfig, games: tuple, played: list[Segment]) -> dict:
    return {
        "format": 2, "game": emulator.game, "emulator": emulator_dict(emulator),
        "action_meanings": make_atari_env(config=emulator).action_meanings,
        "ale_py": emulator_version(),
        "mix": {policy.name: [count, steps] for policy, count, steps in games},
        "episodes": [
            {"id": k, "seed": one.seed, "policy": one.policy, "frames": len(one),
             "score": float(one.rewards.sum())}
            for k, one in enumerate(played)
        ],
    }  # fmt: skip


def _actions(played: list[Segment]) -> np.ndarray:
    """Return the actions of all frames, of each game's last one 0."""
    return np.concatenate([np.append(one.actions, np.uint8(0)) for one in played])


if __name__ == "__main__":
    cli.run(main)
