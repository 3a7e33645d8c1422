"""Tokenized episodes: `atari_tokens_hires.npz`.

Contract: the file carries the hashes of the data and of the VQ-VAE that made it, and is refused or
made again when either differs. Knows nothing of training.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from v2.data.atari_dataset import (
    ARRAY_FIELDS,
    check_training_games,
    data_sha256,
    fields_of,
    hold_out_end,
    read_large,
    read_marks,
    read_steps,
    rows_of_split,
    split_of_game,
)
from v2.data.frames import frames_to_float
from v2.data.games import EmulatorConfig, RecordedConfig, stored_config
from v2.data.npz import ForeignFileError, read_meta, read_npz, write_npz
from v2.data.recordings import (
    DATA_NAME,
    META_FIELDS,
    Data,
    data_paths,
    first_name,
    list_episodes,
    recording_names,
)
from v2.data.validation import array_sha256, check_hashes, check_splits, check_steps
from v2.models.vqvae_hires import MARGIN, VQVAE, WINDOW
from v2.models.weights import tokenizer_sha256
from v2.runtime.device import autocast, laid_out

TOKENS_NAME = "atari_tokens_hires"
STEP_FIELDS = ("actions", "rewards", "terminated", "truncated", "episode_ids", "has_action")
KEPT_META = ("game", "emulator", "action_meanings", "seed", "policy")


@dataclass
class TokenData:
    """Tokens of every frame with what happened at it; rows as in the data file."""

    tokens: np.ndarray  # uint8 (M, N)
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    episode_ids: np.ndarray
    has_action: np.ndarray
    meta: dict

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_actions(self) -> int:
        return len(self.meta["action_meanings"])

    @property
    def emulator(self) -> EmulatorConfig | RecordedConfig:
        return stored_config(self.meta["emulator"])

    def rows_of(self, split: str) -> np.ndarray:
        return rows_of_split(self.episode_ids, self.meta["episodes"], split)

    def save(self, path: Path) -> None:
        arrays = {"tokens": self.tokens} | {name: getattr(self, name) for name in STEP_FIELDS}
        hashes = {name: array_sha256(array) for name, array in arrays.items()}
        check_target(path)
        write_npz(path, arrays, self.meta | {"sha256": hashes})


def tokens_path(data: Data, home: Path | None) -> Path:
    """Return where the tokens of recordings lie: in the home that was named, or beside the first.

    They bear its name, so that those of two recordings in one folder do not replace each other.
    """
    first = first_name(data)
    name = TOKENS_NAME if first.stem == DATA_NAME else f"{first.stem}_tokens"
    return (home or first.parent) / f"{name}.npz"


def check_target(path: Path) -> None:
    """Refuse to write tokens over a file that holds something else.

    Raises:
        ValueError, FileExistsError: with the path.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: a token file ends in .npz")
    if not path.exists():
        return
    try:
        held = read_meta(path)
    except ForeignFileError:
        held = {}
    except ValueError:  # damaged: it may be made again
        return
    if "vqvae_sha256" not in held:
        raise FileExistsError(f"{path} is there and holds no tokens: name another file")


def staleness(path: Path, vqvae: VQVAE, data: Data) -> str:
    """Say why a token file is not of this VQ-VAE and data; empty where it is."""
    check_target(path)
    meta = read_meta(path)
    wanted = {"vqvae_sha256": tokenizer_sha256(vqvae)}
    wanted["data_sha256"] = recording_sha256(data)
    for name, (key, digest) in zip(("VQ-VAE", "data"), wanted.items(), strict=True):
        if meta.get(key) != digest:
            return f"it is of {name} {str(meta.get(key))[:12]}, not {digest[:12]}"
    return ""


def load_tokens(path: Path, vqvae: VQVAE, data: Data) -> TokenData | None:
    """Load a token file; None where it is missing or was made from other data or weights."""
    if not Path(path).exists() or staleness(path, vqvae, data):
        return None
    num_positions = vqvae.config.grid[0] * vqvae.config.grid[1]
    fields: dict[str, Any] = {"tokens": (np.uint8, (num_positions,))}
    fields |= {name: ARRAY_FIELDS[name] for name in STEP_FIELDS}
    arrays, meta = read_npz(path, fields, META_FIELDS)
    check_steps(path, arrays, meta)
    check_training_games(Path(path), meta["episodes"])
    if arrays["tokens"].max(initial=0) >= vqvae.config.num_codes:
        raise ValueError(
            f"{path}: token {arrays['tokens'].max()} of a codebook of {vqvae.config.num_codes}; "
            "make the file again"
        )
    check_hashes(path, arrays, meta)
    return TokenData(**arrays, meta=meta)


@torch.inference_mode()
def tokenize(
    data: Data, vqvae: VQVAE, device: torch.device, batch_size: int = 256, stop=False
) -> TokenData | None:
    """Tokenize recordings, a batch at a time; None when `stop` became true."""
    vqvae = laid_out(vqvae, device).eval()
    listing, parts, tokens = list_episodes(data), [], []
    meta: dict = {}
    episodes = listing.episodes
    check_training_games(data, episodes)
    splits = {episode["id"]: split_of_game(episode["seed"]) for episode in episodes}
    seen: dict[bytes, int] = {}
    total = sum(episode["frames"] for episode in episodes)
    with tqdm(total=total, unit="frame", desc="tokenize", disable=None) as bar:
        for path, first_id in zip(listing.paths, listing.first_ids, strict=True):
            arrays, meta = read_steps(path, first_id)
            num_frames = len(arrays["actions"])
            marks = read_marks(path, num_frames, meta)  # at most 128 B a frame
            check_splits(path, arrays["episode_ids"], (marks, arrays["actions"]), splits, seen)
            parts.append(arrays)
            for frames in read_large(path, "frames", num_frames, meta, batch_size):
                if stop:
                    return None
                tokens.append(encode_frames(vqvae, frames, device))
                bar.update(len(frames))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in STEP_FIELDS}
    joined["tokens"] = np.concatenate(tokens)
    meta = {key: meta.get(key) for key in KEPT_META} | {
        "format": 1,
        "episodes": episodes,
        "data_sha256": recording_sha256(data),
        "vqvae_sha256": tokenizer_sha256(vqvae),
    }
    made = TokenData(**joined, meta=meta)
    hold_out_end(made)
    return made


@torch.inference_mode()
def encode_frames(vqvae: VQVAE, frames: np.ndarray, device: torch.device) -> np.ndarray:
    """Tokenize consecutive frames (T, H, W, 3), uint8 (T, N).

    Tokens are local, so only those are computed whose window of pixels changed since the frame
    before: about a tenth. The others are carried over.
    """
    T, (h, w) = len(frames), vqvae.config.grid
    pixels = torch.from_numpy(frames).to(device)
    is_changed = torch.ones(T, h, w, dtype=torch.bool, device=device)
    differs = (pixels[1:] != pixels[:-1]).any(-1).float()  # (T-1, H, W)
    if T > 1:
        is_changed[1:] = F.max_pool2d(differs, WINDOW, stride=4, padding=MARGIN) > 0
    t, i, j = is_changed.nonzero(as_tuple=True)
    padded = F.pad(pixels.permute(0, 3, 1, 2), (MARGIN,) * 4).permute(0, 2, 3, 1)
    span = torch.arange(WINDOW, device=device)
    y, x = 4 * i[:, None, None] + span[:, None], 4 * j[:, None, None] + span
    windows = frames_to_float(padded[t[:, None, None], y, x])  # (n, 3, 10, 10)
    tokens = torch.zeros(T, h, w, dtype=torch.uint8, device=device)
    with autocast(device):
        tokens[t, i, j] = vqvae.encode_at(windows, i, j).to(torch.uint8)
    times = torch.arange(T, device=device)[:, None, None] * is_changed
    newest = times.cummax(0).values  # when each token was last computed
    return tokens.gather(0, newest).flatten(1).cpu().numpy()


def recordings_sha256(data: Data) -> list[str]:
    """Hash each recording by itself."""
    return [recording_sha256(name) for name in recording_names(data)]


def recording_sha256(data: Data) -> str:
    """Hash recordings from their metas alone, as `data_sha256` does once read."""
    paths = data_paths(data)
    metas = [read_meta(path, META_FIELDS) for path in paths]
    for path, meta in zip(paths, metas, strict=True):
        for name in fields_of(meta):
            if not isinstance(meta["sha256"].get(name), str):
                raise ValueError(f"{path}: its meta has no sha256 of {name!r}; make the file again")
    if len(metas) == 1:
        return data_sha256(metas[0])
    return data_sha256({"shards": [meta["sha256"] for meta in metas]})
