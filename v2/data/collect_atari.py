"""Collect real Atari episodes into `atari_game_data.npz`, or shards of it.

    python v2/data/collect_atari.py --game breakout --frames 200000 --policy mix --seed 0
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import argparse
import contextlib
import dataclasses
import shutil
import time

import numpy as np
from tqdm import tqdm

from v2.data.atari_dataset import GameData, save_game_data
from v2.data.collector import SEEDS_PER_RUN, Segment, join_segments, record
from v2.data.emulator import emulator_config, emulator_version, make_atari_env
from v2.data.environments import ALE_ORDER, read_env_args
from v2.data.flicker import measure_flicker
from v2.data.games import FITS, EmulatorConfig, emulator_dict, game_directory
from v2.data.policies import POLICY_NAMES, PolicyConfig, policy_mix
from v2.data.recordings import (
    COLLECTING,
    DATA_NAME,
    UNFINISHED,
    recorded_files,
    say_all_are_there,
    shard_path,
)
from v2.data.resolution import measure_small_things
from v2.runtime.commands import command
from v2.runtime.files import check_writable
from v2.runtime.lock import Lock

MAX_SEED = 98


def build_parser():
    parser = cli.parser(__file__)
    emulator = EmulatorConfig()
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--game", default=emulator.game, help="any ALE game")
    which.add_argument("--env", dest="game", metavar="ID", help="any environment of Gymnasium with "
                       "discrete actions and a picture, such as CartPole-v1")  # fmt: skip
    parser.add_argument("--frames", type=cli.positive_int, default=200_000)
    parser.add_argument("--policy", choices=POLICY_NAMES, default="mix")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0,
                        help=f"0 to {MAX_SEED}; each has its own game seeds")  # fmt: skip
    parser.add_argument("--workers", type=cli.num_workers, default=2, help="processes")
    parser.add_argument("--out", type=cli.path,
                        help="directory (default: checkpoints/v2/<game>)")  # fmt: skip
    parser.add_argument("--frames-per-shard", type=cli.positive_int, default=250_000,
                        help="more frames than this come as shards; bounds the memory")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace data that is there")
    group = parser.add_argument_group("emulator")
    group.add_argument("--frameskip", type=cli.positive_int,
                       help=f"(default: {emulator.frameskip}, of another environment 1)")
    group.add_argument("--sticky", type=cli.probability_below_one, metavar="PROB",
                       default=emulator.repeat_action_probability,
                       help="probability that the emulator repeats the last action")  # fmt: skip
    group.add_argument("--max-pool", action=argparse.BooleanOptionalAction,
                       help="maximum of the last two screens, for games that flicker "
                       "(default: where objects are found to blink)")  # fmt: skip
    group = parser.add_argument_group("of an environment of Gymnasium")
    group.add_argument("--env-arg", action="append", default=[], metavar="NAME=VALUE",
                       help="a further argument of gymnasium.make, such as continuous=False")
    group.add_argument("--fit", choices=FITS, help="its screen as a frame: between black bars, its "
                       "middle, or out of proportion (default: pad)")  # fmt: skip
    group.add_argument("--actions", default="", metavar="NAMES", help="names of its actions, such "
                       "as NOOP,LEFT,UP: the keys that play them (default: its own)")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    emulator = _settings(args)
    mix = policy_mix(args.policy, emulator.game)
    if args.seed > MAX_SEED:
        raise ValueError(f"--seed must be 0 to {MAX_SEED}, got {args.seed}")
    if args.frames < 2 * len(mix):
        raise ValueError(f"--frames must be at least {2 * len(mix)}, got {args.frames}")
    directory = args.out or game_directory(emulator.game)
    check_writable(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with Lock(directory / COLLECTING, f"collecting into {directory}"):
        return _collect(args, emulator, mix, directory)


def _collect(args, emulator: EmulatorConfig, mix: list[PolicyConfig], directory: Path) -> int:
    single = directory / f"{DATA_NAME}.npz"
    old = recorded_files(single)
    if old and not args.overwrite:
        raise FileExistsError(f"{old[0]} is there already: --overwrite replaces it")
    emulator = _looked_at(emulator, args.max_pool)
    meta = {
        "format": 1, "game": emulator.game, "emulator": emulator_dict(emulator),
        "action_meanings": make_atari_env(config=emulator).action_meanings,
        "policy": args.policy,
        "mix": {config.name: config.share for config in mix}, "seed": args.seed,
    } | ({"ale_py": emulator_version()} if emulator.is_atari else {})  # fmt: skip
    folder = directory
    if old:  # they stay until all of the new ones are there
        folder = directory / "overwrite.tmp"
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    began = time.perf_counter()
    segments = record(emulator, mix, args.frames, args.seed * SEEDS_PER_RUN, args.workers)
    try:
        with cli.StopRequest() as stop, contextlib.closing(segments):
            num_frames, scores = _write(segments, args, folder, meta, stop)
        if old and not stop:
            _replace(old, folder)
    finally:
        if old:
            shutil.rmtree(folder, ignore_errors=True)
    if old and stop:
        print(f"stopped: {old[0]} is what it was")
        return stop.exit_code
    if not stop:
        (directory / UNFINISHED).unlink(missing_ok=True)
    seconds = time.perf_counter() - began
    print(f"{num_frames} frames of {len(scores)} episodes (mean score {np.mean(scores):.1f}) in "
          f"{seconds:.0f} s, {num_frames / seconds:.0f} frames a second: {directory}")  # fmt: skip
    train = command("train/train_vqvae_hires.py", game=emulator.game,
                    data=args.out and single, out=args.out)  # fmt: skip
    print(f"next: {train}")
    return stop.exit_code


def _settings(args) -> EmulatorConfig:
    """Return the settings that the flags name."""
    given = {"env_args": read_env_args(args.env_arg), "fit": args.fit, "action_names": args.actions}
    given = {name: value for name, value in given.items() if value}
    emulator = emulator_config(args.game, args.frameskip, max_pool=bool(args.max_pool),
                               repeat_action_probability=args.sticky, **given)  # fmt: skip
    if given and emulator.is_atari:
        raise ValueError(f"--env-arg, --fit and --actions are not for Atari's {emulator.game}")
    return emulator


def _looked_at(emulator: EmulatorConfig, max_pool: bool | None) -> EmulatorConfig:
    """Say what frames will show of the game, and choose what shows more where that is open."""
    if not emulator.is_atari:
        print(f"{emulator.game} of {emulator.package}: {emulator.env_args or 'no argument'}, "
              f"actions {emulator.action_names}, "
              f"{emulator.steps_per_second:g} steps a second")  # fmt: skip
        if emulator.action_names.startswith(",".join(ALE_ORDER[:3])):
            print("note: what these actions do is not known: --actions names them")
        small = measure_small_things(emulator)
        if small.is_worth_a_warning:
            advice = "; --fit crop or stretch shows more of it" if emulator.fit == "pad" else ""
            print(f"warning: {small}{advice}")
    elif max_pool is None:
        flicker = measure_flicker(emulator)
        print(f"{emulator.game}: {flicker}")
        return dataclasses.replace(emulator, max_pool=flicker.is_worth_pooling)
    return emulator


def _replace(old: list[Path], folder: Path) -> None:
    """Put the files of a folder, a whole recording, in place of the old ones beside it."""
    new = [path.replace(folder.parent / path.name) for path in sorted(folder.iterdir())]
    for stale in set(old) - set(new):
        stale.unlink()
    for path in new:  # a damaged shard of the old recording
        Path(f"{path}.bad").unlink(missing_ok=True)


def _write(segments, args, folder: Path, meta: dict, stop) -> tuple[int, list[float]]:
    """Write the segments into a folder without a recording, as they come."""
    shard: list[Segment] = []
    shard_frames, scores, total = 0, [], 0
    sharded = args.frames > args.frames_per_shard
    first_id, single = 0, folder / f"{DATA_NAME}.npz"
    written: list[Path] = []

    def flush():
        nonlocal shard, shard_frames, first_id
        if not written and (others := recorded_files(single)):
            raise FileExistsError(f"{others[0]} came meanwhile: name another --out")
        path = shard_path(single, len(written)) if sharded else single
        arrays, episodes = join_segments(shard, first_id, is_last_use=True)
        save_game_data(path, GameData(**arrays, meta=meta | {"episodes": episodes}))
        first_id += len(shard)
        shard, shard_frames = [], 0
        written.append(path)

    with tqdm(total=args.frames, unit="frame", disable=None, smoothing=0.05) as bar:
        for segment in segments:
            if sharded and shard and shard_frames + len(segment) > args.frames_per_shard:
                flush()
            shard.append(segment)
            shard_frames += len(segment)
            total += len(segment)
            scores.append(float(segment.rewards.sum()))
            bar.update(len(segment))
            bar.set_postfix(policy=segment.policy, score=f"{np.mean(scores):.1f}")
            if stop:
                break
    if shard:
        flush()
    if sharded:
        say_all_are_there(written)
    return total, scores


if __name__ == "__main__":
    cli.run(main)
