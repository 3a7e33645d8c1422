"""Write docs/results.md, its plots and README's ten results from stored documents.

    python v2/eval/results_page.py --take breakout.json pong.json

Contract: page, plots and rows are functions of `docs/results/<game>.json`, trimmed documents of
gold_eval.py --json, and of `docs/results/ablations.json` where there is one, whose form
`documents.read_ablations` says. README is filled between `<!-- results -->` and
`<!-- /results -->`.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import json
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from v2.eval import documents, tables
from v2.runtime.commands import ROOT
from v2.runtime.files import atomic_path, check_output, write_text

GAMES = ("breakout", "pong")
MARKS = "<!-- results -->", "<!-- /results -->"
BALL, PSNR, TURNS = "rollout/ball_hit_2px", "rollout/psnr", "turns/exact "
BASELINES = {
    "copy_last": "copy-last", "constant_velocity": "constant velocity",
    "ceiling": "tokenizer alone", "chance": "chance", "real": "real game",
}  # fmt: skip
COPY, FLOWN, CHANCE, REAL = "copy_last", "constant_velocity", "chance", "real"
BALL_HORIZONS, STRATUM_HORIZONS = (1, 5, 10, 20, 50), (1, 10)
BALL_COLUMNS = (COPY, FLOWN, "ceiling")
STRATA = {
    "flight": "free flight", "wall": "before a wall", "paddle": "before a paddle",
    "brick": "before a brick", "serve": "before a serve",
}  # fmt: skip
ROWS = (  # label, metric, decimals, baseline
    ("token accuracy, one step", "one_step/token_accuracy", 4, COPY),
    ("changed tokens right, one step", "one_step/changed_accuracy", 3, COPY),
    ("false changes, one step", "one_step/false_changes", 4, COPY),
    ("token accuracy at 10", "rollout/token_accuracy@10", 4, COPY),
    ("PSNR at 1, dB", f"{PSNR}@1", 1, COPY),
    ("PSNR at 10, dB", f"{PSNR}@10", 1, COPY),
    ("PSNR at 50, dB", f"{PSNR}@50", 1, COPY),
    ("paddle error at 10, px", "rollout/paddle_error_px@10", 2, COPY),
    ("opponent error at 10, px", "rollout/opponent_error_px@10", 2, COPY),
    ("brick map F1 at 50", "rollout/brick_f1@50", 3, COPY),
    ("score right at 50", "rollout/score_right@50", 2, COPY),
    ("right branch at 1", "branches/right_branch@1", 2, CHANCE),
    ("right branch at 8", "branches/right_branch@8", 2, CHANCE),
    ("long dreams: exactly one ball", "long/one_ball", 2, REAL),
    ("long dreams: frozen frames", "long/frozen_frames", 3, REAL),
    ("long dreams: out of distribution", "long/out_of_distribution", 3, REAL),
)
README_ROWS = (
    *((f"ball within 2 px at {h}", f"{BALL}@{h}", 2, FLOWN) for h in BALL_HORIZONS),
    ("changed tokens right, one step", "one_step/changed_accuracy", 2, COPY),
    ("PSNR at 10, dB", f"{PSNR}@10", 1, COPY),
    ("PSNR at 50, dB", f"{PSNR}@50", 1, COPY),
    ("right counterfactual branch at 8", "branches/right_branch@8", 2, CHANCE),
    ("exactly one ball in long dreams", "long/one_ball", 2, REAL),
)
STEMS = {documents.stem(name) for _, name, *_ in (*ROWS, *README_ROWS)}
INTRODUCTION = f"""\
# Results

Made by `python v2/eval/results_page.py` from `docs/results/*.json`; edit those, not this page.

The data are the frozen gold sets: games that no training and no tuning saw. Rollouts are open loop
under the recorded actions. "At 10" means ten steps after the last real frame. Brackets hold 95 %
intervals over whole games.

- *Ball*: exactly one ball is detected, and it lies within 2 px of the true one.
- *{BASELINES[COPY]}* repeats the last real frame, *{BASELINES[FLOWN]}* flies its ball on.
- *{BASELINES["ceiling"]}* is the real frame after a round trip: no world model on it can do better.
- *One step where the ball turns*: true history, all nine tokens around the true ball right; flight
  also by the ball's native pixels a step across and down, and by place.
- *Right branch*: of the real outcomes of all held actions, a dream is nearest to that of its own.
- *Long dreams* are played by a scripted policy that sees only the dream.
- *Out of distribution*: the tokenizer keeps the frame worse than 99 % of the game's frames.
"""
COLOURS = {COPY: "#868e96", FLOWN: "#1c7ed6", "ceiling": "#2f9e44"}
MODEL_COLOUR = "#d6336c"


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--take", type=cli.path, nargs="+", action=cli.Gather, default=[],
                        metavar="FILE",
                        help="whole documents of gold_eval.py, trimmed into --docs first")
    parser.add_argument("--docs", type=cli.path, default=ROOT / "docs",
                        help="directory of results.md and results/")  # fmt: skip
    parser.add_argument("--readme", type=cli.path, default=ROOT / "README.md",
                        help="file whose ten results are filled in")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    folder, page = args.docs / "results", args.docs / "results.md"
    check_output(page)
    readme = args.readme.read_text(encoding="utf-8")
    for path in args.take:
        print(f"{path} -> {take(path, folder)}")
    found = documents.read_results(folder, GAMES)
    ablations = documents.read_ablations(folder / "ablations.json")
    readme, is_marked = with_results(readme, readme_table(found))
    for game, document in found.items():
        draw(document, folder / f"{game}.png")
    write_text(page, page_of(found, ablations))
    print(f"page: {page}")
    if is_marked:
        write_text(args.readme, readme)
    print(f"{args.readme}: {'its ten results' if is_marked else f'no {MARKS[0]}, left as it is'}")
    return 0


def take(path: Path, folder: Path) -> Path:
    """Keep what the page needs of a document of the gold set.

    Raises:
        FileNotFoundError, ValueError: no such document, or one of other data.
    """
    document = documents.read_document(path)
    if document.get("game") not in GAMES or not document.get("is_gold"):
        raise ValueError(
            f"{path} is of {document.get('data')}: the page shows the gold sets of "
            f"{' and '.join(GAMES)} only; run gold_eval.py without --data"
        )
    kept = folder / f"{document['game']}.json"
    stems = STEMS | {name for name in document["metrics"] if name.startswith(TURNS)}
    write_text(kept, json.dumps(documents.trimmed(document, stems), indent=1) + "\n")
    return kept


def page_of(found: dict[str, dict], ablations: dict | None) -> str:
    """Return the page in Markdown."""
    lines = [INTRODUCTION]
    for game, document in found.items():
        lines += _game_section(game, document)
    if ablations:
        lines += _ablation_section(ablations)
    return "\n".join(lines)


def _game_section(game: str, document: dict) -> list[str]:
    title = game.capitalize()
    return [
        f"## {title}", "", f"Of {documents.provenance(document)}.",
        *(f"Note: {note}." for note in document["notes"]), "",
        f"    python v2/eval/gold_eval.py{document['flags']} --json FILE", "",
        f"![{title}: ball and PSNR over the horizon](results/{game}.png)", "",
        *_ball_table(document), "", *_strata_table(document), "",
        *_turns_table(document), "", *_table(document), "",
    ]  # fmt: skip


def _ball_table(document: dict) -> list[str]:
    names = [BASELINES[name] for name in BALL_COLUMNS]
    lines = tables.head("ball within 2 px", "world model", *names)
    for h in BALL_HORIZONS:
        metric = document["metrics"].get(f"{BALL}@{h}", documents.NO_VALUE)
        others = [tables.baseline(metric, name, 2) for name in BALL_COLUMNS]
        lines.append(tables.row(f"at {h}", tables.value(metric, 2), *others))
    return lines


def _strata_table(document: dict) -> list[str]:
    """Return the ball by what happens right after the last real frame."""
    titles = [(f"at {h}", f"{BASELINES[FLOWN]} at {h}") for h in STRATUM_HORIZONS]
    lines = tables.head("ball within 2 px, from", *sum(titles, ()))
    for stratum, label in STRATA.items():
        names = [f"{BALL}[{stratum}]@{h}" for h in STRATUM_HORIZONS]
        if not document["metrics"].keys() >= set(names):
            continue  # a game without bricks
        rows = [document["metrics"][name] for name in names]
        cells = [
            cell for row in rows for cell in (tables.value(row, 2), tables.baseline(row, FLOWN, 2))
        ]
        lines.append(tables.row(label, *cells))
    return lines


def _turns_table(document: dict) -> list[str]:
    lines = tables.head("one step where the ball turns", "world model", BASELINES[COPY])
    for name, metric in document["metrics"].items():
        if name.startswith(TURNS):
            values = tables.value(metric, 2), tables.baseline(metric, COPY, 2)
            lines.append(tables.row(name.removeprefix(TURNS), *values))
    return lines


def _table(document: dict) -> list[str]:
    lines = tables.head("", "world model", "baseline")
    for label, name, decimals, baseline in ROWS:
        if metric := document["metrics"].get(name):  # Breakout has no opponent, Pong no bricks
            lines.append(tables.row(label, *_cells(metric, decimals, baseline)))
    return lines


def readme_table(found: dict[str, dict]) -> list[str]:
    """Return the ten results for README, each with its baseline."""
    lines = tables.head("", *(name for game in found for name in (game.capitalize(), "baseline")))
    for label, name, decimals, baseline in README_ROWS:
        rows = [d["metrics"].get(name, documents.NO_VALUE) for d in found.values()]
        cells = [cell for metric in rows for cell in _cells(metric, decimals, baseline)]
        lines.append(tables.row(label, *cells))
    return lines


def with_results(readme: str, lines: list[str]) -> tuple[str, bool]:
    """Return README with these lines between its marks, and whether it has marks.

    Raises:
        ValueError: one of the marks alone, or twice.
    """
    counts = [readme.count(mark) for mark in MARKS]
    if counts == [0, 0]:
        return readme, False
    first, last = (readme.find(mark) for mark in MARKS)
    if counts != [1, 1] or first > last:
        raise ValueError(f"README must hold {MARKS[0]} once and then {MARKS[1]} once")
    return f"{readme[: first + len(MARKS[0])]}\n" + "\n".join(lines) + f"\n{readme[last:]}", True


def _ablation_section(ablations: dict) -> list[str]:
    lines = ["## Ablations", "", f"    {ablations['command']}", "",
             "The first row is the baseline of the others.", "",
             *(f"- {note}" for note in ablations["notes"]), ""]  # fmt: skip
    lines += tables.head("change", *ablations["columns"])
    for row in ablations["rows"]:
        names = ablations["columns"].values()
        cells = [tables.value(row["metrics"].get(name, documents.NO_VALUE), 4) for name in names]
        lines.append(tables.row(row["name"], *cells))
    return [*lines, ""]


def _cells(metric: dict, decimals: int, baseline: str) -> tuple[str, str]:
    other = tables.baseline(metric, baseline, decimals)
    other = other if other == "-" else f"{BASELINES[baseline]} {other}"
    return tables.value(metric, decimals), other


def draw(document: dict, path: Path) -> None:
    """Draw ball and PSNR over the horizon beside their baselines; the same bytes every time."""
    figure = Figure(figsize=(10, 3.8), dpi=100, layout="constrained")
    ball, psnr = figure.subplots(1, 2)
    _plot(ball, documents.over_horizons(document, BALL), BALL_COLUMNS)
    ball.set(title=f"{document['game'].capitalize()}: exactly one ball, within 2 px",
             ylabel="share of rollouts", ylim=(-0.03, 1.03))  # fmt: skip
    _plot(psnr, documents.over_horizons(document, PSNR), (COPY, "ceiling"))
    psnr.set(title=f"{document['game'].capitalize()}: PSNR", ylabel="dB")
    figure.legend(*ball.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None},
                       pil_kwargs={"optimize": True})  # fmt: skip


def _plot(axes: Axes, points: dict[int, dict], baselines: tuple[str, ...]) -> None:
    """Draw one metric by horizon with its interval as a band."""
    horizons = list(points)
    for name in baselines:
        rows = [m.get("baselines", {}).get(name, documents.NO_VALUE) for m in points.values()]
        axes.plot(horizons, _numbers(rows, "value"), marker="o", markersize=3, linewidth=1.5,
                  color=COLOURS[name], label=BASELINES[name])  # fmt: skip
    rows = list(points.values())
    axes.plot(horizons, _numbers(rows, "value"), marker="o", markersize=4, linewidth=2.5,
              color=MODEL_COLOUR, label="world model, 95 % interval", zorder=3)  # fmt: skip
    axes.fill_between(horizons, _numbers(rows, "low"), _numbers(rows, "high"), color=MODEL_COLOUR,
                      alpha=0.18, linewidth=0)  # fmt: skip
    axes.set(xscale="log", xlabel="steps after the last real frame")
    axes.set_xticks(horizons, labels=map(str, horizons))
    axes.minorticks_off()
    axes.grid(color="#dee2e6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _numbers(metrics: list[dict], key: str) -> list[float]:
    """Return one figure of each, NaN where it has none, which draws a gap."""
    return [math.nan if metric[key] is None else metric[key] for metric in metrics]


if __name__ == "__main__":
    cli.run(main)
