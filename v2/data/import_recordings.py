"""Import your own recordings as a dataset to train on: videos, arrays, Minari's, or this program's.

    python v2/data/import_recordings.py videos --name ball --actions NOOP,UP,RIGHT,LEFT,DOWN

SOURCE is a folder of videos with a table of actions beside each, an npz file, the id or folder of a
Minari dataset, or what play saved; docs/own-data.md has the forms.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import re

import numpy as np

from v2.data.action_shift import SHIFTS, check_shift
from v2.data.atari_dataset import GameData, check_training_games, save_game_data
from v2.data.contact_sheet import save_contact_sheet
from v2.data.games import FITS, OWN, game_id
from v2.data.importing import ImportSettings, import_source
from v2.data.minari_recordings import check_id, is_minari, minari_source, write_minari
from v2.data.recordings import (
    COLLECTING,
    DATA_NAME,
    UNFINISHED,
    default_data,
    recorded_files,
)
from v2.data.sources import Source, dataset_source, distinct, is_dataset, npz_source
from v2.data.video_recordings import video_source
from v2.play.keys import is_played_by_keys
from v2.runtime.commands import command
from v2.runtime.files import check_output, free_path
from v2.runtime.lock import Lock

USUAL_FPS = 15  # what the recipes were made for


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("source", metavar="SOURCE", help="folder, file or Minari id")
    parser.add_argument("--name", help="of the game, which becomes own-NAME (default: SOURCE's)")
    parser.add_argument("--out", type=cli.path, metavar="DATA.npz",
                        help="file to write (default: checkpoints/v2/own-NAME/"
                        f"{DATA_NAME}.npz)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--to-minari", metavar="ID", help="write a Minari dataset, too")
    parser.add_argument("--actions", metavar="NAME,...",
                        help="the actions' names, in the order of their numbers (default: the "
                        "source's)")  # fmt: skip
    parser.add_argument("--fps", type=cli.steps_per_second,
                        help="frames a second (default: the source's)")  # fmt: skip
    parser.add_argument("--every", type=cli.positive_int, default=1, metavar="N",
                        help="take each N-th frame; its action is the one that is most among N")
    parser.add_argument("--shift", type=int, choices=SHIFTS, default=0,
                        help="the action at frame t stands in row t + SHIFT")
    parser.add_argument("--fit", choices=FITS, default=FITS[0],
                        help="how a picture of another form becomes 84x64")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    game = _game(args.name or Path(args.source).stem)
    out = args.out or default_data(game, None)
    if out.suffix != ".npz":
        raise ValueError(f"--out {out}: a dataset ends in .npz")
    check_output(out)
    _check_free(out, args.overwrite)
    if args.to_minari:
        check_id(args.to_minari)
    names = distinct(args.actions.split(",")) if args.actions else None
    source = _open(args.source, names)
    fps = args.fps or source.fps
    if not fps:
        raise ValueError(f"{args.source} does not say its frame rate: give --fps")
    settings = ImportSettings(game, fps, args.every, args.shift, args.fit)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Lock(out.parent / COLLECTING, f"importing into {out.parent}"):
        with cli.StopRequest() as stop:
            data = import_source(source, settings, out.parent, stop)
        if data is None:
            return stop.exit_code
        check_training_games(out, data.meta["episodes"])
        _check_free(out, args.overwrite)  # from what came meanwhile
        save_game_data(out, data)
        out.with_name(UNFINISHED).unlink(missing_ok=True)
    sheet = out.with_suffix(".png")
    sheet = sheet if args.overwrite else free_path(sheet)  # a picture of another is kept
    save_contact_sheet(sheet, data)
    _report(data, source, settings)
    print(f"data: {out}")
    print(f"contact sheet: {sheet}: do frames and actions belong together?")
    if args.to_minari:
        print(f"Minari: {args.to_minari}, {write_minari(args.to_minari, data)}")
    print(f"next: {command('train/train_vqvae_hires.py', game=game, data=args.out)}")
    return 0


def _check_free(out: Path, may_overwrite: bool) -> None:
    if recorded_files(out) and not may_overwrite:
        raise FileExistsError(f"{recorded_files(out)[0]} is there already: --overwrite replaces it")


def _game(name: str) -> str:
    text = re.sub("[^a-z0-9]+", "-", name.lower().removeprefix(OWN)).strip("-")
    return game_id(OWN + text)


def _open(source: str, names: list[str] | None) -> Source:
    path = Path(source).expanduser()
    if is_minari(source):
        return minari_source(source, names)
    if is_dataset(path):
        return dataset_source(path, names)
    if not path.exists():
        raise FileNotFoundError(f"no SOURCE {source}: a folder, a file, or a Minari id like a/b-v0")
    return npz_source(path, names) if path.suffix == ".npz" else video_source(path, names)


def _report(data: GameData, source: Source, settings: ImportSettings) -> None:
    names, taken = data.meta["action_meanings"], data.actions[data.has_action]
    shares = np.bincount(taken, minlength=len(names)) / len(taken)
    rate = settings.steps_per_second
    print(f"{len(data)} frames of {len(data.meta['episodes'])} episodes, {rate:g} a second")
    print("taken: " + ", ".join(f"{n} {s:.1%}" for n, s in zip(names, shares, strict=True)))
    check = check_shift(data.frames, data.actions, data.episode_ids)
    print(check.told(settings.shift, settings.every))
    for note in source.notes:
        print(f"note: {note}")
    for name in np.array(names)[shares == 0]:
        print(f"note: {name} is never taken: a dream cannot know what it does")
    if unknown := [name for name in names if not is_played_by_keys(name)]:
        print(f"note: no key plays {', '.join(unknown)}: --actions can name them by NOOP, UP, "
              "LEFT, RIGHT, DOWN, FIRE and what is joined of them")  # fmt: skip
    if rate >= 2 * USUAL_FPS:
        every = round(settings.fps / USUAL_FPS)
        print(f"note: little moves in a step at {rate:g} a second: try --every {every}")


if __name__ == "__main__":
    cli.run(main)
