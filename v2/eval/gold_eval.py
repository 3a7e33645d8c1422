"""Evaluate a dream on the frozen set: tokens, pixels, ball, paddle, actions, long dreams, speed.

    python v2/eval/gold_eval.py --latest --tier gold --json result.json --report report

Horizons count steps after the last real frame. The document is written to --json FILE. Without it,
it goes to a file below the game's results/ where a person reads, else it is the last line.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import dataclasses
import json
import shlex
import time

from v2.data.games import game_directory, game_id
from v2.dream import DreamEngine
from v2.eval import documents, html_report, model_card
from v2.eval.pictures import save_grid, strip_of
from v2.eval.suite import TIERS, Stopped, check_fits, choose_set, evaluate
from v2.runtime import checkpoint
from v2.runtime.device import tune_cpu
from v2.runtime.files import check_output, check_writable, write_text
from v2.runtime.run_dir import shown_path

SIZES = ("rollouts", "long_dreams", "long_dream_steps", "branches")  # of a tier, as flags


def build_parser():
    parser = cli.parser(__file__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--latest", action="store_true", help="the newest finished run (default)")
    which.add_argument("--run", type=cli.name,
                        help="a run: its name or folder, or the --out trained with")
    which.add_argument("--checkpoint", "--weights", type=cli.name, metavar="FILE",
                       help="weights, a folder of shared ones, or 'shipped'")  # fmt: skip
    which.add_argument("--compare", nargs=2, type=cli.path, metavar=("A.json", "B.json"),
                       help="print B - A with intervals, and evaluate nothing")  # fmt: skip
    parser.add_argument("--game", default="breakout", help="any ALE game")
    parser.add_argument("--tier", choices=list(TIERS), default="gold",
                        help="up to 1, 3 (short) and 30 (gold) minutes")  # fmt: skip
    parser.add_argument("--data", type=cli.path, nargs="+", action=cli.Gather,
                        help="recorded data instead of the gold set")  # fmt: skip
    parser.add_argument("--starts", choices=("strata", "any"), default="strata",
                        help="of the rollouts on --data: as many before each kind of bounce, or "
                        "drawn from all moments alike")  # fmt: skip
    parser.add_argument("--json", type=cli.path,
                        help="file for the whole result, a strip of pictures beside it; or for "
                        "what --compare finds")  # fmt: skip
    parser.add_argument("--report", type=cli.path, help="directory for the HTML page")
    parser.add_argument("--model-card", type=cli.path, help="file for the model card")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--temperature", type=cli.temperature, default=0.0,
                        help="of sampled tokens; 0: the likeliest")  # fmt: skip
    gold = TIERS["gold"]
    parser.add_argument("--rollouts", type=cli.positive_int,
                        help=f"clips dreamed under their own actions (gold: {gold.rollouts}, and "
                        f"{gold.long_rollouts} long ones)")  # fmt: skip
    parser.add_argument("--long-dreams", type=cli.non_negative_int,
                        help=f"number of them (gold: {gold.long_dreams}; 0: off)")  # fmt: skip
    parser.add_argument("--long-dream-steps", type=cli.positive_int,
                        help=f"steps of each (gold: {gold.long_dream_steps})")  # fmt: skip
    parser.add_argument("--branches", type=cli.positive_int,
                        help=f"states continued under every action (gold: {gold.branches})")
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    if not (args.json or args.compare) and sys.stdout.isatty():  # half an hour's work is kept
        args.json = _file_of_now(args.game)
    if args.json:
        check_output(args.json)
    if args.compare:
        first, second = args.compare
        return _compare(first, second, args.json)
    if args.model_card:
        check_output(args.model_card)
    if args.report:
        check_writable(args.report)
    game, tier = game_id(args.game), dataclasses.replace(TIERS[args.tier], **_sizes(args))
    played = {"temperature": args.temperature}
    tune_cpu()
    weights = args.checkpoint or args.run or "latest"
    engine = DreamEngine.load(weights, game, args.device, **played)
    runs = [*checkpoint.lineage(engine.info), *checkpoint.lineage(engine.info["vqvae"])]
    learnt = [(run.get("data_sha256"), *run.get("recordings_sha256", ())) for run in runs]
    chosen = choose_set(game, tier, args.data, args.starts, args.rollouts, learnt)
    check_fits(engine, chosen.data)
    print(f"evaluating {engine.source} on {engine.device}, {chosen.source}")
    flags = _flags(args, engine.source)
    with cli.StopRequest() as stop:
        try:
            document, pictures = evaluate(engine, chosen, tier, args.tier, stop, flags, played)
        except Stopped:
            print("stopped, nothing is written: run the same command again")
            return stop.exit_code
    _write(args, document, pictures)
    return 0


def _write(args, document: dict, pictures: dict) -> None:
    documents.print_table(document)
    if args.json:  # before what may fail
        write_text(args.json, json.dumps(document))
        save_grid(strip_of(args.json), html_report.median_strip(pictures))
    if args.report:
        print(f"report: {html_report.write_report(args.report, document, pictures)}")
    if args.model_card:
        write_text(args.model_card, model_card.model_card(document))
        print(f"model card: {args.model_card}")
    documents.hand_on(document, documents.one_line(document), args.json)


def _compare(first: Path, second: Path, file: Path | None) -> int:
    rows = documents.compare(documents.read_document(first), documents.read_document(second))
    print(f"{second} - {first}; * where the 95 % interval leaves out zero")
    for name, difference, mark in rows:
        print(f"  {name:40} {difference} {mark}".rstrip())
    found = {name: difference for name, difference, _ in rows}
    documents.hand_on(found, json.dumps(found), file)
    return 0


def _file_of_now(game: str) -> Path:
    return game_directory(game) / "results" / time.strftime("%Y%m%d_%H%M%S.json")


def _sizes(args) -> dict[str, int]:
    return {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}


def _flags(args, source: str) -> str:
    """Return the flags that decide the numbers, for who repeats them.

    Args:
        source: the weights, in case they were found as the latest.
    """
    weights = "shipped" if args.checkpoint == "shipped" else source
    flags = {"game": game_id(args.game)} if game_id(args.game) != "breakout" else {}
    flags |= {"run": args.run} if args.run else {"checkpoint": weights}
    flags |= {"starts": args.starts} if args.starts != "strata" else {}
    flags |= {"tier": args.tier} if args.tier != "gold" else {}
    flags |= {"device": args.device} if args.device != "auto" else {}
    flags |= {"temperature": args.temperature} if args.temperature else {}
    flags |= {name.replace("_", "-"): str(value) for name, value in _sizes(args).items()}
    data = f" --data {shlex.join(map(shown_path, args.data))}" if args.data else ""
    return data + "".join(f" --{name} {shlex.quote(str(value))}" for name, value in flags.items())


if __name__ == "__main__":
    cli.run(main)
