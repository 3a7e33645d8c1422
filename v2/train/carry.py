"""Make an unfinished world-model run small enough to be carried to another machine.

    python v2/train/carry.py --run latest

What is kept are the averaged weights in half precision, the recipe and the log, 25 MB, of the
recipe `long` 31, and a VQ-VAE that is not shipped, 22. `make train` with the preset and VQ-VAE that
it prints goes on from it, where none of that run is there that came further, and warms its rate up
again for a few hundred steps, as the optimizer's state stays behind.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import math
import shutil
import tempfile

from v2.data.games import game_directory, shipped_directory
from v2.models.weights import build_model, load_vqvae
from v2.runtime import checkpoint
from v2.runtime.files import check_writable
from v2.runtime.run_dir import (
    CARRIED,
    SHIPPED,
    VQVAE_NAME,
    all_runs,
    find_run,
    is_finished,
    read_config,
    shown_path,
)
from v2.train.recipe import WORLD_MODEL_PRESETS


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--run", type=cli.name, default="latest",
                        help="latest unfinished, a name or a folder")
    parser.add_argument("--out", type=cli.path, help="directory of runs/ and carried/ "
                        "(default: the game's)")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    home = args.out or game_directory(args.game)
    run = _unfinished(home) if args.run == "latest" else find_run(args.run, home)
    config = read_config(run)
    if config["kind"] != "world_model" or is_finished(run):
        raise ValueError(f"{run} is no unfinished run of a world model: ship.py is for others")
    presets = [k for k, v in WORLD_MODEL_PRESETS.items() if vars(v) == config.get("recipe")]
    if not presets:
        raise ValueError(f"{run} is of no preset, so make train would not go on with it")
    target = home / CARRIED / run.name
    check_writable(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / run.name
        made.mkdir()
        _write(run, made, args.game)
        if target.exists():
            target.rename(Path(folder) / "old")
        made.rename(target)
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"{target}: {size / 1e6:.1f} MB")
    vqvae = shown_path(target / VQVAE_NAME) if (target / VQVAE_NAME).exists() else "shipped"
    print(f"next, on the other machine: make train GAME={args.game} PRESET={presets[0]} "
          f"VQVAE={vqvae}")  # fmt: skip
    return 0


def _unfinished(home: Path) -> Path:
    """Return the unfinished world-model run that was begun last."""
    for run in reversed(all_runs(home)):
        is_saved = (run / "last.pt").exists()
        if read_config(run)["kind"] == "world_model" and is_saved and not is_finished(run):
            return run
    raise FileNotFoundError(f"no unfinished world-model run in {home / 'runs'}")


def _write(run: Path, folder: Path, game: str) -> None:
    state = checkpoint.averaged(checkpoint.load_last(run, "world_model"))
    model = build_model(dict(state), run / "last.pt").to(checkpoint.SHIPPED_DTYPE)
    checkpoint.check_finite(model.state_dict(), run)
    kept = {k: v for k, v in state.items() if k not in ("format", "kind", "config", "model")}
    kept |= {"ema": None, "optimizer": {}, "best": -math.inf}  # as best.pt stays behind
    checkpoint.save_checkpoint(folder / "last.pt", "world_model", model, **kept)
    for name in ("config.json", "metrics.jsonl"):
        shutil.copyfile(run / name, folder / name)
    if not _is_shipped(run / VQVAE_NAME, game):
        shutil.copyfile(run / VQVAE_NAME, folder / VQVAE_NAME)


def _is_shipped(vqvae: Path, game: str) -> bool:
    shipped = shipped_directory(game) / SHIPPED["vqvae"]
    if not shipped.exists():
        return False
    own, other = (checkpoint.model_sha256(load_vqvae(path)[0]) for path in (vqvae, shipped))
    return own == other


if __name__ == "__main__":
    cli.run(main)
