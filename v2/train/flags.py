"""The flags of both training scripts: where things are, how long, and the recipe.

Contract: a flag that is not given leaves the preset's value, or with `--resume` the run's own. What
a resumed run was given anew is told apart, so that it can be logged. Knows nothing of models.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic

from v2.data.games import game_directory
from v2.runtime import cli
from v2.runtime.run_dir import find_run, read_config
from v2.train.recipe import (
    Recipe,
    SomeRecipe,
    VQVAERecipe,
    WorldModelRecipe,
    recipe_of,
    with_settings,
)

# by the kind of a run
RECIPES: dict[str, type[Recipe]] = {"vqvae": VQVAERecipe, "world_model": WorldModelRecipe}
OF_THE_START = ("is_smoke", "init_from", "decoder_only", "table_bits", "table_folds")  # fields
NOT_RESUMED = ("resume", "max_minutes", "skip_bad", "debug", "preset", "set")
KINDS = {  # of the recipe's fields that have a flag of their own
    "epochs": cli.positive_int, "batch_size": cli.batch_size, "lr": cli.positive_float,
    "rollout_steps": cli.positive_int, "rollout_ratio": cli.probability,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Parsed(Generic[SomeRecipe]):
    """What the command line asks for."""

    args: argparse.Namespace  # where things are and how long
    recipe: SomeRecipe
    changed: dict  # of a resumed run, flag or field -> its new value


def training_parser(script: str, presets: Mapping[str, Recipe]) -> argparse.ArgumentParser:
    """Make the parser that both scripts share, of `cli.parser`."""
    parser = cli.parser(script)
    parser.add_argument("--game", default="breakout", help="any ALE game")
    parser.add_argument("--data", type=cli.path, nargs="+", action=cli.Gather, metavar="FILE",
                        help="recordings, or folders of them (default: the one in --out, else the "
                        "game's)")  # fmt: skip
    parser.add_argument("--skip-bad", action="store_true",
                        help="rename damaged shards to *.bad and go on without")  # fmt: skip
    parser.add_argument("--out", type=cli.path, metavar="HOME", help="directory of runs/ and "
                        "what belongs to them (default: the game's)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0)
    length = parser.add_argument_group("length")
    length.add_argument("--max-minutes", type=cli.positive_float,
                        help="save and stop then; --resume goes on")  # fmt: skip
    length.add_argument("--resume", type=cli.name, metavar="RUN",
                        help="continue a run: its name or folder")
    group = parser.add_argument_group("recipe (v2/train/recipe.py; with --resume the run's own)")
    group.add_argument("--preset", choices=presets, help="(default: default)")
    usual = presets["default"]
    for name, kind in KINDS.items():
        if hasattr(usual, name):
            group.add_argument(f"--{name.replace('_', '-')}", type=kind,
                               help=f"(default: {getattr(usual, name)})")  # fmt: skip
    group.add_argument("--set", nargs="+", action=cli.Gather, default=[], metavar="FIELD=VALUE",
                       help="any other field of the recipe")  # fmt: skip
    return parser


def parse(
    parser: argparse.ArgumentParser, presets: Mapping[str, SomeRecipe], argv: list[str] | None
) -> Parsed[SomeRecipe]:
    """Parse flags; with --resume the run's own flags and recipe are the defaults.

    Raises:
        ValueError, FileNotFoundError: a flag or field that is out of range, or no such run.
    """
    args = parser.parse_args(argv)
    if args.resume is None:
        return Parsed(args, _changed(presets[args.preset or "default"], args), {})
    if args.preset:
        raise ValueError("--preset is decided when a run begins: leave it out with --resume")
    run = find_run(args.resume, args.out or game_directory(args.game))
    config = read_config(run)
    of_kind = type(presets["default"])
    if RECIPES.get(config.get("kind", "")) is not of_kind:
        raise ValueError(
            f"{run} is a {config.get('kind')} run: resume it with the script that began it"
        )
    if "recipe" not in config:
        raise ValueError(
            f"{run} was begun by an older version: begin a new run with its weights, "
            f"--set init_from={run}"
        )
    stored = {k: v for k, v in config["args"].items() if k not in NOT_RESUMED}
    parser.set_defaults(**stored)
    args, began = parser.parse_args(argv), recipe_of(of_kind, config["recipe"])
    args.resume = run
    if args.data:  # as a run keeps it: one name, or a list
        names = args.data if isinstance(args.data, list) else [args.data]
        args.data = [Path(name) for name in names]
    recipe, now = _changed(began, args), plain_args(args)
    changed = {k: now[k] for k in stored if k in now and now[k] != stored[k]}
    fields = began.changes(recipe)
    for name in OF_THE_START:
        if name in fields:
            raise ValueError(
                f"--set {name}={fields[name]} is decided when a run begins: leave it out with "
                "--resume"
            )
    return Parsed(args, recipe, changed | fields)


def _changed(recipe: SomeRecipe, args: argparse.Namespace) -> SomeRecipe:
    given: dict[str, Any] = {name: getattr(args, name, None) for name in KINDS}
    given = {name: value for name, value in given.items() if value is not None}
    if "epochs" in given:
        given["steps"] = 0
    return with_settings(dataclasses.replace(recipe, **given), args.set)


def plain_args(args: argparse.Namespace) -> dict:
    """Return flags as plain values; paths hold from any folder. The recipe's are left out."""
    kept = {k: v for k, v in vars(args).items() if k not in (*KINDS, "set", "preset")}
    if kept["data"]:
        names = [str(path.absolute()) for path in kept["data"]]
        kept["data"] = names if len(names) > 1 else names[0]
    return {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in kept.items()}
