"""The dream: a game that is only predicted, with `reset` and `step` like the real one.

Contract: the same one-step function as in training, greedy by default; reset from four real frames
in order, so that velocity survives. Reads files only through `checkpoint`. Knows neither pygame
nor gymnasium.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch

from v2.data.frames import float_to_frames, frames_to_float
from v2.data.games import find_weights
from v2.decoding import Sampling, advance, predict_next
from v2.models.pairs import SeenPairs
from v2.models.temporal_world_model import TemporalWorldModel
from v2.models.vqvae_hires import VQVAE
from v2.models.weights import load_vqvae, load_world_model, stored_pairs, tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.device import autocast, cast_weights, choose_device, compiled
from v2.runtime.run_dir import SHIPPED, shown_path


class DreamState(NamedTuple):
    """All that the next step depends on, besides the sampling generator."""

    tokens: torch.Tensor  # (B, 4, N)
    actions: torch.Tensor  # (B, 3)
    doubt: torch.Tensor  # (B, N), see v2.rollout.Step


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
        seen: SeenPairs | None = None,
        retokenize: bool = False,
    ):
        """Dream with models in memory.

        Args:
            seen: the pairs of neighbours that may be dreamed; None: all.
            retokenize: go on from what the tokenizer makes of each dreamed picture.
        """
        self.device = choose_device(str(device))
        self.vqvae = vqvae.to(self.device, memory_format=torch.channels_last).eval()
        self.world_model = world_model.to(self.device).eval()
        self.sampling = sampling or Sampling()
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.source, self.info = source, info or {}
        self.seen = seen and SeenPairs(*(table.to(self.device) for table in seen))
        self.retokenize = retokenize
        self.num_actions = world_model.config.num_actions
        self.grid = vqvae.config.grid
        self.history: DreamState | None = None
        self.logits = None
        self.last_reward = self.last_terminated = 0.0
        self._is_batched = False

    @classmethod
    def load(
        cls, name: str = "latest", game: str = "breakout", device: str = "auto",
        temperature: float = 0.0, top_k: int = 0, seed: int = 0, second_look: bool = True,
        retokenize: bool = False,
    ) -> "DreamEngine":  # fmt: skip
        """Load `latest`, `shipped`, a run's name or a path, with the VQ-VAE that belongs to it.

        Args:
            second_look: predict a frame once more where its outcome is open (v2.decoding).
            retokenize: go on from what the tokenizer makes of each dreamed picture. In long dreams
                more frames keep one ball; the first steps are a little worse (ROADMAP's log).

        Raises:
            FileNotFoundError, ValueError: no such weights, or weights that do not fit together.
        """
        path = find_weights(name, "world_model", game)
        beside = path.with_name("vqvae.pt")
        vqvae_path = beside if beside.exists() else path.with_name(SHIPPED["vqvae"])
        vqvae, vqvae_info = load_vqvae(vqvae_path)
        tokenizer = tokenizer_sha256(vqvae)
        world_model, info = load_world_model(path, tokenizer)
        seen = stored_pairs(info, world_model.config, path)
        models = {"vqvae": vqvae, "world_model": world_model}
        hashes = {name: checkpoint.model_sha256(model) for name, model in models.items()}
        info = info | {"vqvae": vqvae_info, "sha256": hashes}
        for model in models.values():
            cast_weights(model, choose_device(device))
        max_missing = Sampling.max_missing if second_look else float("inf")
        sampling = Sampling(temperature, top_k, max_missing)
        return cls(vqvae, world_model, device, sampling, seed, shown_path(path), info, seen,
                   retokenize)  # fmt: skip

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

    def reset(self, frames: np.ndarray, actions: np.ndarray | None = None) -> np.ndarray:
        """Start from real frames and return the last of them as the tokenizer keeps it.

        Args:
            frames: uint8 (4, 84, 64, 3), oldest first, or (B, 4, 84, 64, 3).
            actions: the three taken between them, (3,) or (B, 3); None: no-ops.
        """
        frames, T = np.asarray(frames), self.world_model.config.history
        height, width = self.vqvae.config.height, self.vqvae.config.width
        if frames.dtype != np.uint8 or frames.shape[-4:] != (T, height, width, 3):
            raise ValueError(
                f"frames must be uint8 ({T}, {height}, {width}, 3), a batch of them in front or "
                f"not, got {frames.dtype} {frames.shape}"
            )
        self._is_batched = frames.ndim == 5
        batch = frames.reshape(-1, *frames.shape[-4:])
        tokens = self.encode(batch.reshape(-1, *batch.shape[2:]))
        tokens = torch.from_numpy(tokens).reshape(len(batch), T, -1).to(self.device)
        return self.reset_tokens(tokens, actions, is_batched=self._is_batched)

    def reset_tokens(
        self, tokens: torch.Tensor, actions: np.ndarray | None = None, is_batched: bool = True
    ) -> np.ndarray:
        """Start from tokens (B, 4, N) that stand for real frames."""
        B, T, _ = tokens.shape
        if actions is None:
            actions = np.zeros((B, T - 1), int)
        past = torch.as_tensor(np.asarray(actions), dtype=torch.long).reshape(B, T - 1)
        if past.numel() and not 0 <= int(past.min()) <= int(past.max()) < self.num_actions:
            raise ValueError(f"actions must be 0 to {self.num_actions - 1}, got {past.tolist()}")
        self._is_batched = is_batched
        tokens = tokens.long().to(self.device)
        no_doubt = torch.zeros_like(tokens[:, -1], dtype=torch.float32)
        self.history = self._start = DreamState(tokens, past.to(self.device), no_doubt)
        self.logits, self.last_reward, self.last_terminated = None, 0.0, 0.0
        return self.frame()

    def restart(self, rows: np.ndarray) -> None:
        """Begin some dreams anew, bool (B,), from what the last `reset` gave them.

        What the last step said (`logits`, `last_reward`, `last_terminated`) stays until the next.
        """
        rows = torch.as_tensor(np.asarray(rows), device=self.device).reshape(-1)
        pairs = zip(self._state, self._start, strict=True)
        self.history = DreamState(*(
            torch.where(rows.view(-1, *[1] * (now.ndim - 1)), first, now) for now, first in pairs
        ))  # fmt: skip

    def step(self, action: int | np.ndarray) -> np.ndarray:
        """Take an action and return the dreamed frame, uint8 (84, 64, 3) or (B, 84, 64, 3)."""
        self.step_tokens(action)
        return self.frame()

    @torch.inference_mode()
    def step_tokens(self, action: int | np.ndarray) -> np.ndarray:
        """Take an action and return the dreamed tokens, without decoding them."""
        tokens, past, doubt = self._state
        now = torch.as_tensor(np.asarray(action), dtype=torch.long, device=self.device).reshape(-1)
        if len(now) != len(tokens):
            raise ValueError(f"{len(tokens)} dreams need as many actions, got {len(now)}")
        if not 0 <= int(now.min()) <= int(now.max()) < self.num_actions:
            raise ValueError(f"action must be 0 to {self.num_actions - 1}, got {action}")
        actions = torch.cat([past, now.unsqueeze(1)], dim=1)  # (B, 4)
        with autocast(self.device):
            chosen, prediction, doubt = predict_next(
                self.world_model, tokens, actions, self.sampling, self.generator, doubt,
                seen=self.seen,
            )  # fmt: skip
        if self.retokenize:
            pictures = self.decode(chosen.unflatten(1, self.grid).cpu().numpy())
            chosen = torch.from_numpy(self.encode(pictures)).flatten(1).to(chosen)
        self.history = DreamState(advance(tokens, chosen), actions[:, 1:], doubt)
        self.logits = prediction.logits
        sign = prediction.reward_logits.argmax(-1).float() - 1
        ended = prediction.terminated_logits.float().sigmoid()
        self.last_reward = self._unbatched(sign.cpu().numpy())
        self.last_terminated = self._unbatched(ended.cpu().numpy())
        return self.tokens

    def frame(self) -> np.ndarray:
        """Decode the last frame, uint8 (84, 64, 3) or (B, 84, 64, 3)."""
        tokens = self._state.tokens[:, -1]
        return self._unbatched(self.decode(tokens.unflatten(1, self.grid).cpu().numpy()))

    def restore(self, state: DreamState, noise: torch.Tensor | None = None) -> None:
        """Go back to a state that `history` held, and of the sampling to one that `noise` held."""
        self.history = state
        if noise is not None:
            self.generator.set_state(noise)

    @property
    def noise(self) -> torch.Tensor:
        """The state of the sampling generator."""
        return self.generator.get_state()

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Tokenize frames, uint8 (n, 84, 64, 3) -> (n, 21, 16)."""
        pixels = frames_to_float(torch.from_numpy(np.ascontiguousarray(frames)).to(self.device))
        with autocast(self.device):
            tokens = self.vqvae.encode(pixels)
        return tokens.unflatten(1, self.grid).cpu().numpy()

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Turn tokens (n, 21, 16) into frames, uint8 (n, 84, 64, 3)."""
        flat = torch.from_numpy(np.ascontiguousarray(tokens)).long().flatten(1).to(self.device)
        with autocast(self.device):
            pixels = self.vqvae.decode(flat)
        return float_to_frames(pixels).cpu().numpy()

    @property
    def _state(self) -> DreamState:
        if self.history is None:
            raise ValueError("the dream has no frames yet: call reset(frames) first")
        return self.history

    def _unbatched(self, array: np.ndarray):
        if self._is_batched:
            return array
        return array[0] if array.ndim > 1 else float(array[0])
