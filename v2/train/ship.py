"""Replace the shipped weights by those of a world-model run, or share them in a folder.

    python v2/train/ship.py --game breakout --run latest

With `--to FOLDER` the shipped ones stay: the folder holds the weights with config, model card,
hashes and frames to start from, and every script takes it where it takes weights.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import contextlib

from v2.data.atari_dataset import check_emulator
from v2.data.games import find_weights, game_directory, game_id, learnt_config
from v2.data.recordings import data_paths, default_data
from v2.data.start_scene import cut_start
from v2.eval.gold import GOLD_GAMES
from v2.eval.weights_folder import describe_folder
from v2.models.weights import load_vqvae, load_world_model, tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.commands import command
from v2.runtime.files import check_writable
from v2.runtime.lock import Lock
from v2.runtime.run_dir import OF_A_MACHINE, SHIPPED, is_of_smoke, read_config, vqvae_beside

KEPT = (*checkpoint.HISTORY, "vqvae_sha256")


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--run", type=cli.name, default="latest",
                        help="latest, a run, a home or a checkpoint")
    parser.add_argument("--vqvae", type=cli.name,
                        help="a run or a file with the same tokens and a decoder trained further "
                        "(default: the VQ-VAE of the world model's run)")
    parser.add_argument("--to", type=cli.path, metavar="FOLDER",
                        help="an empty or new folder to share (default: the shipped weights)")
    parser.add_argument("--data", type=cli.path,
                        help="npz that --to takes frames to start from (default: what the run "
                        "learnt from)")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    path = find_weights(args.run, "world_model", args.game)
    if args.to and args.to.exists() and (not args.to.is_dir() or any(args.to.iterdir())):
        raise FileExistsError(f"{args.to} is there and not an empty folder: name another --to")
    config = _config_of_run(path)
    if config.get("is_smoke"):
        raise ValueError(f"{path.parent} is a smoke run, which is never shipped")
    vqvae_path = vqvae_beside(path)
    if args.vqvae:
        vqvae_path = find_weights(args.vqvae, "vqvae", args.game)
    vqvae, vqvae_info = load_vqvae(vqvae_path)
    if is_of_smoke(vqvae_info):
        raise ValueError(f"{vqvae_path} is of a smoke run, which is never shipped")
    vqvae_sha256 = checkpoint.model_sha256(vqvae)
    world_model, info = load_world_model(path, tokenizer_sha256(vqvae))
    if is_of_smoke(info):
        raise ValueError(f"{path} is of a smoke run, which is never shipped")
    learnt_config(info, path, args.game)
    for model, source in ((vqvae, vqvae_path), (world_model, path)):
        checkpoint.check_finite(model.to(checkpoint.SHIPPED_DTYPE).state_dict(), source)
    assert checkpoint.model_sha256(vqvae) == vqvae_sha256  # shipping changes nothing
    data = (args.data or _data_of_run(config, args.game)) if args.to else None
    if data:
        check_emulator(data, path, info)
    scene = cut_start(data) if data else None
    directory = args.to or game_directory(args.game)
    check_writable(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shipped = (
        ("vqvae", vqvae, vqvae_info, vqvae_path), ("world_model", world_model, info, path),
    )  # fmt: skip
    with Lock(directory / "ship.lock", f"shipping weights into {directory}"):
        with contextlib.ExitStack() as both:  # or neither
            for kind, model, state, _ in shipped:
                kept = _without_machine({key: state[key] for key in KEPT if key in state})
                kept["earlier"] = [_without_machine(run) for run in kept.get("earlier", [])]
                target = directory / SHIPPED[kind]
                both.enter_context(checkpoint.saving(target, kind, model, **kept))
        for kind, _, _, source in shipped:
            target = directory / SHIPPED[kind]
            print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, from {source.parent.name}")
        if args.to:
            infos = {"vqvae": vqvae_info, "world_model": info}
            describe_folder(args.to, game_id(args.game), infos, scene)
            print(f"start scene: {data or 'none, as there is no data: give --data'}")
    print(f"next: {_next(args.game, args.to or 'shipped', data)}")
    return 0


def _next(game: str, weights: Path | str, data: Path | None) -> str:
    """Return the command that measures what was shipped, or plays it where nothing measures."""
    if game_id(game) in GOLD_GAMES:
        return command("eval/gold_eval.py", game=game, checkpoint=weights)
    if data:
        return command("eval/gold_eval.py", game=game, checkpoint=weights, data=data)
    return command("play_atari_hires.py", game=game, weights=weights)


def _config_of_run(weights: Path) -> dict:
    """Return what a run was begun with; nothing where weights lie in no run's folder."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return read_config(weights.parent)
    return {}


def _data_of_run(config: dict, game: str) -> Path | None:
    """Return a recording that a run learnt from; None where it is no longer there."""
    named = config.get("args", {}).get("data") or default_data(game, None)
    with contextlib.suppress(FileNotFoundError):
        return data_paths([Path(p) for p in named] if isinstance(named, list) else Path(named))[0]
    return None


def _without_machine(run: dict) -> dict:
    """Return a run's record without what is of one machine: its folders."""
    run = dict(run)
    if "recipe" in run:
        run["recipe"] = run["recipe"] | {"init_from": Path(run["recipe"]["init_from"]).name}
    if "train_args" in run:  # of an older version
        run["train_args"] = {k: v for k, v in run["train_args"].items() if k not in OF_A_MACHINE}
    return run


if __name__ == "__main__":
    cli.run(main)
