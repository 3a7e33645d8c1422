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

import torch

from v2.data.games import find_weights, game_directory
from v2.models.pairs import either
from v2.models.temporal_world_model import TemporalWorldModel
from v2.models.vqvae_hires import VQVAE
from v2.models.weights import load_vqvae, load_world_model, stored_pairs, tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.run_dir import OF_A_MACHINE, SHIPPED, is_of_smoke, read_config

KEPT = ("step", "minutes", "metrics", "train_args", "earlier", "emulator", "action_meanings",
        "vqvae_sha256", "data_sha256", "seen_pairs", "averaged_with")  # fmt: skip


def build_parser():
    parser = cli.parser(__doc__.splitlines()[0], __doc__.splitlines()[2].strip())
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--run", default="latest", help="latest, a run's name or a checkpoint")
    parser.add_argument("--vqvae", help="a run or a file with the same tokens and a decoder "
                        "trained further (default: the VQ-VAE of the world model's run)")
    parser.add_argument("--average", nargs="+", action="extend", default=[], metavar="NAME",
                        help="other world models of the same tokens, such as shipped: the mean of "
                        "their weights and the run's is shipped (arXiv 2203.05482)")  # fmt: skip
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
    stored_pairs(info, world_model.config, path)  # refuses damaged ones
    others = [find_weights(name, "world_model", args.game) for name in args.average]
    if others:
        _average(world_model, info, others, vqvae)
    for model, source in ((vqvae, vqvae_path), (world_model, path)):
        checkpoint.check_finite(model.to(checkpoint.SHIPPED_DTYPE).state_dict(), source)
    assert checkpoint.model_sha256(vqvae) == vqvae_sha256  # shipping changes nothing
    directory = game_directory(args.game)
    for kind, model, state, source in (
        ("vqvae", vqvae, vqvae_info, vqvae_path),
        ("world_model", world_model, info, path),
    ):
        target = directory / SHIPPED[kind]
        kept = {key: state[key] for key in KEPT if key in state}
        for run in (kept, *kept.get("earlier", [])):
            flags = run["train_args"].items()
            run["train_args"] = {k: v for k, v in flags if k not in OF_A_MACHINE}
        checkpoint.save_checkpoint(target, kind, model, **kept)
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, from {source.parent.name}")
    print(f"next: python v2/eval/gold_eval.py --game {args.game} --checkpoint shipped")
    return 0


def _average(model: TemporalWorldModel, info: dict, others: list[Path], vqvae: VQVAE) -> None:
    """Make a model's weights the mean of its own and the others', its pairs those of all.

    Args:
        info: of the model's checkpoint; it says then what it was averaged with.
    """
    states, hashes = [model.state_dict()], []
    for path in others:
        other, its_info = load_world_model(path, tokenizer_sha256(vqvae))
        checkpoint.check_architecture(model, its_info["config"], path, ignored=("copy_bias",))
        if is_of_smoke(its_info):
            raise ValueError(f"{path} is of a smoke run, which is never shipped")
        states.append(other.state_dict())
        hashes.append(checkpoint.model_sha256(other))
        pairs = [stored_pairs(each, model.config, path) for each in (info, its_info)]
        if all(pairs):
            info["seen_pairs"] = either(*pairs)._asdict()
    model.load_state_dict(
        {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    )
    info["averaged_with"] = hashes
    info.pop("metrics", None)  # they are of the run alone


if __name__ == "__main__":
    cli.run(main)
