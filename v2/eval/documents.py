"""Results as one JSON document: made, printed as a table, compared with another.

Contract: a document names the data, models and evaluator that it came from by hash and version;
two documents are compared only if data and evaluator agree. Knows nothing of engines.
"""

import json
import math
import sys
from collections.abc import Collection
from pathlib import Path

from v2.eval.intervals import Metric, paired_difference
from v2.runtime.files import write_text

FORMAT = 1
HEADLINES = {
    "token accuracy": "one_step/token_accuracy",
    "rollout@5": "rollout/token_accuracy@5",
    "rollout@10": "rollout/token_accuracy@10",
    "ball tracking": "rollout/ball_hit_2px@10",
}
SECTIONS = {
    "tokenizer": "tokenizer round trip, the ceiling of what follows",
    "one_step": "one step after four real frames (teacher-forced)",
    "turns": "one step where a ball in steady flight turns: all nine tokens around it right",
    "rollout": "open-loop rollouts under the recorded actions",
    "branches": "action following: counterfactual branches of a state under held actions",
    "actions": "loss of PSNR when actions are shuffled",
    "reward": "sign of the reward (teacher-forced)",
    "termination": "end of the game (teacher-forced)",
    "long": "long dreams under a scripted policy that sees only the dream",
    "speed": "speed of one dream on this device",
}
REQUIRED = {"data_sha256": str, "evaluator": int, "settings": dict, "metrics": dict}
SHOWN = (
    "model", "device", "tier", "vqvae_sha256", "world_model_sha256", "seconds", "flags", "notes",
)  # fmt: skip
PAIR_KEYS = ("episodes", "sums", "counts")
NO_VALUE = {"value": None}  # as of what was not measured, or never happened


def make_document(metrics: dict[str, Metric], **facts) -> dict:
    """Return the whole result as plain values, whose texts every file and page can hold."""
    plain = {name: metric.to_dict() for name, metric in metrics.items()}
    return {"format": FORMAT, **_printable(facts), "metrics": plain}


def _printable(value):
    """Show bytes of a path that are not UTF-8 as `\\udc..`: a file of UTF-8 cannot hold them."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _printable(part) for key, part in value.items()}
    return [_printable(part) for part in value] if isinstance(value, list) else value


def one_line(document: dict) -> str:
    """Return the document as one line of JSON, without the sums of every episode."""
    return json.dumps(document | {"metrics": {
        name: _without_pairs(metric) for name, metric in document["metrics"].items()
    }})  # fmt: skip


def hand_on(whole: dict, line: str, file: Path | None) -> None:
    """Give a machine its JSON: in the file, else as the last line where no person reads."""
    if file:
        write_text(file, json.dumps(whole))
        print(f"result: {file}")
    elif sys.stdout.isatty():
        print("--json FILE keeps this as a document")
    else:
        print(line)


def _without_pairs(metric: dict) -> dict:
    kept = {key: value for key, value in metric.items() if key not in PAIR_KEYS}
    if "baselines" in kept:
        kept["baselines"] = {k: _without_pairs(m) for k, m in kept["baselines"].items()}
    return kept


def trimmed(document: dict, stems: Collection[str]) -> dict:
    """Return what a page needs of a document, a tenth of it.

    Args:
        stems: names of the metrics to keep, at every horizon and in every stratum. Their sums of
            every episode go, so that comparisons with the rest are no longer paired.
    """
    kept = {name: _without_pairs(metric) for name, metric in document["metrics"].items()
            if stem(name).partition("[")[0] in stems}  # fmt: skip
    return {k: v for k, v in document.items() if k != "training"} | {"metrics": kept}


def stem(name: str) -> str:
    """Return a metric's name without its horizon."""
    return name.partition("@")[0]


def over_horizons(document: dict, name: str) -> dict[int, dict]:
    """Return the metrics of a stem by their horizons, in order."""
    found = {int(key.partition("@")[2]): metric for key, metric in document["metrics"].items()
             if key.startswith(f"{name}@")}  # fmt: skip
    return dict(sorted(found.items()))


def read_document(path: Path) -> dict:
    """Read a result.

    Raises:
        FileNotFoundError, ValueError: no such file, or another kind of file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no result {path}: make it with gold_eval.py --json {path}")
    document = _read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{path} is no result of gold_eval.py of format {FORMAT}")
    for key, kind in REQUIRED.items():
        if not isinstance(document.get(key), kind):
            raise ValueError(f"{path} is a damaged result: its {key!r} is no {kind.__name__}")
    for name, metric in document["metrics"].items():
        if not isinstance(metric, dict) or not {"value", "low", "high"} <= metric.keys():
            raise ValueError(f"{path} is a damaged result: its metric {name!r} has no value")
    return document


def provenance(document: dict) -> str:
    """Return in one line what the numbers are of: weights, device, tier, evaluator, data."""
    return (
        f"{document['model']} on {document['device']}, tier {document['tier']}, evaluator "
        f"{document['evaluator']}, data {document['data_sha256'][:12]}, VQ-VAE "
        f"{document['vqvae_sha256'][:12]}, world model {document['world_model_sha256'][:12]}, "
        f"{document['seconds']:.0f} s"
    )


def read_results(folder: Path, games: Collection[str]) -> dict[str, dict]:
    """Read `<game>.json` of every game in a folder.

    Raises:
        FileNotFoundError, ValueError: one is missing, of another game or of another evaluator.
    """
    found = {}
    for game in games:
        path = folder / f"{game}.json"
        if not path.exists():
            raise FileNotFoundError(
                f"no result {path}: run python v2/eval/gold_eval.py --game {game} --json FILE and "
                "then python v2/eval/results_page.py --take FILE"
            )
        found[game] = read_document(path)
        if found[game].get("game") != game:
            raise ValueError(f"{path} is a result of {found[game].get('game')}: --take it anew")
        if missing := [key for key in SHOWN if key not in found[game]]:
            raise ValueError(f"{path} does not say its {missing[0]!r}: --take it anew")
    versions = sorted({document["evaluator"] for document in found.values()})
    if len(versions) > 1:
        raise ValueError(
            f"the results in {folder} are of evaluators {' and '.join(map(str, versions))}: run "
            "gold_eval.py again for the older one"
        )
    return found


def read_ablations(path: Path) -> dict | None:
    """Read a table of ablations, None where there is none.

    It is `{"command": text, "notes": [text], "columns": {title: metric}, "rows": [{"name": text,
    "metrics": {metric: {"value", "low", "high"}}}]}`; its first row is their baseline.

    Raises:
        ValueError: the file is of another form.
    """
    if not path.exists():
        return None
    table = _read_json(path)
    _check_kinds(path, table, {"command": str, "notes": list, "columns": dict, "rows": list})
    for row in table["rows"]:
        _check_kinds(path, row, {"name": str, "metrics": dict})
    return table


def _check_kinds(path: Path, part, kinds: dict[str, type]) -> None:
    for key, kind in kinds.items():
        if not isinstance(part, dict) or not isinstance(part.get(key), kind):
            raise ValueError(f"{path} is no table of ablations: its {key!r} is no {kind.__name__}")


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON document ({error})") from error


def headline_rows(document: dict) -> list[tuple[str, str, str]]:
    """Return name, value and baselines of the four rows that a reader looks at first."""
    rows = []
    for title, name in HEADLINES.items():
        metric = document["metrics"].get(name)
        if metric:
            others = metric.get("baselines", {})
            text = describe(others["copy_last"]) if "copy_last" in others else "-"
            if "constant_velocity" in others:
                text += f"; constant velocity {describe(others['constant_velocity'])}"
            rows.append((title, describe(metric), text))
    return rows


def describe(metric: dict) -> str:
    """Return `value [low, high]`."""
    value = number(metric["value"])
    if metric.get("low") is None or metric.get("high") is None:
        return value
    return f"{value} [{number(metric['low'])}, {number(metric['high'])}]"


def number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def table_rows(document: dict) -> list[tuple[str, str, str]]:
    """Return name, value with interval, and baselines of every metric, by section."""
    rows = []
    for name in _in_order(document["metrics"]):
        metric = document["metrics"][name]
        others = metric.get("baselines", {})
        text = "  ".join(f"{key} {number(m['value'])}" for key, m in others.items())
        rows.append((name, describe(metric), text))
    return rows


def _in_order(names) -> list[str]:
    """Sort by section, then by what was measured as it was measured, then by horizon."""
    stems = list(dict.fromkeys(map(stem, names)))

    def place(name: str):
        section, horizon = name.split("/")[0], name.partition("@")[2]
        return list(SECTIONS).index(section), stems.index(stem(name)), int(horizon or 0)

    return sorted(names, key=place)


def print_table(document: dict) -> None:
    """Print the headline rows and then every metric, for people."""
    print(f"\n{'':24} {'this model':28} copy-last, where it helps constant velocity")
    for title, value, copied in headline_rows(document):
        print(f"{title:24} {value:28} {copied}")
    section = ""
    for name, value, baselines in table_rows(document):
        if name.split("/")[0] != section:
            section = name.split("/")[0]
            print(f"\n{SECTIONS[section]}")
        print(f"  {name.split('/')[1]:32} {value:28} {baselines}".rstrip())
    for note in document["notes"]:
        print(f"note: {note}")


def compare(first: dict, second: dict) -> list[tuple[str, str, str]]:
    """Return name, difference with interval, and a mark where zero lies outside of it.

    Where one of the two has no value there is no difference: both are shown, "-" for none.

    Raises:
        ValueError: results of other data or of another evaluator.
    """
    if first["evaluator"] != second["evaluator"]:
        raise ValueError(
            f"these results are of evaluators {first['evaluator']} and {second['evaluator']} and "
            "cannot be compared: run gold_eval.py again for the older one"
        )
    for key in ("data_sha256", "settings"):
        if first[key] != second[key]:
            raise ValueError(
                f"these results have different {key} ({first[key]} and {second[key]}) and cannot "
                "be compared: run gold_eval.py again for one of them"
            )
    rows = []
    if first.get("engine") != second.get("engine"):
        rows.append(("engine", f"{second.get('engine')} - {first.get('engine')}", ""))
    for name in first["metrics"] | second["metrics"]:
        before, after = (each["metrics"].get(name, NO_VALUE) for each in (first, second))
        found = paired_difference(before, after)
        if found is not None:
            difference, low, high = found
            mark = "*" if low > 0 or high < 0 else ""
            span = "" if math.isnan(low) else f" [{low:+.4f}, {high:+.4f}]"
            rows.append((name, f"{difference:+.4f}{span}", mark))
        elif before["value"] is not None or after["value"] is not None:
            rows.append((name, f"{describe(before)} -> {describe(after)}", ""))
    return rows
