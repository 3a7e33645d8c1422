"""A start scene: the first frames of one recorded episode, as a small dataset of its own.

Contract: rows of one episode, unchanged, from the held-out ones where there are any; it is read a
file and some rows at a time. Weights are shared with one, so that a dream has something to start
from where there is neither emulator nor data.
"""

import numpy as np

from v2.data.atari_dataset import GameData, fields_of, read_steps, split_of, with_ram
from v2.data.npz import read_rows
from v2.data.recordings import NUM_SHARDS, Data, list_episodes

NUM_FRAMES = 64


def cut_start(data: Data) -> GameData:
    """Cut the scene from recordings.

    Raises:
        FileNotFoundError, ValueError: none there, or a damaged one.
    """
    listing = list_episodes(data)
    wanted = max(
        listing.episodes,
        key=lambda e: (split_of(e) == "val", min(e["frames"], NUM_FRAMES), -e["id"]),
    )
    for part, first_id in zip(listing.paths, listing.first_ids, strict=True):
        arrays, meta = read_steps(part, first_id)
        rows = np.flatnonzero(arrays["episode_ids"] == wanted["id"])[:NUM_FRAMES]
        if len(rows):
            break
    kept = {name: array[rows] for name, array in arrays.items()}
    for name, (dtype, tail) in fields_of(meta).items():
        if name not in kept:
            kept[name], _ = read_rows(part, name, dtype, tail, rows)
    kept["has_action"][-1] = False
    for name in ("actions", "rewards", "terminated", "truncated"):
        kept[name][-1] = 0
    episode = wanted | {"frames": len(rows), "score": float(kept["rewards"].sum())}
    meta.pop(NUM_SHARDS, None)
    return GameData(**with_ram(kept), meta=meta | {"episodes": [episode]})
