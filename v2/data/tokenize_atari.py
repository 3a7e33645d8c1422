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

from v2.data.atari_dataset import DATA_NAME, check_emulator, check_game, set_bad_aside
from v2.data.coverage import choose_count, coverage, far_rank
from v2.data.games import find_weights, game_directory
from v2.data.tokens import TOKENS_NAME, check_target, tokenize
from v2.models.weights import load_vqvae
from v2.runtime.device import choose_device
from v2.runtime.files import check_output


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--data", type=cli.path,
                        help="npz of frames (default: the game's)")  # fmt: skip
    parser.add_argument("--skip-bad", action="store_true",
                        help="rename damaged shards to *.bad and go on without")  # fmt: skip
    parser.add_argument("--vqvae", "--weights", default="latest",
                        help="latest, shipped, a run, a folder or a file")  # fmt: skip
    parser.add_argument("--out", type=cli.path, help="npz to write (default: the game's)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=cli.batch_size, default=256)
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    device = choose_device(args.device)
    directory = game_directory(args.game)
    out = args.out or directory / f"{TOKENS_NAME}.npz"
    check_target(out)
    check_output(out)
    data = args.data or directory / f"{DATA_NAME}.npz"
    if args.skip_bad:
        set_bad_aside(data)
    check_game(data, args.game)
    path = find_weights(args.vqvae, "vqvae", args.game)
    vqvae, info = load_vqvae(path)
    check_emulator(data, path, info)
    print(f"VQ-VAE: {path}")
    with cli.StopRequest() as stop:
        tokens = tokenize(data, vqvae, device, args.batch_size, stop)
        if tokens is None:
            return stop.exit_code
        tokens.save(out)
    print(f"{len(tokens)} frames: {out}")
    rank = far_rank(tokens, vqvae.config.grid)
    chosen = choose_count(tokens, rank, vqvae.config.grid).count
    print(f"held-out games: {coverage(tokens, rank, chosen, vqvae.config.grid)}")
    print(f"next: python v2/train/train_wm_hires.py --game {args.game} --epochs 100 "
          "--rollout-steps 5 --rollout-ratio 0.5")  # fmt: skip
    return 0


if __name__ == "__main__":
    cli.run(main)
