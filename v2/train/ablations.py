"""Train a world model from scratch under each change of the recipe, at one cost, and compare.

    python v2/train/ablations.py --out ablations

A row takes about 12 minutes on one core; run it again to go on where it stopped. Two may run at
once, each with a `--row` of its own. Every model is evaluated by *one step at turns* on the
validation games of --data, never on the gold set. The table is `ablations.json` in --out, as
`v2/eval/results_page.py` reads it.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import argparse
import dataclasses
import json

import numpy as np

from v2.data.ages import token_ages
from v2.data.games import find_weights
from v2.data.recordings import default_data, shown
from v2.data.tokens import TOKENS_NAME, load_tokens
from v2.dream import DreamEngine
from v2.eval.intervals import Metric
from v2.eval.turns import turn_scores
from v2.eval.validate import NUM_TURNS, WINDOWS_A_TURN, Evaluation, quick_scores
from v2.models.temporal_world_model import WorldModelConfig
from v2.models.weights import load_vqvae
from v2.runtime.device import choose_device
from v2.runtime.files import check_writable, write_text
from v2.runtime.lock import Lock
from v2.runtime.run_dir import all_runs, is_finished
from v2.train.recipe import WorldModelRecipe

BASE = WorldModelRecipe(  # one step alone, and one validation at the end
    num_cells=144, first_cells=0, first_layers=0, memory_bits=0, table_bits=0, has_age=False,
    rollout_ratio=0.0, eval_steps=1_000_000,
)
FULL = {"first_cells": 64, "memory_bits": 15, "table_bits": 16, "is_calibrated": True,
        "has_age": True}  # fmt: skip
REVEALED = {"revealed_share": 0.35}
ROWS: dict[str, dict] = {  # the fields that differ from BASE, and the seed
    "active cells": {},
    "all cells": {"num_cells": 336},
    "64 cells first": {"first_cells": 64},
    "48 cells first": {"first_cells": 48},
    "3 layers first": {"first_layers": 3},
    "a memory of patches": {"memory_bits": 15},
    "a counted table of patches": {"table_bits": 16},
    "calibrated logits": {"is_calibrated": True},
    "age": {"has_age": True},
    "tokens revealed": REVEALED,
    "two decided cells, revealed at the input": REVEALED | {"num_decided": 2},
    "two decided cells, revealed at layer 8": REVEALED | {"reveal_layer": 8, "num_decided": 2},
    "all of these": FULL,
    "active cells, seed 1": {"seed": 1},
    "all of these, seed 1": FULL | {"seed": 1},
    "rollouts early": {"rollout_ratio": 0.5, "rollout_start": 0.0},
    "rollouts late": {"rollout_ratio": 0.5, "rollout_start": 0.667},
    "importance: equal weights": {"motion_scale": 0.0, "event_scale": 0.0,
                                  "persistence_scale": 0.0, "false_change_scale": 0.0},
    "importance: no motion": {"motion_scale": 0.0},
    "importance: no eventness": {"event_scale": 0.0},
    "importance: no persistence": {"persistence_scale": 0.0},
    "false changes not weighed": {"false_change_scale": 0.0},
    "windows with events not favoured": {"event_share": 0.0},
    "history noise: none": {"history_noise": 0.0},
    "past actions: none": {"past_actions": 0},
    "teacher forcing 0": {"rollout_ratio": 0.5, "rollout_start": 0.667,
                          "teacher_forcing_prob": 0.0},
}  # fmt: skip
KINDS = ("flight", "side wall", "top wall", "paddle", "brick", "serve", "lost")
COLUMNS = {kind: f"turns/exact {kind}" for kind in KINDS} | {
    "changed": "changed_accuracy@1", "false changes": "false_changes@1",
    "ball at 1 to 10": "ball_hit",
}  # fmt: skip
OPTIMIZER_CELLS = 600  # cells of one window whose loss costs as much as an optimizer step
TABLE = "ablations.json"


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--data", type=cli.path, nargs="+", action=cli.Gather,
                        help="recordings, or folders of them (default: the game's)")  # fmt: skip
    parser.add_argument("--tokens", type=cli.path,
                        help="npz of their tokens (default: made in --out)")  # fmt: skip
    parser.add_argument("--vqvae", type=cli.name, default="shipped",
                        help="latest, shipped, a run or a file")
    parser.add_argument("--out", type=cli.path, default=Path("ablations"),
                        help="directory of the runs and results")  # fmt: skip
    parser.add_argument("--budget", type=cli.positive_int, default=560,
                        help="steps of the first row; the others cost as much")  # fmt: skip
    parser.add_argument("--row", choices=ROWS, metavar="NAME", help="only this one (default: all)")
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    check_writable(args.out)
    args.data = args.data or [default_data(args.game, None)]
    args.tokens = args.tokens or args.out / f"{TOKENS_NAME}.npz"
    _check_same(args)
    for name, changes in ROWS.items():
        if args.row in (None, name):
            directory = _result(args, name).parent
            directory.mkdir(exist_ok=True)
            with Lock(directory / "row.lock", f"working on {directory}"):
                _train_and_evaluate(args, name, changes)
    rows = [json.loads(file.read_text()) for name in ROWS if (file := _result(args, name)).exists()]
    write_text(args.out / TABLE, json.dumps({
        "command": f"python v2/train/ablations.py --budget {args.budget}",
        "notes": [], "columns": COLUMNS, "rows": rows,
    }, indent=1))  # fmt: skip
    for row in rows:
        values = [f"{title} {row['metrics'][key]['value']:.3f}" for title, key in COLUMNS.items()
                  if row["metrics"].get(key, {}).get("value") is not None]  # fmt: skip
        print(f"{row['name']}: {row['steps']} steps, {row['minutes']:.0f} minutes; "
              f"{', '.join(values)}")  # fmt: skip
    print(f"results: {args.out / TABLE}")
    return 0


def _check_same(args: argparse.Namespace) -> None:
    """Refuse to mix rows of different settings in one directory."""
    asked = {k: str(vars(args)[k]) for k in ("game", "vqvae", "budget")}
    asked["data"] = shown(args.data)
    file = args.out / "settings.json"
    if not file.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asked))
    elif json.loads(file.read_text()) != asked:
        raise ValueError(f"{args.out} was begun with {file.read_text()}: give another --out")


def _train_and_evaluate(args: argparse.Namespace, name: str, changes: dict) -> None:
    result = _result(args, name)
    if result.exists():
        return
    runs = [run for run in all_runs(result.parent) if (run / "last.pt").exists()]
    if not runs:
        changes = dict(changes)
        seed = changes.pop("seed", 0)
        recipe = dataclasses.replace(BASE, **changes)
        recipe = dataclasses.replace(recipe, steps=num_steps(args.budget, recipe))
        settings = [f"{k}={v}" for k, v in WorldModelRecipe().changes(recipe).items()]
        cli.run_script(
            "train/train_wm_hires.py", "--game", args.game, "--data", *args.data,
            "--tokens", args.tokens, "--vqvae", args.vqvae,
            "--out", result.parent, "--seed", seed, "--set", *settings,
        )  # fmt: skip
    elif not is_finished(runs[-1]):
        cli.run_script("train/train_wm_hires.py", "--resume", runs[-1])
    run = [run for run in all_runs(result.parent) if (run / "last.pt").exists()][-1]
    write_text(result, json.dumps({"name": name, **evaluated(args, run / "last.pt")}))


def evaluated(args: argparse.Namespace, world_model: Path) -> dict:
    """Return steps, minutes and metrics of a world model on the held-out games."""
    vqvae, _ = load_vqvae(find_weights(args.vqvae, "vqvae", args.game))
    tokens = load_tokens(args.tokens, vqvae, args.data)
    assert tokens is not None  # training made them
    held_out = Evaluation(
        vqvae, tokens, args.data, choose_device("auto"), NUM_TURNS * WINDOWS_A_TURN,
        token_ages(tokens.tokens, tokens.episode_ids),
    )  # fmt: skip
    engine = DreamEngine.load(str(world_model), args.game)
    metrics = {k: Metric(v) for k, v in quick_scores(engine, held_out.clips).items()}
    if held_out.turns is not None:
        metrics |= turn_scores(engine, held_out.turns)
    kept = ("value", "low", "high", "num_samples")
    plain = {name: metric.to_dict() for name, metric in metrics.items()}
    facts = {"steps": engine.info["step"], "minutes": engine.info["minutes"]}
    return facts | {"metrics": {k: {key: v[key] for key in kept} for k, v in plain.items()}}


def num_steps(budget: int, recipe: WorldModelRecipe) -> int:
    """Return how many steps cost as much as `budget` steps of `BASE`.

    A predicted frame costs as much as its cells and layers, and a step its optimizer besides.
    """
    own, base = _cost(recipe), _cost(BASE)
    return max(1, round(budget * base / own))


def _cost(recipe: WorldModelRecipe, parts: int = 1000) -> float:
    """Return the mean cost of a step, in cells."""
    costs = []
    for part in range(parts):
        share = recipe.rollout_ratio if part >= recipe.rollout_start * parts else 0.0
        frames = (1 - share) * recipe.batch_size
        frames += share * recipe.rollout_batch_size * recipe.rollout_steps
        layers = recipe.layers_at(part, parts) or WorldModelConfig.layers
        cells = recipe.cells_at(part, parts, recipe.num_cells) * layers / WorldModelConfig.layers
        costs.append(frames * cells + OPTIMIZER_CELLS)
    return float(np.mean(costs))


def _result(args: argparse.Namespace, name: str) -> Path:
    slug = "".join(c if c.isalnum() else "_" for c in name)
    return args.out / slug / "result.json"


if __name__ == "__main__":
    cli.run(main)
