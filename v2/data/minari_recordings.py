"""Minari datasets, the field's format for recorded games: read, and written.

Contract: pixels and discrete actions in, the same out, without loss. Minari is an optional package
(requirements-import.txt), imported when it is needed. Knows nothing of what becomes of them.
"""

import numbers
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from v2.data.atari_dataset import GameData
from v2.data.emulator import spaces_of
from v2.data.sources import Recording, Source, distinct

ID = re.compile(r"(?:[\w-]+/)*[\w-]+-v\d+")


def is_minari(source: str) -> bool:
    """Tell whether a source is the folder of a Minari dataset, or the form of an id."""
    path = Path(source)
    return _data_folder(path) is not None or (not path.exists() and bool(ID.fullmatch(source)))


def _data_folder(path: Path) -> Path | None:
    places = [place for place in (path, path / "data") if (place / "metadata.json").is_file()]
    return places[0] if places else None


def minari_source(source: str, names: list[str] | None) -> Source:
    """Read a dataset by its folder, or by its id among those on this machine.

    Raises:
        ValueError, FileNotFoundError: none there, or no pixels and discrete actions in it.
        ImportError: Minari is missing.
    """
    import minari

    folder = _data_folder(Path(source))
    try:
        dataset = minari.MinariDataset(folder) if folder else minari.load_dataset(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no Minari dataset {source} on this machine: minari download {source} fetches it"
        ) from error
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(f"{source} is no Minari dataset that can be read ({error})") from error
    seen, acts = dataset.observation_space, dataset.action_space
    is_picture = len(getattr(seen, "shape", None) or ()) == 3 and seen.shape[-1] == 3
    if not is_picture or seen.dtype != np.uint8:
        raise ValueError(f"{source}: observations must be pixels, uint8 (H, W, 3), got {seen}")
    if type(acts).__name__ != "Discrete":
        raise ValueError(f"{source}: actions must be discrete, got {acts}")
    facts: dict[str, Any] = dataset.storage.metadata
    count, first = int(acts.n), int(acts.start)
    names = distinct(
        names or facts.get("action_meanings") or [f"ACTION{k}" for k in range(count)]
    )
    if len(names) != count:
        raise ValueError(f"{source} has {count} actions, got {len(names)} names")

    def recordings() -> Iterator[Recording]:
        for episode in dataset.iterate_episodes():
            actions = np.asarray(episode.actions, np.int64) - first
            (kept,) = dataset.storage.get_episode_metadata([episode.id])
            seed = kept.get("seed")
            yield Recording(f"{source} episode {episode.id}", iter(episode.observations), actions,
                            np.asarray(episode.rewards, np.float32),
                            bool(np.any(episode.terminations)),
                            int(seed) if isinstance(seed, int | np.integer) else None)  # fmt: skip

    fps = facts.get("steps_per_second")
    return Source(recordings(), names, float(fps) if isinstance(fps, numbers.Real) else None)


def write_minari(dataset_id: str, data: GameData) -> str:
    """Write a dataset of Minari's, where Minari keeps them; return its folder.

    Raises:
        FileExistsError: the id is there already.
        ValueError: no id of Minari's.
        ImportError: Minari is missing.
    """
    import minari
    from minari.data_collector import EpisodeBuffer

    check_id(dataset_id)
    observations, actions = spaces_of(data.num_actions)
    buffers: list = []
    for episode in data.meta["episodes"]:
        rows = np.flatnonzero(data.episode_ids == episode["id"])
        first, last = rows[0], rows[-1]
        buffers.append(EpisodeBuffer(
            id=len(buffers), seed=episode["seed"], observations=data.frames[first : last + 1],
            actions=data.actions[first:last].astype(np.int64), rewards=data.rewards[first:last],
            terminations=data.terminated[first:last], truncations=data.truncated[first:last],
        ))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no author and no environment is given
        made = minari.create_dataset_from_buffers(
            dataset_id, buffers, observation_space=observations, action_space=actions,
            description=f"{data.emulator.game}, frames of 84x64", jpeg_encoding=False,
        )  # fmt: skip
    made.storage.update_metadata({
        "action_meanings": data.meta["action_meanings"],
        "steps_per_second": float(data.emulator.steps_per_second),
    })  # fmt: skip
    return str(made.storage.data_path)


def check_id(dataset_id: str) -> None:
    """Check that a dataset of this id can be written; see `write_minari`."""
    import minari

    if not ID.fullmatch(dataset_id):
        raise ValueError(f"a Minari id is like mine/ball-v0, got {dataset_id!r}")
    if dataset_id in minari.list_local_datasets():
        raise FileExistsError(f"Minari has {dataset_id} already: give the next version")
