"""Draw how the ball bounces: for each kind of bounce a row of real frames over rows of dreams.

    python v2/eval/bounces.py --game breakout --weights shipped OTHER --out docs/bounces.png

Each is the first of its kind in the gold set whose next frames are all there, so none is chosen by
how it is dreamed. The first column is the last real frame that a dream knows.
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

from v2.data.atari_dataset import GameData, window_starts
from v2.data.games import game_id
from v2.dream import DreamEngine
from v2.eval.engine import dream, known_ages
from v2.eval.gold import load_gold
from v2.eval.pictures import save_grid
from v2.eval.starts import HISTORY, Clips, cut_clips
from v2.eval.suite import check_fits
from v2.eval.turns import turn_starts
from v2.runtime.device import tune_cpu
from v2.runtime.files import check_output

KINDS = {"breakout": ("paddle", "brick", "top wall"), "pong": ("paddle", "wall")}
STEPS = 7
LEAD_STEPS = 1  # dreamed before the bounce


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default="breakout", help=" or ".join(KINDS))
    parser.add_argument("--weights", type=cli.name, nargs="+", action=cli.Gather,
                        default=["shipped"], metavar="WEIGHTS",
                        help="latest, shipped, a run or a file; a row each")  # fmt: skip
    parser.add_argument("--out", type=cli.path, default=Path("bounces.png"), help="PNG file")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    check_output(args.out)
    game = game_id(args.game)
    if game not in KINDS:
        raise ValueError(f"--game {args.game}: bounces are known of {' and '.join(KINDS)}")
    tune_cpu()
    engines = [DreamEngine.load(name, game, args.device) for name in args.weights]
    data = load_gold(game).data
    clips = bounces(data)
    real, own = clips.frames[:, HISTORY - 1 :], clips.actions[:, HISTORY - 1 :]
    rows = [real]
    for engine in engines:
        check_fits(engine, data)
        ages = bounces(dataclasses.replace(data, ages=known_ages(engine, data))).ages
        dreamed = dream(engine, clips.history, clips.past_actions, own, ages=ages).frames
        rows.append(np.concatenate([real[:, :1], dreamed], 1))
    save_grid(args.out, [row[k] for k in range(len(clips)) for row in rows])
    for kind, episode in zip(clips.strata, clips.episodes, strict=True):
        print(f"{kind}: real, then {', '.join(args.weights)}; game {episode}")
    print(f"picture: {args.out}")
    return 0


def bounces(data: GameData) -> Clips:
    """Cut the first clip of each kind from the games of a data set."""
    game = data.meta["game"]
    starts, kinds = turn_starts(game, data.ram, data.episode_ids, per_kind=len(data))
    whole = window_starts(data.episode_ids, HISTORY + STEPS) + HISTORY - 1
    rows = [
        np.intersect1d(starts[np.array(kinds) == kind] - LEAD_STEPS, whole)[0]
        for kind in KINDS[game]
    ]
    return cut_clips(data, np.array(rows), STEPS, list(KINDS[game]))


if __name__ == "__main__":
    cli.run(main)
