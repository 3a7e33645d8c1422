"""Turn collected frames into `atari_tokens_hires.npz`, bound by hash to data and VQ-VAE.

    python v2/data/tokenize_atari.py --game breakout
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

from v2.data.atari_dataset import check_emulator, check_game, set_bad_aside
from v2.data.coverage import choose_count, coverage, far_rank
from v2.data.games import find_weights
from v2.data.recordings import Data, check_recorded, default_data, shown
from v2.data.tokens import check_target, tokenize, tokens_path
from v2.models.weights import load_vqvae
from v2.runtime.commands import command, given
from v2.runtime.device import choose_device
from v2.runtime.files import check_output


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--data", type=cli.path, nargs="+", action=cli.Gather, metavar="FILE",
                        help="recordings, or folders of them (default: the one in --out, else the "
                        "game's)")  # fmt: skip
    parser.add_argument("--skip-bad", action="store_true",
                        help="rename damaged shards to *.bad and go on without")  # fmt: skip
    parser.add_argument("--vqvae", "--weights", type=cli.name, default="latest",
                        help="latest, in --out first; shipped, a run, a home, a folder or a file")
    parser.add_argument("--out", type=cli.path, metavar="HOME", help="directory, or the npz "
                        "itself (default: beside --data)")  # fmt: skip
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=cli.batch_size, default=256)
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    device = choose_device(args.device)
    home = args.out if args.out and (args.out.is_dir() or not args.out.suffix) else None
    data: Data = args.data or default_data(args.game, home)
    out = args.out if args.out and not home else tokens_path(data, home)
    check_target(out)
    check_output(out)
    check_recorded(data, args.game)
    if args.skip_bad:
        set_bad_aside(data)
    check_game(data, args.game)
    path = find_weights(args.vqvae, "vqvae", args.game, home)
    vqvae, info = load_vqvae(path)
    check_emulator(data, path, info)
    print(f"data: {shown(data)}\nVQ-VAE: {path}")
    with cli.StopRequest() as stop:
        tokens = tokenize(data, vqvae, device, args.batch_size, stop)
        if tokens is None:
            return stop.exit_code
        tokens.save(out)
    print(f"{len(tokens)} frames: {out}")
    rank = far_rank(tokens, vqvae.config.grid)
    chosen = choose_count(tokens, rank, vqvae.config.grid).count
    print(f"held-out games: {coverage(tokens, rank, chosen, vqvae.config.grid)}")
    train = command(
        "train/train_wm_hires.py", "--epochs", 100, "--rollout-steps", 5, "--rollout-ratio", 0.5,
        **given(args, "game", "data", "vqvae", "device"),
        tokens=None if home else args.out, out=home or (args.out and args.out.parent),
    )  # fmt: skip
    print(f"next: {train}")
    return 0


if __name__ == "__main__":
    cli.run(main)
