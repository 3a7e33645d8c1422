"""Copy the rows of README's results tables from the model cards.

    python v2/eval/results_page.py
"""

import re
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

from v2.data.games import game_directory
from v2.runtime.files import write_text

README = Path(__file__).resolve().parents[2] / "README.md"
CARDS = {  # of each game, by column
    "breakout": {
        "Breakout": game_directory("breakout") / "README.md",
        "`make train`": README.parent / "docs" / "breakout_from_zero.md",
    },
    "pong": {"Pong": game_directory("pong") / "README.md"},
}
TRACKED, HIT_HORIZONS = "rollout/ball_hit_2px@50", (1, 3, 5, 10, 20, 50)
BESIDE_TRACKED = {
    "the same of constant velocity, within 2 px": "constant_velocity",
    "the same of the tokenizer alone, within 2 px": "ceiling",
}
COPY, CHANCE, REAL = "copy_last", "chance", "real"
RESULTS = [  # label, metric, baseline
    ("**token accuracy**", "one_step/token_accuracy", COPY),
    ("**rollout@5**", "rollout/token_accuracy@5", COPY),
    ("**rollout@10**", "rollout/token_accuracy@10", COPY),
    ("**ball tracking** (exactly one ball, within 2 px, at 10)", "rollout/ball_hit_2px@10", COPY),
    *((f"the same within 1 px at {h}", f"rollout/ball_hit_1px@{h}", COPY) for h in (1, 5)),
    *((f"the same within 2 px at {h}", f"rollout/ball_hit_2px@{h}", COPY)
      for h in (1, 3, 5, 20, 50)),
    *((f"some ball is there at {h}", f"rollout/ball_seen@{h}", COPY) for h in (10, 50)),
    ("two balls at 10", "rollout/ball_duplicates@10", COPY),
    ("ball half-life, steps", "rollout/ball_half_life", COPY),
    *((f"paddle error, px, at {h}", f"rollout/paddle_error_px@{h}", COPY) for h in (1, 10, 50)),
    ("opponent error, px, at 10", "rollout/opponent_error_px@10", COPY),
    ("accuracy on changed tokens", "one_step/changed_accuracy", COPY),
    ("false changes", "one_step/false_changes", COPY),
    *((f"PSNR, dB, at {h}", f"rollout/psnr@{h}", COPY) for h in (1, 10, 50)),
    ("brick map F1 at 50", "rollout/brick_f1@50", COPY),
    ("which bricks were removed, F1 at 50", "rollout/brick_removal_f1@50", COPY),
    ("score right at 50", "rollout/score_right@50", COPY),
    ("lives right at 50", "rollout/lives_right@50", COPY),
    ("reward F1", "reward/f1", ""),
    ("termination F1", "termination/f1", ""),
    ("end of a game three steps on, said within one step", "termination/in_time", COPY),
    ("loss of a ball shown within one step", "rollout/loss_in_time", COPY),
    *((f"right branch in forks at {h}", f"forks/right_branch@{h}", CHANCE) for h in (1, 8)),
    ("right branch by pixels at 8", "forks/right_branch_pixels@8", CHANCE),
    ("long dreams: steps with a ball", "long/ball_seen", REAL),
    ("long dreams: exactly one ball while one is in play", "long/one_ball", REAL),
    ("long dreams: frozen frames", "long/frozen_frames", REAL),
    ("long dreams: games over in 1,000 steps", "long/games_over", REAL),
    ("long dreams: frames unlike the game", "long/strange_frames", REAL),
]
TOKENIZER = {
    "PSNR, dB": "psnr", "SSIM": "ssim", "ball recall (within 2 px)": "ball_recall",
    "ball precision": "ball_precision", "ball error, median px": "ball_error_px",
    "ball error, p90 px": "ball_error_p90_px", "paddle error, px": "paddle_error_px",
    "opponent error, px": "opponent_error_px", "brick map F1": "brick_f1",
    "spurious changes": "spurious_changes", "codes used": "codes_used", "perplexity": "perplexity",
}  # fmt: skip
STRATUM_HORIZONS = (1, 5, 10, 20)
STRATA = {
    "free flight": "flight", "before a wall": "wall", "before a paddle": "paddle",
    "before a brick": "brick", "a serve": "serve",
}  # fmt: skip
PREFIXES = {COPY: "", CHANCE: "chance ", REAL: "real game "}
Card = dict[str, tuple[str, dict[str, str]]]  # metric -> value with interval, baselines


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--readme", type=cli.path, default=README)
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    text = with_tables(args.readme.read_text(encoding="utf-8"))
    write_text(args.readme, text)
    print(f"{args.readme}: the rows of its results are those of the model cards")
    return 0


def with_tables(readme: str) -> str:
    """Return the README with its tables made anew.

    Raises:
        ValueError: it has no such table.
    """
    cards = [[read_card(path) for path in of_game.values()] for of_game in CARDS.values()]
    for lines in (results_table(cards), strata_table(cards), tokenizer_table(cards)):
        first = " | ".join(lines[0].split(" | ")[:2])  # the columns after may be new
        start = readme.find(first)
        if start < 0:
            raise ValueError(f"README has no table that begins with {first!r}")
        end = readme.find("\n\n", start)
        readme = readme[:start] + "\n".join(lines) + readme[end:]
    return readme


def read_card(path: Path) -> Card:
    """Read the rows of a model card's sections."""
    rows = re.findall(r"^\| (\w+/\S+) \| (.*?) \| (.*?) \|$", path.read_text("utf-8"), re.M)
    return {
        name: (value, dict(part.rsplit(" ", 1) for part in others.split("  ") if part.strip()))
        for name, value, others in rows
    }


def results_table(cards: list[list[Card]]) -> list[str]:
    """Return a column a card, and after those of a game a baseline, which is of the real game."""
    names = [name for of_game in CARDS.values() for name in (*of_game, "copy-last")]
    lines = [f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for label, name, baseline in RESULTS:
        cells = []
        for of_game in cards:
            rows = [card.get(name, ("", {})) for card in of_game]
            beside = rows[0][1].get(baseline)
            cells += [value for value, _ in rows]
            cells.append(PREFIXES[baseline] + beside if beside else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
        if name == TRACKED:
            lines += [_hits_line(cards, *row) for row in BESIDE_TRACKED.items()]
    return lines


def _hits_line(cards: list[list[Card]], label: str, baseline: str) -> str:
    """Return the row of a baseline of the tracked ball, at all horizons in one cell."""
    cells = []
    for of_game in cards:
        for card in of_game:
            rows = [card[f"rollout/ball_hit_2px@{h}"][1] for h in HIT_HORIZONS]
            cells.append(", ".join(row[baseline] for row in rows))
        cells.append("")
    return f"| {label} at {', '.join(map(str, HIT_HORIZONS))} | {' | '.join(cells)} |"


def strata_table(cards: list[list[Card]]) -> list[str]:
    """Return the tracked ball by what its clips begin before, all horizons in one cell."""
    names = [name for of_game in CARDS.values() for name in (*of_game, "constant velocity")]
    horizons = ", ".join(map(str, STRATUM_HORIZONS))
    lines = [f"| ball tracking at {horizons}, from | {' | '.join(names)} |"]
    lines.append("|---" * (1 + len(names)) + "|")
    for label, stratum in STRATA.items():
        cells = []
        for of_game in cards:
            keys = [f"rollout/ball_hit_2px[{stratum}]@{h}" for h in STRATUM_HORIZONS]
            rows = [[card[key] for key in keys if key in card] for card in of_game]
            cells += [", ".join(value.split(" ")[0] for value, _ in row) for row in rows]
            cells.append(", ".join(beside["constant_velocity"] for _, beside in rows[0]))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def tokenizer_table(cards: list[list[Card]]) -> list[str]:
    names, every = [name for of_game in CARDS.values() for name in of_game], sum(cards, [])
    lines = [f"| tokenizer round trip | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for label, name in TOKENIZER.items():
        values = [card.get(f"tokenizer/{name}", ("", {}))[0] for card in every]
        lines.append(f"| {label} | {' | '.join(values)} |")
    return lines


if __name__ == "__main__":
    cli.run(main)
