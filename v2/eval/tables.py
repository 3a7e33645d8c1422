"""Tables in Markdown: rows of text, and metrics of a document as text. Knows no files."""

from v2.eval import documents


def head(*titles: str) -> list[str]:
    return [row(*titles), "|---" * len(titles) + "|"]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def baseline(metric: dict, name: str, decimals: int) -> str:
    other = metric.get("baselines", {}).get(name, documents.NO_VALUE)["value"]
    return "-" if other is None else f"{other:.{decimals}f}"


def value(metric: dict, decimals: int) -> str:
    """Return `value [low, high]`, "-" for none."""
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "-"
    span = "" if None in (low, high) else f" [{low:.{decimals}f}, {high:.{decimals}f}]"
    return f"{value:.{decimals}f}{span}"
