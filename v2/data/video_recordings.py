"""Videos with a table of actions beside each: `walk.mp4` and `walk.csv` or `walk.json`.

Contract: a table has one row a frame, the last frame's may be missing. Videos are decoded by PyAV,
one frame at a time. Knows nothing of what becomes of them.
"""

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from v2.data.sources import Recording, Source, numbered

VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".gif")
SAME_RATE = 0.01  # by which the frame rates of two videos may differ
PLAYS_OWN = "it is a clip that play saved, a picture of its window: give --save-data's npz"
WHOLE = re.compile(r"-?\d{1,9}(\.0*)?")
TRUE, FALSE = ("1", "1.0", "true", "yes"), ("", "0", "0.0", "false", "no")


def video_source(path: Path, names: list[str] | None) -> Source:
    """Read a folder of videos, or one video, each with its table.

    Raises:
        ValueError, FileNotFoundError: no video, a video without a table, a table that cannot be
            read, or videos of different frame rates.
    """
    places = sorted(path.iterdir()) if path.is_dir() else [path]
    videos = [place for place in places if place.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        known = ", ".join(VIDEO_SUFFIXES)
        raise ValueError(f"{path} holds no video ({known}) and is neither npz nor Minari's")
    tables = {str(video): read_table(table_of(video)) for video in videos}
    rates = {str(video): _frame_rate(video) for video in videos}
    usual = rates[str(videos[0])]
    for video, rate in rates.items():
        if abs(rate - usual) > SAME_RATE * usual:
            raise ValueError(
                f"{video} has {rate:.4g} frames a second and {videos[0]} {usual:.4g}: import "
                "videos of one frame rate"
            )
    names = names or _common_names(tables)
    actions, names = numbered({v: t["actions"] for v, t in tables.items()}, names)
    source = Source(iter(()), names, usual)
    source.recordings = (
        Recording(video, pictures(video, source.notes), actions[video], table["rewards"],
                  table["is_terminated"])
        for video, table in tables.items()
    )  # fmt: skip
    return source


def _common_names(tables: dict[str, dict]) -> list[str] | None:
    """Return the actions' names that the tables give, all in one order; None where none does."""
    given = {video: t["action_meanings"] for video, t in tables.items() if t.get("action_meanings")}
    first = next(iter(given), "")
    for video, names in given.items():
        if names != given[first]:
            raise ValueError(
                f"{video} has the actions {','.join(names)} and {first} {','.join(given[first])}: "
                "number all of them alike"
            )
    return given.get(first)


def table_of(video: Path) -> Path:
    """Return the table beside a video; a FileNotFoundError where there is none."""
    places = [video.with_suffix(suffix) for suffix in (".csv", ".json")]
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{video} has no table of actions: write {places[0].name} or {places[1].name} beside it"
    )


def read_table(path: Path) -> dict:
    """Return `actions` (names or numbers), `rewards` (None where it has none), `is_terminated`.

    A CSV has a header with `action`, perhaps `reward` and `terminated`; JSON is a list of actions,
    or a table with `actions` and perhaps `rewards`, `terminated` and `action_meanings`.

    Raises:
        ValueError: with the path and the row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8") from error
    table = _of_json(path, text) if path.suffix.lower() == ".json" else _of_csv(path, text)
    rewards = table.get("rewards")
    if rewards is not None:
        try:
            table["rewards"] = np.array(rewards, np.float32)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}: a reward is no number ({error})") from error
    return {"rewards": None} | table


def _of_csv(path: Path, text: str) -> dict:
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    except csv.Error as error:
        raise ValueError(f"{path} is no table ({error})") from error
    while rows and not any(rows[-1]):
        rows.pop()
    header, *lines = rows or [[]]  # an empty line among them is a row without an action
    columns = {name.lower(): k for k, name in enumerate(header)}
    if "action" not in columns:
        raise ValueError(
            f"{path} has no column named action: its first line is {','.join(header)[:60]!r}"
        )

    def column(name: str) -> list[str]:
        k = columns.get(name, len(header))
        return [line[k] if k < len(line) else "" for line in lines]

    actions, ends = column("action"), [text.lower() for text in column("terminated")]
    for number, (action, end) in enumerate(zip(actions, ends, strict=True), start=2):
        if action == "":
            raise ValueError(f"{path}: line {number} has no action")
        if end not in TRUE + FALSE:
            raise ValueError(f"{path}: line {number}: terminated must be true or false, got {end}")
    # A spreadsheet may write 1 as 1.0.
    table: dict = {"actions": [int(float(a)) if WHOLE.fullmatch(a) else a for a in actions]}
    if "reward" in columns:
        table["rewards"] = [text or 0 for text in column("reward")]
    return table | {"is_terminated": _is_ended(path, [end in TRUE for end in ends], 2)}


def _of_json(path: Path, text: str) -> dict:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    table = {"actions": table} if isinstance(table, list) else table
    actions = table.get("actions") if isinstance(table, dict) else None
    if isinstance(actions, list) and actions and isinstance(actions[0], dict):
        raise ValueError(f"{path}: {PLAYS_OWN}")
    if not isinstance(actions, list) or not all(isinstance(a, str | int) for a in actions):
        raise ValueError(f"{path} holds no list of actions, names or whole numbers")
    names, ends = table.get("action_meanings"), table.get("terminated", False)
    ends = [ends] if isinstance(ends, bool) else ends
    if not isinstance(ends, list) or not all(isinstance(end, bool) for end in ends):
        raise ValueError(f"{path}: terminated must be true or false, or a list of them")
    if len(ends) > 1 and abs(len(ends) - len(actions)) > 1:  # the last frame's may be left out
        raise ValueError(f"{path} holds {len(actions)} actions, and {len(ends)} of terminated")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"{path}: action_meanings must be a list of names")
    return {
        "actions": actions, "rewards": table.get("rewards"),
        "is_terminated": _is_ended(path, ends, 1), "action_meanings": names,
    }  # fmt: skip


def _is_ended(path: Path, ends: list[bool], first_line: int) -> bool:
    """Tell whether a game ends; it must do so at its last action, or the frame after it."""
    if any(ends[:-2]):
        raise ValueError(
            f"{path}: line {ends.index(True) + first_line} ends the game: cut the video there"
        )
    return any(ends)


def _frame_rate(video: Path) -> float:
    with _opened(video) as container:
        rate = float(container.streams.video[0].average_rate or 0)
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"{video} does not say its frame rate: convert it, e.g. with ffmpeg")
    return rate


def pictures(video: str, notes: list[str]) -> Iterator[np.ndarray]:
    """Decode the frames of a video, and note where it skips time."""
    import av

    with _opened(Path(video)) as container:
        stream = container.streams.video[0]
        period, last, num_gaps = 1 / float(stream.average_rate), None, 0
        try:
            for frame in container.decode(stream):
                num_gaps += last is not None and frame.time - last > 1.5 * period
                last = frame.time
                turns = round(frame.rotation / 90)  # to the left, as a telephone notes it
                yield np.rot90(frame.to_ndarray(format="rgb24"), turns)
        except av.error.FFmpegError as error:
            raise ValueError(f"{video} is damaged ({error.strerror})") from error
    if num_gaps:
        notes.append(f"{video} skips time {num_gaps} times: its frame rate varies")


def _opened(video: Path):
    import av

    try:
        container = av.open(str(video))
    except av.error.FFmpegError as error:
        raise ValueError(f"{video} is no video that can be read ({error.strerror})") from error
    if not container.streams.video:
        raise ValueError(f"{video} holds no pictures")
    return container
