"""Write docs/games.md, one column a game that was trained, from the documents of gold_eval.py.

    python v2/eval/games_page.py --take checkpoints/v2/freeway/runs/20260101_000000/held_out.json

Contract: the page is a function of `docs/games/<game>.json`, trimmed documents of gold_eval.py
--json, of the strip of pictures beside each, and of what people wrote in `<game>.txt`, if anything.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import json

from v2.data.games import game_directory, shown_name
from v2.eval import documents, tables
from v2.eval.pictures import strip_of
from v2.runtime.commands import ROOT
from v2.runtime.files import atomic_path, check_output, write_text

COPY, CHANCE = "copy_last", "chance"
BRANCH = "branches/right_branch_pixels@8"
ROWS: dict[str, tuple[str, int, str]] = {  # by title: metric, decimals, baseline
    "round trip, dB": ("tokenizer/psnr", 1, ""),
    "its worst patch, dB": ("tokenizer/worst_patch_psnr", 1, ""),
    "changed tokens, one step": ("one_step/changed_accuracy", 2, ""),
    "changed tokens at 10": ("rollout/changed_accuracy@10", 2, ""),
    "PSNR at 1, dB": ("rollout/psnr@1", 1, COPY),
    "PSNR at 10, dB": ("rollout/psnr@10", 1, COPY),
    "PSNR at 50, dB": ("rollout/psnr@50", 1, COPY),
    "right branch at 8": (BRANCH, 2, CHANCE),
}
STEMS = {documents.stem(name) for name, *_ in ROWS.values()}
INTRODUCTION = """\
# Other games

Made by `python v2/eval/games_page.py` from `docs/games/*`; edit those, not this page.

One `make train GAME=...` each, with the default preset and nothing tuned to the game. Figures are
of games held out from the same recording, with 95 % intervals; a few clips of them also chose which
of a run's weights are measured. "At 10" means ten steps after the last real frame, open loop under
the recorded actions.

- *Pooled*: frames are the maximum of two screens, since objects were found to blink.
- *Active cells*: tokens of 336 that a step predicts, as many as the game's motion needs. The more
  there are, the longer training takes.
- *Round trip*: the real frame after tokenizing. Its *worst patch* has 8x8 pixels: small objects.
- *Changed tokens*: the share that is right of those that differ from the last real frame;
  repeating that frame has none.
- Behind each slash stands the baseline: of PSNR repeating the last real frame, of branches chance.
- *Right branch*: of the real outcomes of all held actions, a dream is nearest to that of its own.
"""


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--take", type=cli.path, nargs="+", action=cli.Gather, default=[],
                        metavar="FILE",
                        help="whole documents of gold_eval.py, trimmed into --docs first, with the "
                        "strips beside them")  # fmt: skip
    parser.add_argument("--docs", type=cli.path, default=ROOT / "docs",
                        help="directory of games.md and games/")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    folder, page = args.docs / "games", args.docs / "games.md"
    check_output(page)
    for path in args.take:
        print(f"{path} -> {take(path, folder)}")
    write_text(page, page_of(read_games(folder)))
    print(f"page: {page}")
    return 0


def take(path: Path, folder: Path) -> Path:
    """Keep what the page needs of a document, and its strip; paths begin at the game's folder.

    Raises:
        FileNotFoundError, ValueError: no such document or strip.
    """
    document = _read(path)
    strip = strip_of(path)
    if not strip.exists():
        raise FileNotFoundError(f"no strip {strip}: run gold_eval.py --json {path} again")
    kept = folder / f"{game_directory(document['game']).name}.json"
    text = json.dumps(documents.trimmed(document, STEMS), indent=1, ensure_ascii=False)
    for home in path.resolve().parents[2:3]:  # of runs/RUN/FILE
        text = text.replace(f"{home}/", "")
    write_text(kept, text + "\n")
    with atomic_path(strip_of(kept)) as temporary:
        temporary.write_bytes(strip.read_bytes())
    return kept


def read_games(folder: Path) -> dict[Path, dict]:
    """Read all documents of a folder, by their paths.

    Raises:
        FileNotFoundError, ValueError: there is none, or one that says too little.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no result in {folder}: --take RUN/held_out.json of make train")
    return {path: _read(path) for path in paths}


def _read(path: Path) -> dict:
    document = documents.read_document(path)
    if missing := [key for key in ("game", "emulator", *documents.SHOWN) if key not in document]:
        raise ValueError(f"{path} does not say its {missing[0]!r}: run gold_eval.py --json again")
    return document


def page_of(found: dict[Path, dict]) -> str:
    """Return the page in Markdown."""
    games = found.values()
    lines = [
        INTRODUCTION, *tables.head("", *(shown_name(document["game"]) for document in games)),
        tables.row("pooled", *("yes" if _is_pooled(document) else "no" for document in games)),
        tables.row("active cells", *(str(document.get("num_cells", "-")) for document in games)),
        *(tables.row(title, *(_cell(document, *of_it) for document in games))
          for title, of_it in ROWS.items()),
    ]  # fmt: skip
    for path, document in found.items():
        lines += _section(path, document)
    return "\n".join([*lines, ""])


def _is_pooled(document: dict) -> bool:
    return bool(document["emulator"].get("max_pool"))


def _cell(document: dict, name: str, decimals: int, baseline: str) -> str:
    metric = document["metrics"].get(name, documents.NO_VALUE)
    value = tables.value(metric, decimals)
    return f"{value} / {tables.baseline(metric, baseline, decimals)}" if baseline else value


def _section(path: Path, document: dict) -> list[str]:
    package = document["emulator"].get("package")
    origin = f"{document['game']} of {package}. " if package else ""
    written = path.with_suffix(".txt")
    said = [written.read_text(encoding="utf-8").strip(), ""] if written.exists() else []
    return [
        "", f"## {shown_name(document['game'])}", "", *said,
        f"![{shown_name(document['game'])}: real frames above, dreamed ones below]"
        f"(games/{strip_of(path).name})", "",
        "The rollout of median PSNR, real above, dream below. "
        f"{origin}Figures of {documents.provenance(document)}.",
        *(f"Note: {note}." for note in document["notes"]),
    ]  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
