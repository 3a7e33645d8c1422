"""The dream: a game that is only predicted, with `reset` and `step` like the real one.

Contract: the same one-step function as in training, greedy by default; reset from four real frames
in order, so that velocity survives; a call that raises changes nothing. A guest in its user's
process: no global setting is changed, and none changes what is dreamed. Reads files only through
`checkpoint`. Knows neither pygame nor gymnasium.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch

from v2.data.frames import float_to_frames, frames_to_float
from v2.data.games import find_weights
from v2.decoding import Sampling, advance, dense_logits, known_age, next_age, predict_next
from v2.models.temporal_world_model import MAX_AGE, TemporalWorldModel
from v2.models.vqvae_hires import VQVAE
from v2.models.weights import load_vqvae, load_world_model, tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.device import autocast, cast_weights, choose_device, compiled, laid_out
from v2.runtime.run_dir import shown_path, vqvae_beside


class DreamState(NamedTuple):
    """All that the next step depends on, besides the sampling generator."""

    tokens: torch.Tensor  # int64 (B, 4, N)
    actions: torch.Tensor  # int64 (B, 3)
    age: torch.Tensor  # int64 (B, N), see v2.decoding.next_age
    is_batched: bool  # what is returned has a batch axis


class DreamEngine:
    """Dreams of one game, or B of them at once."""

    def __init__(
        self,
        vqvae: VQVAE,
        world_model: TemporalWorldModel,
        device: str | torch.device = "cpu",
        sampling: Sampling | None = None,
        seed: int = 0,
        source: str = "a model in memory",
        info: dict | None = None,
    ):
        """Dream with models in memory."""
        self.device = choose_device(str(device))
        self.vqvae = laid_out(vqvae, self.device).eval()
        self.world_model = world_model.to(self.device).eval()
        self.sampling = sampling or Sampling()
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.source, self.info = source, info or {}
        self.num_actions = world_model.config.num_actions
        self.grid = vqvae.config.grid
        self.history: DreamState | None = None
        self.logits: torch.Tensor | None = None
        self.last_reward: Any = 0.0  # of a batch (B,)
        self.last_terminated: Any = 0.0

    @classmethod
    def load(
        cls, name: str = "latest", game: str = "breakout", device: str = "auto",
        temperature: float = 0.0, top_k: int = 0, seed: int = 0,
    ) -> "DreamEngine":  # fmt: skip
        """Load `latest`, `shipped`, a run's name or a path, with the VQ-VAE that belongs to it.

        Raises:
            FileNotFoundError, ValueError: no such weights, or weights that do not fit together.
        """
        path = find_weights(name, "world_model", game)
        vqvae, vqvae_info = load_vqvae(vqvae_beside(path))
        world_model, info = load_world_model(path, tokenizer_sha256(vqvae))
        models = {"vqvae": vqvae, "world_model": world_model}
        hashes = {name: checkpoint.model_sha256(model) for name, model in models.items()}
        info = info | {"vqvae": vqvae_info, "sha256": hashes}
        for model in models.values():
            cast_weights(model, choose_device(device))
        sampling = Sampling(temperature, top_k)
        return cls(vqvae, world_model, device, sampling, seed, shown_path(path), info)

    def compile(self) -> "DreamEngine":
        """Compile the world model, on CUDA to graphs that are replayed; return the engine.

        The first step of each batch size takes up to a minute. All steps must then be taken in one
        thread, and `logits` hold until the next.
        """
        mode = "reduce-overhead" if self.device.type == "cuda" else None
        self.world_model = compiled(self.world_model, mode)
        return self

    @functools.cached_property
    def num_parameters(self) -> dict[str, int]:
        models = {"vqvae": self.vqvae, "world_model": self.world_model}
        return {name: sum(p.numel() for p in m.parameters()) for name, m in models.items()}

    @property
    def tokens(self) -> np.ndarray:
        """The tokens of the last frame, (21, 16) or (B, 21, 16)."""
        return self._unbatched(self._state.tokens[:, -1].unflatten(1, self.grid).cpu().numpy())

    def reset(
        self, frames: np.ndarray, actions: np.ndarray | None = None, age: np.ndarray | None = None
    ) -> np.ndarray:
        """Start from real frames and return the last of them as the tokenizer keeps it.

        Args:
            frames: uint8 (4, 84, 64, 3), oldest first, or (B, 4, 84, 64, 3).
            actions: the three taken between them, (3,) or (B, 3); None: no-ops.
            age: for how many steps each of the last tokens has not changed, (21, 16) or
                (B, 21, 16), 0 unknown; None: what the four frames tell.

        Raises:
            ValueError: other shapes or dtypes, or an action that the game lacks.
        """
        frames, T = np.asarray(frames), self.world_model.config.history
        height, width = self.vqvae.config.height, self.vqvae.config.width
        is_fitting = frames.shape[-4:] == (T, height, width, 3) and frames.ndim in (4, 5)
        if frames.dtype != np.uint8 or not is_fitting or not len(frames):
            raise ValueError(
                f"frames must be uint8 ({T}, {height}, {width}, 3), a batch of them in front or "
                f"not, got {frames.dtype} {frames.shape}"
            )
        batch = frames.reshape(-1, *frames.shape[-4:])
        past = self._past_actions(actions, len(batch))
        encoded = self.encode(batch.reshape(-1, *batch.shape[2:]))
        tokens = torch.from_numpy(encoded).reshape(len(batch), T, -1)
        return self._begin(tokens, past, age, is_batched=frames.ndim == 5)

    def reset_tokens(
        self, tokens: torch.Tensor, actions: np.ndarray | None = None,
        age: np.ndarray | None = None, is_batched: bool = True,
    ) -> np.ndarray:  # fmt: skip
        """Start from tokens (B, 4, N) that stand for real frames; see `reset`."""
        given = _integers(tokens, self.world_model.config.num_codes, "tokens")
        shape = len(given), self.world_model.config.history, self.grid[0] * self.grid[1]
        if given.shape != shape or not len(given):
            raise ValueError(f"tokens must be (B, {shape[1]}, {shape[2]}), got {given.shape}")
        past = self._past_actions(actions, len(given))
        return self._begin(torch.from_numpy(given), past, age, is_batched)

    def _past_actions(self, actions: np.ndarray | None, batch: int) -> torch.Tensor:
        """Check the actions between the frames; int64 (B, 3)."""
        length = self.world_model.config.history - 1
        if actions is None:
            return torch.zeros(batch, length, dtype=torch.long, device="cpu")
        past = _integers(actions, self.num_actions, "actions")
        if past.shape not in ((batch, length), *([(length,)] if batch == 1 else [])):
            raise ValueError(
                f"actions must be ({length},) a dream, those between the frames, got {past.shape}"
            )
        return torch.from_numpy(past.reshape(batch, length))

    def _begin(self, tokens, past, age, is_batched: bool) -> np.ndarray:
        tokens = tokens.long().to(self.device)
        known = known_age(tokens)
        if age is not None:
            given = _integers(age, MAX_AGE + 1, "age")
            if given.size != known.numel():
                raise ValueError(f"age must hold one number a token, got {given.shape}")
            known = torch.from_numpy(given.reshape(known.shape)).to(self.device)
        self.history = DreamState(tokens, past.to(self.device), known, is_batched)
        self._start = self.history
        self.logits, self.last_reward, self.last_terminated = None, 0.0, 0.0
        return self.frame()

    def restart(self, rows: np.ndarray) -> None:
        """Begin some dreams anew, bool (B,), from what the last `reset` gave them.

        What the last step said (`logits`, `last_reward`, `last_terminated`) stays until the next.
        """
        now, first, rows = self._state, self._start, np.asarray(rows)
        if rows.dtype != bool or rows.reshape(-1).shape != (len(now.tokens),):
            raise ValueError(
                f"rows must be {len(now.tokens)} booleans, got {rows.dtype} {rows.shape}"
            )
        chosen = torch.from_numpy(np.array(rows.reshape(-1))).to(self.device)
        merged = [
            torch.where(chosen.view(-1, *[1] * (new.ndim - 1)), old, new)
            for old, new in zip(first[:3], now[:3], strict=True)
        ]
        self.history = DreamState._make([*merged, now.is_batched])

    def step(self, action: int | np.ndarray) -> np.ndarray:
        """Take an action and return the dreamed frame, uint8 (84, 64, 3) or (B, 84, 64, 3)."""
        self.step_tokens(action)
        return self.frame()

    @torch.inference_mode()
    def step_tokens(self, action: int | np.ndarray) -> np.ndarray:
        """Take an action and return the dreamed tokens, without decoding them.

        Raises:
            ValueError: no action of the game, or not one for each dream.
        """
        tokens, past, age, is_batched = self._state
        now = _integers(action, self.num_actions, "action").reshape(-1)
        if len(now) != len(tokens):
            raise ValueError(f"{len(tokens)} dreams need as many actions, got {len(now)}")
        taken = torch.from_numpy(now).to(self.device)
        actions = torch.cat([past, taken.unsqueeze(1)], dim=1)  # (B, 4)
        with autocast(self.device):
            step = predict_next(
                self.world_model, tokens, actions, self.sampling, self.generator, age
            )
        last, prediction = tokens[:, -1], step.prediction
        new_age = next_age(age, last, step.tokens)
        self.history = DreamState(advance(tokens, step.tokens), actions[:, 1:], new_age, is_batched)
        self.logits = dense_logits(step, last)
        sign = prediction.reward_logits.argmax(-1).float() - 1
        ended = prediction.terminated_logits.float().sigmoid()
        self.last_reward = self._unbatched(sign.cpu().numpy())
        self.last_terminated = self._unbatched(ended.cpu().numpy())
        return self.tokens

    def frame(self) -> np.ndarray:
        """Decode the last frame, uint8 (84, 64, 3) or (B, 84, 64, 3)."""
        tokens = self._state.tokens[:, -1]
        return self._unbatched(self.decode(tokens.unflatten(1, self.grid).cpu().numpy()))

    def restore(self, state: DreamState, rng_state: torch.Tensor | None = None) -> None:
        """Go back to a state that `history` held, and of the sampling to one of `rng_state`."""
        self.history = state
        if rng_state is not None:
            self.generator.set_state(rng_state)

    @property
    def rng_state(self) -> torch.Tensor:
        """The state of the sampling generator."""
        return self.generator.get_state()

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Tokenize frames, uint8 (n, 84, 64, 3) -> (n, 21, 16)."""
        pixels = frames_to_float(torch.from_numpy(np.array(frames)).to(self.device))
        with autocast(self.device):
            tokens = self.vqvae.encode(pixels)
        return tokens.unflatten(1, self.grid).cpu().numpy()

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Turn tokens (n, 21, 16) into frames, uint8 (n, 84, 64, 3)."""
        flat = torch.from_numpy(np.array(tokens)).long().flatten(1).to(self.device)
        with autocast(self.device):
            pixels = self.vqvae.decode(flat)
        return float_to_frames(pixels).cpu().numpy()

    @property
    def _state(self) -> DreamState:
        if self.history is None:
            raise ValueError("the dream has no frames yet: call reset(frames) first")
        return self.history

    def _unbatched(self, array: np.ndarray):
        if self._state.is_batched:
            return array
        return array[0] if array.ndim > 1 else float(array[0])


def _integers(values, limit: int, name: str) -> np.ndarray:
    """Return whole numbers from 0 to below a limit as int64, of Python, numpy or torch.

    Raises:
        ValueError: anything else, with the value.
    """
    array = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
    if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < limit):
        shown = str(values) if array.size < 20 else f"{array.dtype} {array.shape}"
        raise ValueError(f"{name} must be whole numbers from 0 to {limit - 1}, got {shown}")
    return np.array(array, np.int64)
