"""Which files a recording is: one, its shards, several of either, or a folder of them.

Contract: the same files in the same order for whoever reads; a set of shards is whole or refused;
what is read together is of one game, recorded alike, and gets episode ids that follow one another.
Reads metas only. Knows nothing of splits.
"""

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from v2.data.games import OWN, differing_settings, game_directory, game_id
from v2.data.npz import BadFileError, add_to_meta, read_meta
from v2.data.validation import check_episodes
from v2.runtime.commands import command

DATA_NAME = "atari_game_data"
META_FIELDS: dict[str, type] = {
    "game": str, "emulator": dict, "action_meanings": list, "episodes": list, "sha256": dict,
}  # fmt: skip
DIGITS = 5  # of a shard's number, behind the name of the whole
NUM_SHARDS = "num_shards"  # in the meta of each shard, once all are there
COLLECTING = "collecting.lock"  # held while a recording is made in a folder
UNFINISHED = "collecting.tmp"  # beside what `make train` has begun to record
OF_TOKENS = "vqvae_sha256"  # in the meta of a file that holds tokens, which is no recording
OF_GOLD = "gold_sha256"  # in the meta of what is evaluated on, which no folder offers to train on

Data = Path | Sequence[Path]  # files, shards by the name without their number, folders


class Listing(NamedTuple):
    """What is read together, from the metas alone."""

    paths: list[Path]
    first_ids: list[int]  # to be added to the episode ids of each file
    episodes: list[dict]


def data_paths(data: Data) -> list[Path]:
    """Return all files in order.

    Raises:
        FileNotFoundError: no recording there; names the command that makes one.
        ValueError: a recording is named twice, or shards of it are missing.
    """
    return [path for paths in _recordings(data) for path in paths]


def list_episodes(data: Data) -> Listing:
    """Return the files and the episodes of all recordings.

    Raises:
        ValueError: a damaged list, shards of different recordings, or recordings that differ.
    """
    listing, first, first_id = Listing([], [], []), None, 0
    held: dict[str, Path] = {}  # by their contents
    for paths in _recordings(data):
        metas = [read_meta(path, META_FIELDS) for path in paths]
        episodes = _episodes_of(paths, metas)
        listing.paths.extend(paths)
        listing.first_ids.extend([first_id] * len(paths))
        listing.episodes.extend(e | {"id": first_id + e["id"]} for e in episodes)
        first = first or metas[0]
        differing = differing_settings(metas[0]["emulator"], first["emulator"])
        if metas[0]["action_meanings"] != first["action_meanings"]:
            differing.append("action_meanings")
        if differing:
            raise ValueError(
                f"{paths[0]} and {listing.paths[0]} differ in {'; '.join(differing)}: train on "
                "them apart"
            )
        for path, meta in zip(paths, metas, strict=True):
            other = held.setdefault(json.dumps(meta["sha256"], sort_keys=True), path)
            if other != path:
                raise ValueError(f"{other} and {path} hold the same: name one of them")
        first_id = max((e["id"] for e in listing.episodes), default=-1) + 1
    return listing


def recorded_files(path: Path) -> list[Path]:
    """Return what there is of a recording: the file itself, its shards, by accident both."""
    single = [path] if path.exists() else []
    return single + sorted(path.parent.glob(f"{glob.escape(path.stem)}-{DIGITS * '[0-9]'}.npz"))


def shard_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number:0{DIGITS}d}.npz")


def say_all_are_there(shards: list[Path]) -> None:
    """Let each shard of a finished set know how many there are."""
    for shard in shards:
        add_to_meta(shard, {NUM_SHARDS: len(shards)})


def check_recorded(data: Data, game: str) -> None:
    """Raise a FileNotFoundError, with the command that makes it, where a game has no recording."""
    for path in named_files(data):
        if not recorded_files(path):
            raise _nothing_at(path, game)


def default_data(game: str, home: Path | None) -> Path:
    """Return the recording of a home that was named, or where it has none, the game's."""
    own = home / f"{DATA_NAME}.npz" if home else None
    return own if own and recorded_files(own) else game_directory(game) / f"{DATA_NAME}.npz"


def first_name(data: Data) -> Path:
    """Return the first recording, shards by the name without their number."""
    return recording_names(data)[0]


def recording_names(data: Data) -> list[Path]:
    """Return each recording by a name of its own, shards by the name without their number."""
    return [name for given in _listed(data) for name in _in_folder(given)]


def shown(data: Data) -> str:
    """Return the names as they were given."""
    return " ".join(map(str, _listed(data)))


def named_files(data: Data) -> list[Path]:
    """Return what was named and is no folder."""
    return [path for path in _listed(data) if not path.is_dir()]


def _listed(data: Data) -> list[Path]:
    return [data] if isinstance(data, Path) else list(data)


def _recordings(data: Data) -> list[list[Path]]:
    """Return the files of each recording."""
    found = [_files_of(name) for name in recording_names(data)]
    seen: set[Path] = set()
    for path in (path for paths in found for path in paths):
        if path.resolve() in seen:
            raise ValueError(f"{path} is named twice: name each recording once")
        seen.add(path.resolve())
    return found


def _in_folder(given: Path) -> list[Path]:
    """Return the recordings of a folder, shards as one name; what is none is returned as it is."""
    if not given.is_dir():
        return [given]
    number = re.compile(rf"-\d{{{DIGITS}}}$")
    files = [path for path in sorted(given.glob("*.npz"))
             if not {OF_TOKENS, OF_GOLD} & _meta_of(path).keys()]  # fmt: skip
    names = {path.with_name(f"{number.sub('', path.stem)}.npz"): None for path in files}
    if not names:
        raise FileNotFoundError(
            f"no recording in {given}: run {command('data/collect_atari.py', out=given)}"
        )
    return list(names)


def _files_of(path: Path) -> list[Path]:
    """Return the file itself, or its shards in order."""
    paths = recorded_files(path)
    if not paths:
        raise _nothing_at(path, None)
    if paths[0] == path:
        return paths[:1]
    _check_whole(path, paths)
    return paths


def _nothing_at(path: Path, game: str | None) -> FileNotFoundError:
    out = None if game and path == default_data(game, None) else path.parent
    maker = command("data/collect_atari.py", game=game, out=out)
    if game and (own := game_id(game)).startswith(OWN):
        maker = command("data/import_recordings.py", "SOURCE", name=own, out=out and path)
    return FileNotFoundError(f"no game data at {path}: run {maker}")


def _check_whole(path: Path, shards: list[Path]) -> None:
    """Refuse a set of which shards are missing; those that were set aside are known of.

    Shards that know no number, older ones or of a collector that was killed, begin with the first.
    """
    known = {shard: _meta_of(shard).get(NUM_SHARDS) for shard in shards}
    counts = {count: shard for shard, count in known.items() if isinstance(count, int)}
    if len(counts) > 1:
        one, other = list(counts.items())[:2]
        raise ValueError(
            f"{one[1]} is one of {one[0]} shards and {other[1]} one of {other[0]}: they are of "
            "two recordings; collect with --overwrite"
        )
    count = next(iter(counts), 1 + int(shards[-1].stem[-DIGITS:]))
    wanted = [shard_path(path, number) for number in range(count)]
    missing = [p.name for p in wanted if p not in known and not Path(f"{p}.bad").exists()]
    if missing:
        raise ValueError(
            f"{path} is a set of {count} shards, and {', '.join(missing)} is missing: restore it, "
            "or collect with --overwrite"
        )
    if shards[-1] not in wanted:
        raise ValueError(
            f"{path} is a set of {count} shards, and {shards[-1].name} is none of them: take it "
            "away, or collect with --overwrite"
        )


def _meta_of(path: Path) -> dict:
    """Return a file's meta; of one that is damaged none, since whoever reads it says so."""
    try:
        return read_meta(path)
    except BadFileError:
        return {}


def _episodes_of(paths: list[Path], metas: list[dict]) -> list[dict]:
    """Return the episodes of one recording, checked."""
    for path, meta in zip(paths, metas, strict=True):
        check_episodes(path, meta)
    for key in ("emulator", "action_meanings", "policy", "seed"):
        if any(meta.get(key) != metas[0].get(key) for meta in metas):
            raise ValueError(
                f"the shards of {paths[0]} differ in {key!r}: collect with --overwrite, or name "
                "each recording apart, not as shards, and give all of them to --data"
            )
    episodes = [episode for meta in metas for episode in meta["episodes"]]
    ids = [episode["id"] for episode in episodes]
    if len(metas) > 1 and sorted(set(ids)) != ids:
        raise ValueError(f"the shards of {paths[0]} do not follow one another: collect again")
    return episodes
