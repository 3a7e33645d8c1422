"""Train a world model from scratch under each change of the recipe, at one budget, and compare.

    python v2/train/ablations.py --out ablations

A row should take about 23 minutes on 2 cores (estimated), 5 of them for evaluation; run it again to
go on where it stopped.
Every model is evaluated on the validation games of --data, never on the gold set.
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

from v2.data.recordings import default_data, shown
from v2.data.tokens import TOKENS_NAME
from v2.eval import documents
from v2.runtime.files import check_writable, write_text
from v2.runtime.lock import Lock
from v2.runtime.run_dir import all_runs, is_finished
from v2.train.recipe import WorldModelRecipe

BASE = WorldModelRecipe(
    rollout_start=0.667, eval_steps=10_000  # one validation, at the end
)
ROWS: dict[str, dict] = {  # the fields that differ from BASE, and the seed
    "the recipe": {},
    "the recipe, seed 1": {"seed": 1},
    "the recipe, seed 2": {"seed": 2},
    "rollouts: none": {"rollout_ratio": 0.0},
    "rollouts: from the start": {"rollout_start": 0.0},
    "teacher forcing 0": {"teacher_forcing_prob": 0.0},
    "importance: equal weights": {"motion_scale": 0.0, "event_scale": 0.0,
                                  "persistence_scale": 0.0, "false_change_scale": 0.0},
    "importance: no motion": {"motion_scale": 0.0},
    "importance: no eventness": {"event_scale": 0.0},
    "importance: no persistence": {"persistence_scale": 0.0},
    "history noise: none": {"history_noise": 0.0},
    "copy bias 0": {"copy_bias": 0.0},
    "past actions: none": {"past_actions": 0},
    "rollouts: K = 10": {"rollout_steps": 10, "rollout_batch_size": 6},
    "rollouts: never back to the truth for being wrong": {"max_wrong": 336},
    "false changes not weighed": {"false_change_scale": 0.0},
    "windows with events not favoured": {"event_share": 0.0},
    "no token revealed": {"revealed_share": 0.0},
    "all cells": {"num_cells": 336},
    "calibrated logits": {"is_calibrated": True},
    "age": {"has_age": True},
    "revealed tokens at layer 8": {"reveal_layer": 8},
    "two decided cells": {"reveal_layer": 8, "num_decided": 2},
    "5x5 stem": {"stem_radius": 2},
}  # fmt: skip
RANDOM_DATA = "data of a random policy"  # only with --random-data
COLUMNS = {
    "changed": "one_step/changed_accuracy",
    "false changes": "one_step/false_changes",
    "rollout@10": "rollout/token_accuracy@10",
    "ball 2 px at 1": "rollout/ball_hit_2px@1",
    "at 5": "rollout/ball_hit_2px@5",
    "at 10": "rollout/ball_hit_2px@10",
    "at 20": "rollout/ball_hit_2px@20",
    "two balls at 10": "rollout/ball_duplicates@10",
}


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--data", type=cli.path, nargs="+",
                        help="recordings, or folders of them (default: the game's)")  # fmt: skip
    parser.add_argument("--random-data", type=cli.path,
                        help="npz of a random policy's frames, for one more row")  # fmt: skip
    parser.add_argument("--vqvae", default="shipped", help="latest, shipped, a run or a file")
    parser.add_argument("--out", type=cli.path, default=Path("ablations"),
                        help="directory of the runs and results")  # fmt: skip
    parser.add_argument("--budget", type=cli.positive_int, default=1000,
                        help="one-step batches; a rollout's frames count as windows")  # fmt: skip
    parser.add_argument("--rows", metavar="TEXT", default="", help="only rows with this text")
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    check_writable(args.out)
    args.data = args.data or [default_data(args.game, None)]
    _check_same(args)
    rows = dict(ROWS) | ({RANDOM_DATA: {}} if args.random_data else {})
    for name, changes in rows.items():
        if args.rows in name:
            directory = args.out / _slug(name)
            directory.mkdir(exist_ok=True)
            with Lock(directory / "row.lock", f"working on {directory}"):
                _train_and_evaluate(args, directory, name, changes)
    print_table(args.out, list(rows), args.budget)
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


def _train_and_evaluate(
    args: argparse.Namespace, directory: Path, name: str, changes: dict
) -> None:
    result = directory / "result.json"
    if result.exists():
        return
    learnt, tokens = args.data, args.out / f"{TOKENS_NAME}.npz"
    if name == RANDOM_DATA:
        learnt, tokens = [args.random_data], args.out / f"random_{TOKENS_NAME}.npz"
    runs = _saved_runs(directory)
    if not runs:
        changes = dict(changes)
        seed = changes.pop("seed", 0)
        recipe = dataclasses.replace(BASE, **changes)
        recipe = dataclasses.replace(recipe, steps=num_steps(args.budget, recipe))
        settings = [f"{k}={v}" for k, v in WorldModelRecipe().changes(recipe).items()]
        cli.run_script(
            "train/train_wm_hires.py", "--game", args.game, "--data", *learnt,
            "--tokens", tokens, "--vqvae", args.vqvae,
            "--out", directory, "--seed", seed, "--set", *settings,
        )  # fmt: skip
    elif not is_finished(runs[-1]):
        cli.run_script("train/train_wm_hires.py", "--resume", runs[-1])
    last = _saved_runs(directory)[-1] / "last.pt"
    cli.run_script(
        "eval/gold_eval.py", "--game", args.game, "--data", *args.data, "--checkpoint", last,
        "--tier", "short", "--json", result,
    )  # fmt: skip


def _saved_runs(directory: Path) -> list[Path]:
    return [run for run in all_runs(directory) if (run / "last.pt").exists()]


def num_steps(budget: int, recipe: WorldModelRecipe) -> int:
    """Return how many steps a budget of one-step batches allows."""
    frames = recipe.rollout_steps * recipe.rollout_batch_size
    more = recipe.rollout_ratio * (frames / recipe.batch_size - 1)  # once rollouts began
    cost = 1 + (1 - recipe.rollout_start) * more
    return round(budget / cost)


def print_table(out: Path, names: list[str], budget: int) -> None:
    """Print the rows that are done as Markdown."""
    print(f"\n| change | steps | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for name in names:
        path = out / _slug(name) / "result.json"
        if path.exists():
            document = documents.read_document(path)
            metrics = [document["metrics"].get(key, {}).get("value") for key in COLUMNS.values()]
            values = ["-" if value is None else f"{100 * value:.2f}" for value in metrics]
            steps = document["training"]["train_wm_hires"][-1]["steps"]
            print(f"| {name} | {steps} | {' | '.join(values)} |")
    print(f"\n(percent; `python v2/train/ablations.py --budget {budget}`)")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


if __name__ == "__main__":
    cli.run(main)
