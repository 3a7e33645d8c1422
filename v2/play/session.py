"""What is being played: the real game, the dream beside it, how far they are apart, the way back.

Contract: both sides take the same action in the same step, and the dream is only ever started from
consecutive real frames with the actions between them, so that it knows the ball's velocity and how
long each cell has stood still.
One thread at a time may use a session. Knows nothing of windows, keys or video.
"""

import dataclasses
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from v2.data.environments import NoWayBackError
from v2.data.games import RecordedConfig
from v2.decoding import END_PROB
from v2.eval.objects import detector
from v2.models.temporal_world_model import WorldModelConfig

MODES = ("both", "dream", "real")
HISTORY_FRAMES = WorldModelConfig.history
MAX_FRAMES = 200  # of the real game, that are remembered for a sync: they tell how old tokens are
REWIND_STEPS = 30
MAX_SNAPSHOTS = 900  # a minute at 15 steps a second
LOST_BALL_STEPS = 15


@dataclass(frozen=True)
class Moment:
    """Everything that a step leaves on the screen."""

    step: int
    action: int
    real_frame: np.ndarray  # uint8 (84, 64, 3)
    dream_frame: np.ndarray  # uint8 (84, 64, 3)
    reward: float = 0.0
    score: float = 0.0  # of the game that runs
    past_scores: tuple[float, ...] = ()  # of those before it
    lives: int = 0
    dream_reward: float = 0.0
    dream_end_prob: float = 0.0
    mode: str = "both"
    has_lost_ball: bool = False  # the real game has had a ball for a second and the dream none
    notice: str = ""


class Divergence:
    """How far the dream is from the real game at each step since the last sync."""

    def __init__(self):
        self.agreement: list[float] = []  # share of equal tokens
        self.ball_px: list[float] = []  # NaN where one of the two shows no ball
        self.paddle_px: list[float] = []

    def __len__(self) -> int:
        return len(self.agreement)

    def cut(self, length: int) -> "Divergence":
        """Return a copy of the first steps."""
        made = Divergence()
        for name, values in vars(self).items():
            setattr(made, name, values[:length])
        return made


class Tape(Protocol):
    """What wants to know every real step, such as a tape of episodes."""

    controller: str  # who plays

    def begin(self, seed: int, frame: np.ndarray, ram: np.ndarray) -> None: ...

    def step(self, action, reward, frame, ram, terminated) -> None: ...


@dataclass
class _Snapshot:
    env_state: Any
    dream_state: Any
    dream_rng_state: Any  # the state of the sampling generator
    dream_tokens: np.ndarray
    frames: tuple
    actions: tuple
    moment: Moment
    ram: np.ndarray
    seed: int
    is_over: bool
    divergence: Divergence
    num_diverged: int


class PlaySession:
    """A real game and its dream.

    Args:
        env: the emulator, made by `make_atari_env`, or a `v2.play.recorded.RecordedEnv`, which
            takes its own actions in every mode but the dream's.
        engine: a DreamEngine, or anything with its reset, step, restore, encode, history, tokens,
            rng_state, num_actions, last_reward and last_terminated.
        seed: seed of the first game; the next game has the next one.
    """

    moment: Moment
    frames: deque[np.ndarray]  # of the real game, the last few
    actions: deque[int]

    def __init__(self, env: Any, engine, seed: int = 0, tape: Tape | None = None):
        num_actions = len(env.action_meanings)
        if engine.num_actions != num_actions:
            raise ValueError(
                f"the model knows {engine.num_actions} actions and {env.config.game} has "
                f"{num_actions}: load weights of this game with --run or --checkpoint"
            )
        self.env, self.engine, self.tape = env, engine, tape
        self.game, self.is_recorded = env.config.game, isinstance(env.config, RecordedConfig)
        self.mode = "both"
        self.agreements: list[float] = []  # of every measured step, also across syncs
        self.ball_errors: list[float] = []
        self.paddle_errors: list[float] = []
        self.num_steps = 0
        self.divergence = Divergence()
        self.has_truth = detector.has_truth(self.game)
        self.is_over = False  # the real game, which the next step begins anew
        self._num_lost_steps = 0
        self._snapshots: deque[_Snapshot] = deque(maxlen=MAX_SNAPSHOTS)
        self._seed = seed - 1
        self._new_game()

    def step(self, action: int) -> Moment:
        """Take one step on every side that the mode lets run; after a game's last, in a new one."""
        notice = ""
        if self.is_over and self.mode != "dream":
            self._new_game()
            notice = self.moment.notice
        self._remember()
        self.num_steps += 1
        action = self._taken(action)
        step: dict[str, Any] = {"step": self.moment.step + 1, "action": action, "notice": notice}
        if self.mode != "dream":
            values, self.is_over = self._step_real(action)
            step |= values
        if self.mode != "real":
            step |= self._step_dream(action)
        self.moment = dataclasses.replace(self.moment, **step)
        if self.mode == "both":
            self._measure()
        elif self.mode == "dream" and self.moment.dream_end_prob > END_PROB:
            self.sync("the dream's game is over: synced")
        return self.moment

    def _taken(self, action: int) -> int:
        """Return the action of this step: a recording has its own, whatever is pressed."""
        return self.env.next_action if self.is_recorded and self.mode != "dream" else action

    def _step_real(self, action: int) -> tuple[dict, bool]:
        frame, reward, terminated, truncated, _ = self.env.step(action)
        self.frames.append(frame)
        self.actions.append(action)
        self.ram = self.env.ram
        if self.tape:
            self.tape.step(action, reward, frame, self.ram, terminated)
        score = self.moment.score + reward
        values = {"real_frame": frame, "reward": reward, "score": score, "lives": self.env.lives}
        return values, terminated or truncated

    def _step_dream(self, action: int) -> dict:
        frame = self.engine.step(action)
        self.dream_tokens = np.array(self.engine.tokens)
        reward, end_prob = float(self.engine.last_reward), float(self.engine.last_terminated)
        return {"dream_frame": frame, "dream_reward": reward, "dream_end_prob": end_prob}

    def _new_game(self) -> None:
        """Reset the emulator and let it run for the frames that the dream starts from."""
        over = hasattr(self, "moment")
        scores = (*self.moment.past_scores, self.moment.score) if over else ()
        self._seed += 1
        self.is_over = False
        has_luck = self.env.config.has_luck
        frame, _ = self.env.reset(seed=self._seed if has_luck or not over else None)
        self.ram = self.env.ram
        self.frames = deque([frame], maxlen=MAX_FRAMES)
        self.actions = deque(maxlen=MAX_FRAMES - 1)
        if self.tape:
            self.tape.begin(self._seed, frame, self.ram)
        step, action = (self.moment.step, self.moment.action) if over else (0, 0)
        self.moment = Moment(step, action, frame, frame, mode=self.mode, past_scores=scores)
        for _ in range(HISTORY_FRAMES - 1):
            values, is_over = self._step_real(self._taken(self.env.noop or 0))
            self.moment = dataclasses.replace(self.moment, **values)
            self.is_over |= is_over
        self.sync(f"game over with {scores[-1]:.0f} points: a new game" if over else "")

    def begin_anew(self, notice: str) -> Moment:
        """Begin a new game where the real one cannot be brought back to where it was."""
        self._snapshots.clear()
        self._new_game()
        self.moment = dataclasses.replace(self.moment, notice=notice)
        return self.moment

    def sync(self, notice: str = "synced") -> Moment:
        """Start the dream from the real frames that are remembered, at least the last four."""
        frame = self.engine.reset(np.stack(self.frames), np.array(self.actions))
        self.dream_tokens = np.array(self.engine.tokens)
        self.divergence, self._num_lost_steps = Divergence(), 0
        self.moment = dataclasses.replace(
            self.moment, dream_frame=frame, dream_reward=0.0, dream_end_prob=0.0,
            has_lost_ball=False, notice=notice,
        )  # fmt: skip
        return self.moment

    @property
    def seed(self) -> int:
        """The seed of the game that runs."""
        return self._seed

    def next_mode(self) -> Moment:
        """Go on to the next of both, dream only and real only."""
        return self.set_mode(MODES[(MODES.index(self.mode) + 1) % len(MODES)])

    def set_mode(self, mode: str) -> Moment:
        """Choose which sides run; a dream that the real game left behind is synced first."""
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        names = {"both": "both", "dream": "dream only: the real game waits", "real": "real only"}
        was, self.mode = self.mode, mode
        self._num_lost_steps = 0
        self.moment = dataclasses.replace(
            self.moment, mode=mode, has_lost_ball=False, notice=names[mode]
        )
        if mode != "real" and was != mode and not (was == "both" and mode == "dream"):
            self.sync(f"{names[mode]}, synced")
        return self.moment

    def _measure(self) -> None:
        tokens = self.engine.encode(self.moment.real_frame[None])[0]
        self.divergence.agreement.append(float(np.mean(tokens == self.dream_tokens)))
        ball, paddle = self._distances() if self.has_truth else (np.nan, np.nan)
        self.divergence.ball_px.append(ball)
        self.divergence.paddle_px.append(paddle)
        self.agreements.append(self.divergence.agreement[-1])
        self.ball_errors.append(ball)
        self.paddle_errors.append(paddle)

    def _distances(self) -> tuple[float, float]:
        real = detector.read_ram(self.game, self.ram[None])
        dream = detector.read_frames(self.game, self.moment.dream_frame[None])
        is_lost = np.isnan(dream.ball[0, 0]) and not np.isnan(real.ball[0, 0])
        self._num_lost_steps = self._num_lost_steps + 1 if is_lost else 0
        has_lost_ball = self._num_lost_steps >= LOST_BALL_STEPS
        self.moment = dataclasses.replace(self.moment, has_lost_ball=has_lost_ball)
        ball = np.linalg.norm(real.ball[0] - dream.ball[0])
        return float(ball), float(abs(real.paddle[0] - dream.paddle[0]))

    def _remember(self) -> None:
        self._snapshots.append(_Snapshot(
            self.env.clone_state(), self.engine.history,
            self.engine.rng_state, self.dream_tokens, tuple(self.frames), tuple(self.actions),
            self.moment, self.ram, self._seed, self.is_over, self.divergence,
            len(self.divergence),
        ))  # fmt: skip

    def rewind(self, num_steps: int = REWIND_STEPS) -> Moment:
        """Take both sides back by `num_steps`, or as far as there is memory."""
        if not self._snapshots:
            self.moment = dataclasses.replace(self.moment, notice="nothing to rewind")
            return self.moment
        num_steps = min(num_steps, len(self._snapshots))
        for _ in range(num_steps):
            snapshot = self._snapshots.pop()
        try:
            self.env.restore_state(snapshot.env_state)
        except NoWayBackError as error:
            return self.begin_anew(f"{error}: a new game")
        self.engine.restore(snapshot.dream_state, snapshot.dream_rng_state)
        self.dream_tokens, self.ram = snapshot.dream_tokens, snapshot.ram
        self.frames.clear()
        self.frames.extend(snapshot.frames)
        self.actions.clear()
        self.actions.extend(snapshot.actions)
        self.divergence = snapshot.divergence.cut(snapshot.num_diverged)
        self._seed, self.is_over = snapshot.seed, snapshot.is_over
        if self.tape:
            self.tape.begin(self._seed, self.frames[-1], self.ram)
        self.moment = dataclasses.replace(
            snapshot.moment, mode=self.mode, notice=f"back by {num_steps} steps"
        )
        if self.mode != "real" and snapshot.moment.mode not in ("both", self.mode):
            self.sync(self.moment.notice + ", synced")  # one of the two had stood still
        return self.moment
