"""The dream: a game that is only predicted, with `reset` and `step` like the real one.

Contract: the same one-step function as in training, greedy by default; reset from four real frames
in order, so that velocity survives; a call that raises changes nothing. A guest in its user's
process: no global setting is changed, and none changes what is dreamed. Reads files only through
`checkpoint`. Knows neither pygame nor gymnasium.
"""

import functools
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from v2.data.frames import float_to_frames, frames_to_float
from v2.data.games import find_weights
from v2.decoding import Sampling, advance, dense_logits, known_age, next_age, predict_next
from v2.models.temporal_world_model import MAX_AGE, TemporalWorldModel
from v2.models.vqvae_hires import VQVAE
from v2.models.weights import load_vqvae, load_world_model, tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.checks import MAX_SEED, whole_number
from v2.runtime.device import autocast, cast_weights, choose_device, compiled, laid_out
from v2.runtime.run_dir import shown_path, vqvae_beside


class DreamState(NamedTuple):
    """All that the next step depends on, besides the sampling generator."""

    tokens: torch.Tensor  # int64 (B, 4, N)
    actions: torch.Tensor  # int64 (B, 3)
    age: torch.Tensor  # int64 (B, N), see v2.decoding.next_age
    is_batched: bool  # what is returned has a batch axis


SomeEngine = TypeVar("SomeEngine", bound="DreamEngine")


class DreamEngine:
    """Dreams of one game, or B of them at once."""

    runtime = "PyTorch"  # what computes a step
    has_cast_weights = True  # `load` rounds them as `autocast` would at each use

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
        seed = whole_number(seed, 0, MAX_SEED, "seed")
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.source, self.info = source, info or {}
        self.num_actions = world_model.config.num_actions
        self.grid = vqvae.config.grid
        self.history: DreamState | None = None
        self._start: DreamState | None = None  # what the last reset gave
        self.logits: torch.Tensor | None = None
        # the state after the last step, with its tokens (B, N) and frames on the host
        self._last: tuple[DreamState, np.ndarray, np.ndarray] | None = None
        self.last_reward: Any = 0.0  # of a batch (B,)
        self.last_terminated: Any = 0.0

    @classmethod
    def load(
        cls: type[SomeEngine], name: str = "latest", game: str = "breakout", device: str = "auto",
        temperature: float = 0.0, seed: int = 0,
    ) -> SomeEngine:  # fmt: skip
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
        for model in models.values() if cls.has_cast_weights else ():
            cast_weights(model, choose_device(device))
        sampling = Sampling(temperature)
        return cls(vqvae, world_model, device, sampling, seed, shown_path(path), info)

    def compile(self) -> "DreamEngine":
        """Compile the world model, on CUDA to graphs that are replayed; return the engine.

        The first step of each batch size takes up to a minute. All steps must then be taken in one
        thread, and `logits` hold until the next.
        """
        mode = "reduce-overhead" if self.device.type == "cuda" else None
        self.world_model = compiled(self.world_model, mode)
        return self

    @property
    def has_exact_age(self) -> bool:
        """Whether it counts tokens' ages step by step, as older weights do not."""
        config = self.world_model.config
        return config.has_age and config.exact_age > 0

    @functools.cached_property
    def num_parameters(self) -> dict[str, int]:
        models = {"vqvae": self.vqvae, "world_model": self.world_model}
        return {name: sum(p.numel() for p in m.parameters()) for name, m in models.items()}

    @property
    def tokens(self) -> np.ndarray:
        """The tokens of the last frame, (21, 16) or (B, 21, 16)."""
        if self._last is not None and self._last[0] is self._state:
            tokens = self._last[1].copy()
        else:
            (tokens,) = on_host(self._state.tokens[:, -1])
        return self._unbatched(tokens.reshape(-1, *self.grid))

    def reset(
        self, frames: np.ndarray, actions: np.ndarray | None = None, age: np.ndarray | None = None
    ) -> np.ndarray:
        """Start from real frames and return the last of them as the tokenizer keeps it.

        Args:
            frames: uint8 (T, 84, 64, 3), oldest first, or (B, T, 84, 64, 3). The last four begin
                the dream; more, up to some 200, tell how old their tokens are.
            actions: those taken between them, (T - 1,) or (B, T - 1); None: the
                game's first action, which is NOOP in Atari.
            age: for how many steps each of the last tokens has not changed, (21, 16) or
                (B, 21, 16), 0 unknown, -k at least k; None: what the frames tell.

        Raises:
            ValueError: other shapes or dtypes, or an action that the game lacks.
        """
        frames, T = _array(frames, "frames"), self.world_model.config.history
        height, width = self.vqvae.config.height, self.vqvae.config.width
        is_fitting = frames.shape[-3:] == (height, width, 3) and frames.ndim in (4, 5)
        if frames.dtype != np.uint8 or not is_fitting or not len(frames) or frames.shape[-4] < T:
            raise ValueError(
                f"frames must be uint8 ({T} or more, {height}, {width}, 3), a batch of them in "
                f"front or not, got {frames.dtype} {frames.shape}"
            )
        batch = frames.reshape(-1, *frames.shape[-4:])
        past = self._past_actions(actions, len(batch), frames.shape[-4] - 1)[:, 1 - T :]
        read = batch if self.world_model.config.has_age else batch[:, -T:]
        encoded = self.encode(read.reshape(-1, *read.shape[2:]))
        tokens = torch.from_numpy(encoded).reshape(*read.shape[:2], -1)
        return self._begin(tokens, past, age, is_batched=frames.ndim == 5)

    def reset_tokens(
        self, tokens: torch.Tensor, actions: np.ndarray | None = None,
        age: np.ndarray | None = None, is_batched: bool = True,
    ) -> np.ndarray:  # fmt: skip
        """Start from tokens (B, 4, N) that stand for real frames; see `reset`."""
        given = _integers(tokens, self.world_model.config.num_codes, "tokens")
        shape = self.world_model.config.history, self.grid[0] * self.grid[1]
        if given.shape[1:] != shape or not given.size or not (is_batched or len(given) == 1):
            batch = "B" if is_batched else 1
            raise ValueError(f"tokens must be ({batch}, {shape[0]}, {shape[1]}), got {given.shape}")
        past = self._past_actions(actions, len(given), shape[0] - 1)
        return self._begin(torch.from_numpy(given), past, age, is_batched)

    def _past_actions(self, actions: np.ndarray | None, batch: int, length: int) -> torch.Tensor:
        """Check the actions between the frames; int64 (B, length)."""
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
            given = _integers(age, MAX_AGE + 1, "age", least=-MAX_AGE)
            if given.size != known.numel():
                raise ValueError(f"age must hold one number a token, got {given.shape}")
            known = torch.from_numpy(given.reshape(known.shape)).to(self.device)
        tokens = tokens[:, -self.world_model.config.history :]
        self.history = DreamState(tokens, past.to(self.device), known, is_batched)
        self._start = self.history
        self.logits, self.last_reward, self.last_terminated = None, 0.0, 0.0
        return self.frame()

    def restart(self, rows: np.ndarray) -> None:
        """Begin some dreams anew, bool (B,), from what the last `reset` gave them.

        What the last step said (`logits`, `last_reward`, `last_terminated`) stays until the next.
        """
        now, first, rows = self._state, self._start, _array(rows, "rows")
        if rows.dtype != bool or rows.reshape(-1).shape != (len(now.tokens),):
            raise ValueError(
                f"rows must be {len(now.tokens)} booleans, got {rows.dtype} {rows.shape}"
            )
        if first is None or len(first.tokens) != len(now.tokens):
            raise ValueError(f"the last reset did not begin these {len(now.tokens)} dreams")
        chosen = torch.from_numpy(np.array(rows.reshape(-1))).to(self.device)
        merged = [
            torch.where(chosen.view(-1, *[1] * (new.ndim - 1)), old, new)
            for old, new in zip(first[:3], now[:3], strict=True)
        ]
        self.history = DreamState._make([*merged, now.is_batched])

    def step(self, action: int | np.ndarray) -> np.ndarray:
        """Take an action and return the dreamed frame, uint8 (84, 64, 3) or (B, 84, 64, 3).

        Raises:
            ValueError: no action of the game, or not one for each dream.
        """
        self._step(action, is_decoded=True)
        return self.frame()

    def step_tokens(self, action: int | np.ndarray) -> np.ndarray:
        """Take an action and return the dreamed tokens, without decoding them; see `step`."""
        self._step(action, is_decoded=False)
        return self.tokens

    @torch.inference_mode()
    def _step(self, action: int | np.ndarray, is_decoded: bool) -> None:
        state, actions = self._state, self._with_action(action)
        with autocast(self.device):
            step = predict_next(
                self.world_model, state.tokens, actions, self.sampling, self.generator, state.age
            )
        self.logits = dense_logits(step, state.tokens[:, -1])
        frames = self._decoded(step.tokens) if is_decoded else step.tokens[:, :0]
        sign = step.prediction.reward_logits.argmax(-1).float() - 1
        ended = step.prediction.terminated_logits.float().sigmoid()
        self._go_on(actions, step.tokens, *on_host(step.tokens, frames, sign, ended))

    def _with_action(self, action: int | np.ndarray) -> torch.Tensor:
        """Check an action for each dream; return it after the three before, int64 (B, 4)."""
        past = self._state.actions
        now = _integers(action, self.num_actions, "action").reshape(-1)
        if len(now) != len(past):
            raise ValueError(f"{len(past)} dreams need as many actions, got {len(now)}")
        return torch.cat([past, torch.from_numpy(now).to(self.device).unsqueeze(1)], dim=1)

    def _go_on(self, actions, following, tokens, frames, sign, end_prob) -> None:
        """Make predicted tokens (B, N) the last frame, and keep what the step brought.

        Args:
            actions, following: on the device; the others are arrays.
        """
        history, _, age, is_batched = self._state
        new_age = next_age(age, history[:, -1], following)
        self.history = DreamState(advance(history, following), actions[:, 1:], new_age, is_batched)
        self._last = self.history, tokens, frames
        self.last_reward, self.last_terminated = self._unbatched(sign), self._unbatched(end_prob)

    def frame(self) -> np.ndarray:
        """Return the last frame decoded, uint8 (84, 64, 3) or (B, 84, 64, 3)."""
        if self._last is not None and self._last[0] is self._state and self._last[2].size:
            return self._unbatched(self._last[2].copy())
        with torch.inference_mode():
            (frames,) = on_host(self._decoded(self._state.tokens[:, -1]))
        return self._unbatched(frames)

    def restore(self, state: DreamState, rng_state: torch.Tensor | None = None) -> None:
        """Go back to a state that `history` held, and of the sampling to one of `rng_state`.

        Raises:
            ValueError: something else, or of a model of another size.
        """
        T, N = self.world_model.config.history, self.grid[0] * self.grid[1]
        is_fitting = isinstance(state, DreamState) and (
            [part.shape[1:] for part in state[:3]] == [(T, N), (T - 1,), (N,)]
            and len({len(part) for part in state[:3]}) == 1
            and (state.is_batched or len(state.tokens) == 1)
        )
        if not is_fitting:
            raise ValueError(f"state must be what `history` of this engine held, got {state!r:.80}")
        if rng_state is not None:
            try:
                self.generator.set_state(rng_state)
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"rng_state must be what `rng_state` held ({error})") from error
        self.history = state

    @property
    def rng_state(self) -> torch.Tensor:
        """The state of the sampling generator."""
        return self.generator.get_state()

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Tokenize frames, uint8 (n, 84, 64, 3) -> (n, 21, 16)."""
        frames, config = _array(frames, "frames"), self.vqvae.config
        shape = config.height, config.width, 3
        if frames.dtype != np.uint8 or frames.shape[1:] != shape or not len(frames):
            raise ValueError(f"frames must be uint8 (n, {', '.join(map(str, shape))}), "
                             f"got {frames.dtype} {frames.shape}")  # fmt: skip
        pixels = frames_to_float(torch.from_numpy(np.array(frames)).to(self.device))
        with autocast(self.device):
            tokens = self.vqvae.encode(pixels)
        return tokens.unflatten(1, self.grid).cpu().numpy()

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Turn tokens (n, 21, 16) into frames, uint8 (n, 84, 64, 3)."""
        given = _integers(tokens, self.vqvae.config.num_codes, "tokens")
        if given.shape[1:] != self.grid or not len(given):
            raise ValueError(f"tokens must be (n, {self.grid[0]}, {self.grid[1]}), "
                             f"got {given.shape}")  # fmt: skip
        flat = torch.from_numpy(given).flatten(1).to(self.device)
        return self._decoded(flat).cpu().numpy()

    def _decoded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Turn tokens (B, N) into frames, uint8 (B, 84, 64, 3), on the device."""
        with autocast(self.device):
            return float_to_frames(self.vqvae.decode(tokens))

    @property
    def _state(self) -> DreamState:
        if self.history is None:
            raise ValueError("the dream has no frames yet: call reset(frames) first")
        return self.history

    def _unbatched(self, array: np.ndarray):
        if self._state.is_batched:
            return array
        return array[0] if array.ndim > 1 else float(array[0])


def on_host(*parts: torch.Tensor) -> list[np.ndarray]:
    """Copy tensors into arrays, all in one transfer from the device."""
    packed = torch.cat([part.reshape(-1).view(torch.uint8) for part in parts]).cpu()
    sizes = [part.numel() * part.element_size() for part in parts]
    return [
        of.view(part.dtype).view(part.shape).numpy()
        for of, part in zip(map(torch.clone, packed.split(sizes)), parts, strict=True)
    ]


def _integers(values, limit: int, name: str, least: int = 0) -> np.ndarray:
    """Return whole numbers from the least to below a limit as int64, of Python, numpy or torch.

    Raises:
        ValueError: anything else, with the value.
    """
    array = _array(values, name)
    is_whole = array.dtype.kind in "iu"
    if not is_whole or (array.size and not least <= array.min() <= array.max() < limit):
        shown = str(values) if array.size < 20 else f"{array.dtype} {array.shape}"
        raise ValueError(f"{name} must be whole numbers from {least} to {limit - 1}, got {shown}")
    return np.array(array, np.int64)


def _array(values, name: str) -> np.ndarray:
    try:
        return np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
    except (ValueError, TypeError) as error:  # a ragged list, or a dtype that numpy lacks
        raise ValueError(f"{name} must be one array of numbers, got {values!r:.80}") from error
