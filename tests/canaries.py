"""Models with known defects, made from the emulator itself, to evaluate the evaluation with.

`PerfectEngine` steps the real game from saved states; every canary shows a spoiled version of what
it knows. `PatchTokenizer` is lossless: each distinct 4x4 patch is a token.
"""

import numpy as np
import torch

from v2.data.atari_dataset import GameData
from v2.data.collector import Segment, join_segments
from v2.data.emulator import make_atari_env
from v2.data.games import EmulatorConfig, emulator_dict
from v2.data.policies import SCRIPTED, make_policy
from v2.eval.objects import detector

NOOP, FIRE, RIGHT, LEFT = range(4)
HASH = np.random.default_rng(0).integers(1 << 40, size=48)  # of a patch's 48 bytes


class PatchTokenizer:
    """Numbers every patch it meets; nothing is lost."""

    def __init__(self):
        self.numbers: dict[bytes, int] = {}
        self.patches: list[np.ndarray] = []

    def encode(self, frames: np.ndarray) -> np.ndarray:
        patches = frames.reshape(-1, 21, 4, 16, 4, 3).swapaxes(2, 3).reshape(-1, 48)
        _, first, index = np.unique(patches @ HASH, return_index=True, return_inverse=True)
        numbers = np.array([self._number(patches[k]) for k in first])
        return numbers[index.reshape(-1)].reshape(len(frames), 21, 16)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        patches = np.stack(self.patches)[tokens.reshape(-1)]
        patches = patches.reshape(-1, 21, 16, 4, 4, 3).swapaxes(2, 3)
        return patches.reshape(-1, 84, 64, 3)

    def _number(self, patch: np.ndarray) -> int:
        key = patch.tobytes()
        if key not in self.numbers:
            self.numbers[key] = len(self.patches)
            self.patches.append(patch)
        return self.numbers[key]


def record_with_states(
    seed: int, num_steps: int, game: str = "breakout"
) -> tuple[GameData, dict[bytes, object]]:
    """Play one scripted game; return it and the emulator's state after every history."""
    env = make_atari_env(game)
    rng = np.random.default_rng(seed)
    policy = make_policy(SCRIPTED, game, env.action_meanings, rng)
    frame, _ = env.reset()
    segment = Segment.begin(seed, "scripted", frame, env.ram)
    states = {}
    for _ in range(num_steps):
        if len(segment.frames) >= 4:
            states[history_key(segment.frames[-4:])] = env.unwrapped.clone_state()
        action = policy.act(segment.ram[-1])
        frame, reward, terminated, _, _ = env.step(action)
        segment.append(action, reward, frame, env.ram, terminated)
        if terminated:
            break
    arrays, episodes = join_segments([segment.finish()], 0)
    meta = {
        "game": game, "emulator": emulator_dict(EmulatorConfig(game)), "episodes": episodes,
        "action_meanings": env.action_meanings,
    }  # fmt: skip
    return GameData(**arrays, meta=meta), states


def history_key(frames) -> bytes:
    return np.stack(frames).tobytes()


class PerfectEngine:
    """Dreams by stepping the real game."""

    def __init__(
        self, states: dict[bytes, object], tokenizer: PatchTokenizer, game: str = "breakout"
    ):
        self.states, self.tokenizer, self.game = states, tokenizer, game
        self.env = make_atari_env(game)
        self.env.reset()

    def encode(self, frames):
        return self.tokenizer.encode(frames)

    def decode(self, tokens):
        return self.tokenizer.decode(tokens)

    def reset(self, frames, actions=None):
        self.running = [self.states[history_key(history)] for history in frames]
        self.began = self.running.copy()
        self.shown = frames[:, -1].copy()
        self.late = self.shown
        self.tokens = self.encode(self.shown)
        return self.shown

    def restart(self, rows):
        for k in np.flatnonzero(rows):
            self.running[k] = self.began[k]

    def step(self, actions):
        real, ram, rewards, ends = [], [], [], []
        for k, action in enumerate(np.asarray(actions)):
            self.env.unwrapped.restore_state(self.running[k])
            frame, reward, ended, _, _ = self.env.step(int(self.obey(action)))
            self.running[k] = self.env.unwrapped.clone_state()
            real.append(frame)
            ram.append(self.env.ram)
            rewards.append(np.sign(reward))
            ends.append(float(ended))
        self.last_reward, self.last_terminated = np.array(rewards), np.array(ends)
        self.shown = self.spoil(np.stack(real), detector.read_ram(self.game, np.stack(ram)))
        self.tokens = self.encode(self.shown)
        return self.shown

    @property
    def logits(self):
        flat = torch.from_numpy(self.tokens).flatten(1)
        return 20.0 * torch.nn.functional.one_hot(flat, len(self.tokenizer.patches)).float()

    def obey(self, action):
        return action

    def spoil(self, frames, objects):
        return frames


class CopyLast(PerfectEngine):
    def spoil(self, frames, objects):
        return self.shown


class Blank(PerfectEngine):
    def spoil(self, frames, objects):
        return np.zeros_like(frames)


class BallErased(PerfectEngine):
    """Paints a ball that flies below the bricks black."""

    def spoil(self, frames, objects):
        return paint_balls(frames, objects, lambda frame, x, y: black_out(frame, x, y))


class BallDoubled(PerfectEngine):
    """Shows a second ball in the black area."""

    def spoil(self, frames, objects):
        def double(frame, x, y):
            patch = frame[y - 3 : y + 4, x - 3 : x + 4].copy()
            left = x + 14 if x < 32 else x - 14
            frame[y - 3 : y + 4, left - 3 : left + 4] = patch

        return paint_balls(frames, objects, double)


class ActionsIgnored(PerfectEngine):
    def obey(self, action):
        return NOOP


class ActionsMirrored(PerfectEngine):
    def obey(self, action):
        return {RIGHT: LEFT, LEFT: RIGHT}.get(int(action), action)


class OneStepLate(PerfectEngine):
    """Shows the frame before the one that it should."""

    def spoil(self, frames, objects):
        self.late, shown = frames, self.late
        return shown


class PaddleLost(PerfectEngine):
    def spoil(self, frames, objects):
        frames = frames.copy()
        frames[:, 75:78, 3:61] = 0
        return frames


class WrongDigits(PerfectEngine):
    """Shows the first digit of the score, and the lives, where nothing can be read."""

    def spoil(self, frames, objects):
        frames = frames.copy()
        frames[:, 1:8, :48] = 0
        return frames


class AlwaysOver(PerfectEngine):
    """Says at every step that the game ends and that nothing was won."""

    def step(self, actions):
        shown = super().step(actions)
        self.last_reward, self.last_terminated = np.zeros(len(shown)), np.ones(len(shown))
        return shown


class LossyTokenizer(PatchTokenizer):
    """Knows no ball in the black: decodes black there, and one grey level beside the truth."""

    def decode(self, tokens):
        frames = super().decode(tokens)
        field = frames[:, 41:71, 4:60]
        field[field.max(-1) > 0] = 0
        return np.clip(frames, 1, 255)


class BricksReturn(PerfectEngine):
    """Puts all bricks of the last row back."""

    def spoil(self, frames, objects):
        frames = frames.copy()
        frames[:, 35:37, 4:60] = (66, 72, 200)
        return frames


def paint_balls(frames, objects, paint):
    frames = frames.copy()
    for frame, (x, y) in zip(frames, objects.ball, strict=True):
        if np.isfinite(y) and 41 < y < 71 and 7 < x < 57:
            paint(frame, int(x), int(y))
    return frames


def black_out(frame, x, y):
    frame[y - 3 : y + 4, x - 3 : x + 4] = 0
