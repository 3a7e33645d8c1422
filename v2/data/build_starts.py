"""Make the set of starts that dreams of a game begin from: serves, middles of games, late boards.

    python v2/data/build_starts.py --game breakout --out /tmp/breakout.npz

Equal flags give equal arrays: games are played by scripted policies from seeds of their own.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import itertools
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from v2.data.collector import GameJob, Segment, record_game
from v2.data.dream_starts import HISTORY, PHASES, STARTS_SEED, starts_path
from v2.data.emulator import emulator_version, make_atari_env
from v2.data.games import EmulatorConfig, emulator_dict
from v2.data.npz import write_npz
from v2.data.policies import CLUMSY, SCRIPTED, STICKY, PolicyConfig
from v2.eval.objects import detector
from v2.eval.objects.base import Objects
from v2.runtime.files import check_output

NUM_STARTS = {"serve": 24, "middle": 48, "late": 24}
MAX_GAME_STEPS = 3000
SAFE_STEPS = 12  # after a start, in which the recorded player lost no ball
STARTS_PER_GAME = 4  # of a phase at most, so that no game has most of it
GAMES = {
    "breakout": ((SCRIPTED, 24), (CLUMSY, 8), (STICKY, 4)),
    "pong": ((SCRIPTED, 10), (CLUMSY, 6), (STICKY, 4)),
}
LATE_BRICKS, LATE_POINTS = 40, 14  # at most so many of 108 bricks; so many points of 21


@dataclass
class Start:
    phase: str
    segment: Segment
    step: int
    lives: int


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", choices=sorted(GAMES), default="breakout")
    parser.add_argument("--out", type=cli.path, help="file (default: the committed set)")
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    path = args.out or starts_path(args.game)
    check_output(path)
    emulator = EmulatorConfig(args.game)
    arrays = build(emulator, GAMES[args.game], NUM_STARTS)
    meta = {"format": 1, "emulator": emulator_dict(emulator), "ale_py": emulator_version(),
            "action_meanings": make_atari_env(config=emulator).action_meanings}  # fmt: skip
    write_npz(path, arrays, meta)
    counts = np.bincount(arrays["phases"], minlength=len(NUM_STARTS))
    told = ", ".join(f"{count} {phase}" for phase, count in zip(PHASES, counts, strict=False))
    print(f"{told}, {path.stat().st_size / 1e3:.0f} kB: {path}")
    return 0


def build(
    emulator: EmulatorConfig, games: tuple[tuple[PolicyConfig, int], ...], wanted: dict[str, int]
) -> dict[str, np.ndarray]:
    """Play the games and choose starts of each phase, from as many games as there are.

    Raises:
        ValueError: too few of a phase.
    """
    jobs = [
        GameJob(emulator, policy, STARTS_SEED + 1000 * k + game, MAX_GAME_STEPS)
        for k, (policy, count) in enumerate(games)
        for game in range(count)
    ]
    rng = np.random.default_rng(STARTS_SEED)
    found: list[list[Start]] = []
    for job in tqdm(jobs, unit="game", disable=None):
        (segment,) = record_game(job)
        found.append(_candidates(emulator.game, segment, rng))
    turns = [start for turn in itertools.zip_longest(*found) for start in turn if start]
    chosen: list[Start] = []
    for phase, count in wanted.items():
        of_phase = [start for start in turns if start.phase == phase][:count]
        if len(of_phase) < count:
            raise ValueError(f"{len(of_phase)} starts of phase {phase}, not {count}: play more")
        chosen += of_phase
    return _arrays(chosen)


def _candidates(game: str, segment: Segment, rng: np.random.Generator) -> list[Start]:
    """Return a few moments of each phase, at random steps, the phases in turn.

    None at which a ball has just been lost, or will be before a player could do anything.
    """
    objects = detector.read_ram(game, segment.ram)
    last = np.arange(HISTORY - 1, len(segment) - SAFE_STEPS)  # with a history, before the end
    lost = detector.of_game(game).losses(objects)
    last = last[lost[last + SAFE_STEPS - 1] == lost[last + 1 - HISTORY]]
    flies = ~np.isnan(objects.ball[:, 0])
    is_late = _is_late(game, objects)
    in_flight = np.logical_and.reduce([flies[last - k] for k in range(HISTORY)])
    masks = {"serve": ~flies[last], "middle": in_flight & ~is_late[last],
             "late": in_flight & is_late[last]}  # fmt: skip
    parts = []
    for phase, mask in masks.items():
        steps = rng.permutation(last[mask])[:STARTS_PER_GAME]
        parts.append([Start(phase, segment, int(t), int(objects.lives[t])) for t in steps])
    return [start for turn in itertools.zip_longest(*parts) for start in turn if start]


def _is_late(game: str, objects: Objects) -> np.ndarray:
    if game == "breakout":
        return objects.bricks.sum((1, 2)) <= LATE_BRICKS
    return np.maximum(objects.score // 100, objects.score % 100) >= LATE_POINTS


def _arrays(starts: list[Start]) -> dict[str, np.ndarray]:
    windows = [slice(start.step + 1 - HISTORY, start.step + 1) for start in starts]
    parts = list(zip(starts, windows, strict=True))
    return {
        "frames": np.stack([start.segment.frames[rows] for start, rows in parts]),
        "past_actions": np.stack([start.segment.actions[rows][:-1] for start, rows in parts]),
        "phases": np.array([PHASES.index(start.phase) for start in starts], np.uint8),
        "lives": np.array([start.lives for start in starts], np.int8),
        "seeds": np.array([start.segment.seed for start in starts], np.int64),
        "num_replayed": np.array([start.step for start in starts], np.int32),
        "replayed": np.concatenate([start.segment.actions[: start.step] for start in starts]),
    }


if __name__ == "__main__":
    cli.run(main)
