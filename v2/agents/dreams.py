"""Dreams that begin anew one by one: what environments of one dream and of many are made of.

Contract: an episode begins from a start, real frames, and is over where the dream says so. Only
what is observed or shown is decoded, and each frame once. A process that was forked computes in
one thread: the threads of its parent's OpenMP are gone, and it would wait for them for ever.
Knows nothing of gymnasium.
"""

import copy
import os
from pathlib import Path

import numpy as np
import torch

from v2.data.dream_starts import DreamStarts, load_starts
from v2.data.frames import FRAME_SHAPE, grey_frames
from v2.data.games import differing_settings, emulator_dict, game_id
from v2.decoding import END_PROB, known_age
from v2.dream import DreamEngine, DreamState
from v2.eval.objects import detector

OBSERVATIONS = ("rgb", "grey", "tokens")
OPTIONS = ("start", "phase")  # of a reset


class Dreams:
    """B dreams on one engine, each of which begins anew by itself.

    Args:
        observation: `rgb` (84, 64, 3), `grey` (84, 64, 1) or `tokens` (21, 16), which needs no
            decoder.
        episodic_life: a life that the dreamed digit shows to be lost ends the episode.

    Raises:
        ValueError: a value that is none of these, or weights and starts of different games.
    """

    def __init__(self, engine: DreamEngine, starts: DreamStarts, num_dreams: int,
                 observation: str = "rgb", episodic_life: bool = False):  # fmt: skip
        if observation not in OBSERVATIONS:
            known = " or ".join(OBSERVATIONS)
            raise ValueError(f"observation must be {known}, got {observation!r}")
        game, settings = starts.emulator.game, emulator_dict(starts.emulator)
        learnt = engine.info.get("emulator") or settings
        if learnt["game"] != game:
            raise ValueError(f"{engine.source} dreams of {learnt['game']}, not {game}: give game=")
        if differing := differing_settings(learnt, settings):
            raise ValueError(
                f"{engine.source} was trained with {'; '.join(differing)} as in {starts.source}: "
                "give starts=, a recording of its settings"
            )
        self.reads_lives = observation != "tokens" and detector.shows_lives(game)
        if episodic_life and not self.reads_lives:
            raise ValueError(f"episodic_life needs lives that can be read from frames of {game}")
        self.engine, self.starts, self.game = engine, starts, game
        self.observation, self.episodic_life = observation, episodic_life
        self.num_dreams = num_dreams
        self.ages = np.zeros(num_dreams, np.int64)  # steps since the start
        self.picks = np.zeros(num_dreams, np.int64)  # which start
        self.lives = np.full(num_dreams, -1, np.int64)  # -1 unknown
        self._shown_lives = self.lives.copy()  # by the last frames alone
        self._frames = np.zeros((num_dreams, *FRAME_SHAPE), np.uint8)
        self._is_stale = np.ones(num_dreams, bool)  # frames that are not decoded yet

    def __deepcopy__(self, memo) -> "Dreams":
        """Copy what a step changes; the weights, which none does, are shared."""
        made = copy.copy(self)
        made.engine = copy.copy(self.engine)
        made.engine.generator = copy.deepcopy(self.engine.generator)
        for name in ("ages", "picks", "lives", "_shown_lives", "_frames", "_is_stale"):
            setattr(made, name, getattr(self, name).copy())
        return made

    @property
    def shape(self) -> tuple[int, ...]:
        """What one observation is."""
        if self.observation == "tokens":
            return self.engine.grid
        return (*FRAME_SHAPE[:2], 3 if self.observation == "rgb" else 1)

    @property
    def highest(self) -> int:
        """The largest value in an observation; the smallest is 0."""
        codes = self.engine.world_model.config.num_codes
        return codes - 1 if self.observation == "tokens" else 255

    @property
    def dtype(self) -> np.dtype:
        return np.min_scalar_type(self.highest)

    def seed(self, seed: int) -> None:
        """Seed what tokens are sampled by."""
        self.engine.generator.manual_seed(seed % 2**63)

    def begin(self, rows: np.ndarray, picks: np.ndarray) -> None:
        """Begin the dreams `rows` anew, from the starts `picks`."""
        frames, actions = self.starts.histories(picks)
        encoded = self.engine.encode(frames.reshape(-1, *FRAME_SHAPE))
        device = self.engine.device
        tokens = torch.from_numpy(encoded).view(*frames.shape[:2], -1).long().to(device)
        past = torch.from_numpy(actions.astype(np.int64)).to(device)
        parts = [tokens, past, known_age(tokens)]
        if self.engine.history is not None:
            index, now = torch.from_numpy(rows).to(device), self.engine.history[:3]
            parts = [old.index_copy(0, index, new) for old, new in zip(now, parts, strict=True)]
        self.engine.restore(DreamState._make([*parts, True]))
        self.ages[rows], self.picks[rows], self._is_stale[rows] = 0, picks, True
        if self.reads_lives:
            self._shown_lives[rows] = detector.read_lives(self.game, self.frames()[rows])
            self.lives[rows] = self._shown_lives[rows]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take an action in each dream; return the rewards and which games are over, (B,) each."""
        self.engine.step_tokens(actions)
        self.ages += 1
        self._is_stale[:] = True
        is_over = np.asarray(self.engine.last_terminated) > END_PROB
        if self.reads_lives:
            is_lost = self._read_lives()
            if self.episodic_life:
                is_over = is_over | is_lost
        return np.asarray(self.engine.last_reward, np.float64), is_over

    def _read_lives(self) -> np.ndarray:
        """Follow the lives; return which dreams lost one, bool (B,).

        A dreamed digit may flicker: one that is lower counts when two frames in a row show it.
        """
        seen = detector.read_lives(self.game, self.frames())
        is_sure = (seen >= 0) & (seen == self._shown_lives)
        is_lost = is_sure & (seen < self.lives)
        self.lives = np.where(is_lost | (is_sure & (self.lives < 0)), seen, self.lives)
        self._shown_lives = seen
        return is_lost

    def frames(self) -> np.ndarray:
        """Return the frames of all dreams, uint8 (B, 84, 64, 3); each is decoded once."""
        if self._is_stale.any():
            rows = np.flatnonzero(self._is_stale)
            self._frames[rows] = self.engine.decode(self.engine.tokens[rows])
            self._is_stale[:] = False
        return self._frames

    def observations(self) -> np.ndarray:
        """Return what all dreams show, as arrays of their own."""
        if self.observation == "tokens":
            return self.engine.tokens.astype(self.dtype)
        frames = self.frames()
        return frames.copy() if self.observation == "rgb" else grey_frames(frames)

    def info(self) -> dict[str, np.ndarray]:
        """Return what is known of each dream beside its observation, (B,) each."""
        known = {"dream_steps": self.ages.copy(), "start": self.picks.copy(),
                 "start_seed": self.starts.seeds[self.picks],
                 "start_phase": self.starts.phases[self.picks]}  # fmt: skip
        return known | ({"lives": self.lives.copy()} if self.reads_lives else {})

    def draw(self, rng: np.random.Generator, options: dict | None) -> int:
        """Choose a start, by chance among those that the options of a `reset` leave.

        Raises:
            ValueError: an unknown option or value.
        """
        options = options or {}
        for name in options.keys() - set(OPTIONS):
            raise ValueError(f"no option {name!r} of reset: use {' or '.join(OPTIONS)}")
        start = options.get("start")
        if start is None:
            among = np.arange(len(self.starts))
            if "phase" in options:
                among = self.starts.of_phase(options["phase"])
            return int(rng.choice(among))
        if not isinstance(start, int | np.integer) or not 0 <= start < len(self.starts):
            raise ValueError(f"start must be 0 to {len(self.starts) - 1}, got {start!r}")
        return int(start)


def make_dreams(
    num_dreams: int, game: str, weights: str, device: str, starts: str | Path | None,
    temperature: float, observation: str, episodic_life: bool,
) -> Dreams:  # fmt: skip
    """Load what B dreams of a game need.

    Raises:
        ValueError, FileNotFoundError: no such game, weights, device or starts.
    """
    game = game_id(game)
    chosen = load_starts(game, None if starts is None else Path(starts))
    engine = DreamEngine.load(weights, game, device, temperature)
    return Dreams(engine, chosen, num_dreams, observation, episodic_life)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
