"""The model card: what weights are, how they were trained and what they reach, as Markdown.

Contract: all numbers come from the result document. Knows nothing of engines.
"""

from v2.data.games import shown_name
from v2.eval import documents

TERMS = (
    "The weights are released under the same MIT terms as the code; the games they imitate belong "
    "to their owners, so use them for research and play."
)


def model_card(document: dict) -> str:
    """Return the model card in Markdown."""
    lines = [
        f"# {shown_name(document['game'])}: VQ-VAE and world model", "",
        f"Made by `python v2/eval/gold_eval.py{document.get('flags', '')} --model-card FILE` from "
        f"{documents.provenance(document)}.", "", TERMS, "",
        *(line for note in document["notes"] for line in (f"> {note}", "")),
        "| | this model | copy-last |", "|---|---|---|",
        *(f"| {title} | {value} | {copied} |"
          for title, value, copied in documents.headline_rows(document)), "",
        *training_lines(document["training"]),
        "Parameters: "
        + ", ".join(f"{name} {count:,}" for name, count in document["num_parameters"].items()),
    ]  # fmt: skip
    section = ""
    for name, value, others in documents.table_rows(document):
        if name.split("/")[0] != section:
            section = name.split("/")[0]
            heading = documents.SECTIONS[section]
            lines += ["", f"## {heading[0].upper()}{heading[1:]}", "",
                      "| metric | value [95 % interval over episodes] | baselines |",
                      "|---|---|---|"]  # fmt: skip
        lines.append(f"| {name} | {value} | {others} |")
    return "\n".join([*lines, ""])


def training_lines(training: dict[str, list[dict]]) -> list[str]:
    """Return the command of each training, run by run, with the flags that it had at its end."""
    lines = [
        "The commands of each training, with the flags that it had at its end; a flag that a run "
        "does not list was off or did not exist then: the package's commit of that time makes it "
        "again. ABOVE is the run above.", "",
    ]  # fmt: skip
    for script, runs in training.items():
        for k, run in enumerate(runs):
            flags, start = _flags(run), ""
            if k:
                start = " init_from=ABOVE" if run.get("is_recipe") else " --init-from ABOVE"
            time = f", {run['minutes']:.0f} minutes" if run["minutes"] else ""
            planned = run["flags"].get("steps") or 0
            stopped = f" of {planned} (stopped there)" if planned > (run["steps"] or 0) else ""
            data = f" on data {run['data'][:12]}" if run.get("data") else ""
            unknown = ", ".join(f"--{name.replace('_', '-')}" for name in run.get("unknown", []))
            before = f", before there was {unknown}" if unknown else ""
            lines += [f"Trained for {run['steps']} steps{stopped}{time}{data}{before}:", "",
                      f"    python v2/train/{script}.py {flags}{start}", ""]  # fmt: skip
    return lines


def _flags(run: dict) -> str:
    """Return the flags of a run: its whole recipe, or those of before there were recipes."""
    if run.get("is_recipe"):
        return "--set " + " ".join(f"{name}={value}" for name, value in run["flags"].items())
    return " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in run["flags"].items()
    )
