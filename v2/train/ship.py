"""Replace the shipped weights by those of a world-model run, in the compact dtype.

    python v2/train/ship.py --game breakout --run latest
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()


from v2.data.games import find_weights, game_directory
from v2.models.weights import load_vqvae, load_world_model, tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.commands import command
from v2.runtime.files import check_writable
from v2.runtime.lock import Lock
from v2.runtime.run_dir import OF_A_MACHINE, SHIPPED, is_of_smoke, read_config

KEPT = (*checkpoint.HISTORY, "vqvae_sha256")


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--run", default="latest", help="latest, a run, a home or a checkpoint")
    parser.add_argument("--vqvae", help="a run or a file with the same tokens and a decoder "
                        "trained further (default: the VQ-VAE of the world model's run)")
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    path = find_weights(args.run, "world_model", args.game)
    if read_config(path.parent).get("is_smoke"):
        raise ValueError(f"{path.parent} is a smoke run, which is never shipped")
    vqvae_path = path.with_name("vqvae.pt")
    if args.vqvae:
        vqvae_path = find_weights(args.vqvae, "vqvae", args.game)
    vqvae, vqvae_info = load_vqvae(vqvae_path)
    if is_of_smoke(vqvae_info):
        raise ValueError(f"{vqvae_path} is of a smoke run, which is never shipped")
    vqvae_sha256 = checkpoint.model_sha256(vqvae)
    world_model, info = load_world_model(path, tokenizer_sha256(vqvae))
    for model, source in ((vqvae, vqvae_path), (world_model, path)):
        checkpoint.check_finite(model.to(checkpoint.SHIPPED_DTYPE).state_dict(), source)
    assert checkpoint.model_sha256(vqvae) == vqvae_sha256  # shipping changes nothing
    directory = game_directory(args.game)
    check_writable(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with Lock(directory / "ship.lock", f"shipping weights into {directory}"):
        for kind, model, state, source in (
            ("vqvae", vqvae, vqvae_info, vqvae_path),
            ("world_model", world_model, info, path),
        ):
            target = directory / SHIPPED[kind]
            kept = _without_machine({key: state[key] for key in KEPT if key in state})
            kept["earlier"] = [_without_machine(run) for run in kept.get("earlier", [])]
            checkpoint.save_checkpoint(target, kind, model, **kept)
            print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, from {source.parent.name}")
    evaluate = command("eval/gold_eval.py", game=args.game, checkpoint="shipped")
    print(f"next: {evaluate}")
    return 0


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
