"""The result as one self-contained HTML page.

Contract: everything the page shows is inside it (pictures as data URIs, curves as SVG), so that it
opens with no network; all numbers come from the result document. Knows nothing of engines.
"""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from v2.data.atari_dataset import spread
from v2.data.games import stored_config
from v2.eval import documents, metrics
from v2.eval.branches import BRANCH_HORIZONS
from v2.eval.engine import Dreams
from v2.eval.pictures import lay_out
from v2.runtime.files import write_text

REPORT_NAME = "index.html"
CURVES = (
    ("rollout/token_accuracy", "token accuracy"), ("rollout/psnr", "PSNR, dB"),
    ("rollout/ssim", "SSIM"), ("rollout/ball_hit_2px", "exactly one ball, within 2 px"),
    ("rollout/ball_seen", "a ball is dreamed"), ("rollout/paddle_error_px", "paddle error, px"),
    ("rollout/brick_f1", "brick map F1"), ("branches/right_branch", "right counterfactual branch"),
)  # fmt: skip
COLOURS = {
    "": "#d6336c", "copy_last": "#868e96", "constant_velocity": "#1c7ed6", "ceiling": "#2f9e44",
    "chance": "#868e96",
}  # fmt: skip
NUM_STATES_SHOWN = 3
STRIP_HORIZONS = (1, 2, 3, 5, 8, 10, 15, 20, 50, 100, 200)
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}td,th{padding:.15em .8em .15em 0;text-align:left;white-space:nowrap}
th{border-bottom:1px solid #adb5bd}.num{font-variant-numeric:tabular-nums}
.base,small{color:#868e96}img{image-rendering:pixelated;max-width:100%}
.curves{display:flex;flex-wrap:wrap;gap:1em}svg text{font:11px system-ui,sans-serif}
.note{background:#fff3bf;padding:.4em .8em}
"""


def write_report(directory: Path, document: dict, pictures: dict) -> Path:
    """Write the page.

    Args:
        pictures: clips and dreams; branches and their dreams, long dreams where there are any.
    """
    rate = stored_config(document["emulator"]).steps_per_second
    parts = [
        f"<h1>{html.escape(document['game'])}: {html.escape(document['data'])}</h1>",
        f"<p><small>{html.escape(documents.provenance(document))}</small></p>",
        *(f"<p class=note>{html.escape(note)}</p>" for note in document["notes"]),
        "<h2>At a glance</h2>", _headline_table(document),
        "<h2>Over the horizon</h2><p>Horizons count steps after the last real frame; bars are 95 % "
        "intervals over episodes.</p>", _curves(document),
        "<h2>Rollouts: real, dream, difference</h2>", *_rollout_strips(pictures, rate),
    ]  # fmt: skip
    if "branches" in pictures:
        parts.append("<h2>Counterfactual branches: the same state under each held action</h2>")
        parts += _branch_pictures(pictures)
    if "long" in pictures:
        parts += ["<h2>Long dreams</h2>", _picture(pictures["long"], 2)]
    parts += ["<h2>All numbers</h2>", _table(document)]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>gold_eval</title>"
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>"
    )
    path = Path(directory) / REPORT_NAME
    write_text(path, page)
    return path


def _headline_table(document: dict) -> str:
    rows = "".join(
        f"<tr><td>{title}<td class=num>{value}<td class='num base'>{copied}"
        for title, value, copied in documents.headline_rows(document)
    )
    return f"<table><tr><th><th>this model<th>copy-last{rows}</table>"


def _table(document: dict) -> str:
    rows, section = [], ""
    for name, value, baselines in documents.table_rows(document):
        if name.split("/")[0] != section:
            section = name.split("/")[0]
            rows.append(f"<tr><th colspan=3>{documents.SECTIONS[section]}")
        rows.append(f"<tr><td>{html.escape(name.split('/')[1])}<td class=num>{value}"
                    f"<td class='num base'>{html.escape(baselines)}")  # fmt: skip
    return f"<table>{''.join(rows)}</table>"


def _curves(document: dict) -> str:
    drawn = [_curve(documents.over_horizons(document, name), title) for name, title in CURVES]
    return f"<div class=curves>{''.join(drawn)}</div>"


def _curve(points: dict[int, dict], title: str) -> str:
    """Draw one metric over the horizon with its interval and baselines, as SVG."""
    lines: dict[str, list] = {}
    for h, metric in points.items():
        for name, value in {"": metric, **metric.get("baselines", {})}.items():
            if value["value"] is not None:
                lines.setdefault(name, []).append((h, value))
    if not lines:
        return ""
    ends = [m[k] for line in lines.values() for _, m in line for k in ("value", "low", "high")
            if m.get(k) is not None]  # fmt: skip
    low, high = min(ends), max(ends)
    span, last = (high - low) or 1.0, np.log(max(points) + 1)

    def place(h, value):
        return 40 + 260 * np.log(h + 1) / last, 150 - 120 * (value - low) / span

    drawn = [f"<text x=40 y=16 font-weight=bold>{title}</text>"]
    for value in (low, high):
        drawn.append(f"<text x=2 y={place(1, value)[1] + 4:.0f}>{documents.number(value)}</text>")
    for h in points:
        drawn.append(f"<text x={place(h, low)[0]:.0f} y=168 text-anchor=middle>{h}</text>")
    for k, (name, line) in reversed(list(enumerate(lines.items()))):  # the model on top
        colour = COLOURS.get(name, "#f08c00")
        path = " ".join("{:.1f},{:.1f}".format(*place(h, m["value"])) for h, m in line)
        drawn.append(f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=2 />")
        for h, m in line if not name else []:
            if m.get("low") is not None:
                (x, top), (_, bottom) = place(h, m["high"]), place(h, m["low"])
                drawn.append(f"<line x1={x:.1f} x2={x:.1f} y1={top:.1f} y2={bottom:.1f} "
                             f"stroke='{colour}' />")  # fmt: skip
        label = name.replace("_", " ") or "model"
        drawn.append(f"<text x={40 + 70 * k} y=184 fill='{colour}'>{label}</text>")
    return f"<svg width=345 height=190>{''.join(drawn)}</svg>"


def _rollout_strips(pictures: dict, steps_per_second: float) -> list[str]:
    """Show the best, the median and the worst rollout by PSNR over all horizons."""
    clips, dreams = pictures["clips"], pictures["dreams"]
    fit, order = _by_fit(pictures)
    parts = []
    for name, k in (("best", order[0]), ("median", order[len(order) // 2]), ("worst", order[-1])):
        horizons, real, seen = _strip(pictures, k)
        parts.append(
            f"<h3>{name}: {clips.strata[k]}, mean PSNR {fit[k]:.1f} dB, h = "
            f"{', '.join(map(str, horizons))}</h3>"
        )
        parts.append(_picture([real, seen, _difference(real, seen)], 1.5))
        parts.append(_video(clips.frames[k, 4:], dreams, k, steps_per_second))
    return parts


def median_strip(pictures: dict) -> list[np.ndarray]:
    """Return the rollout of median PSNR: real frames and dreamed ones, each (n, 84, 64, 3)."""
    _, order = _by_fit(pictures)
    return list(_strip(pictures, order[len(order) // 2])[1:])


def _by_fit(pictures: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean PSNR of each rollout, and their order from the best."""
    clips, dreams = pictures["clips"], pictures["dreams"]
    fit = np.mean([metrics.psnr(dreams.at(h)[0], clips.frames_at(h)) for h in dreams.horizons], 0)
    return fit, fit.argsort()[::-1]


def _strip(pictures: dict, k: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return horizons, real frames and dreamed frames of a rollout."""
    clips, dreams = pictures["clips"], pictures["dreams"]
    horizons = [h for h in STRIP_HORIZONS if h in dreams.horizons]
    real = np.stack([clips.frames_at(h)[k] for h in horizons])
    return horizons, real, np.stack([dreams.at(h)[0][k] for h in horizons])


def _difference(real: np.ndarray, dream: np.ndarray) -> np.ndarray:
    return np.abs(real.astype(np.int16) - dream).clip(0, 255).astype(np.uint8)


def _branch_pictures(pictures: dict) -> list[str]:
    """Show a few states: for each action a row of real frames and one of dreamed ones."""
    branches, dreamed = pictures["branches"], pictures["branch_dreams"]
    parts = []
    for k in spread(np.arange(len(branches)), NUM_STATES_SHOWN):
        rows = []
        for action in range(branches.num_actions):
            rows.append(branches.frames[k, action, np.array(BRANCH_HORIZONS) - 1])
            rows.append(dreamed[k, action])
        parts.append(f"<h3>game {branches.episodes[k]}: pairs of rows real, dream for each action; "
                     f"h = {', '.join(map(str, BRANCH_HORIZONS))}</h3>")  # fmt: skip
        parts.append(_picture(rows, 1.5))
    return parts


def _picture(rows: Sequence[np.ndarray], scale: float) -> str:
    """Return rows of frames, each uint8 (n, H, W, 3), as one picture."""
    file, picture = io.BytesIO(), Image.fromarray(lay_out(rows))
    picture.save(file, format="PNG", optimize=True)
    width = int(picture.width * scale)
    return f"<p><img width={width} src='data:image/png;base64,{_base64(file)}'></p>"


def _video(real: np.ndarray, dreams: Dreams, k: int, steps_per_second: float) -> str:
    """Return an animated picture, real beside dream."""
    pairs = zip(real, dreams.frames[k], strict=False)
    images = [Image.fromarray(lay_out([np.stack(pair)])) for pair in pairs]
    file = io.BytesIO()
    images[0].save(file, format="WEBP", save_all=True, append_images=images[1:], lossless=True,
                   duration=round(1000 / steps_per_second), loop=0)  # fmt: skip
    width = images[0].width * 3
    return f"<p><img width={width} src='data:image/webp;base64,{_base64(file)}'></p>"


def _base64(file: io.BytesIO) -> str:
    return base64.b64encode(file.getvalue()).decode()
