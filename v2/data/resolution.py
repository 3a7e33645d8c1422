"""Whether what moves in an environment is still seen once its screen has become a frame.

Contract: measured on screens of a few short games of random held keys, the same every time; no game
is known. What moves differs from the median screen; what is thinner than a token (4x4 pixels of a
frame) and apart from anything thicker is small.
"""

import statistics
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from v2.data.emulator import AtariFrameEnv, make_atari_env
from v2.data.frames import fitted
from v2.data.games import EmulatorConfig
from v2.data.policies import STICKY, make_policy

NUM_STEPS, STEPS_BETWEEN_LOOKS = 200, 10
TOKEN_PIXELS = 4
MIN_DIFFERENCE = 16  # grey levels from the median screen
MIN_SCREENS = 0.1  # share of the screens in which something small moves; fewer are not said


@dataclass(frozen=True)
class SmallThings:
    """What moves and is thinner than a token."""

    screens: float  # share of the screens that show any
    pixels: float  # how thick it is in a frame, whole, the lower median of those screens; 0: less

    @property
    def is_worth_a_warning(self) -> bool:
        return self.screens >= MIN_SCREENS

    def __str__(self) -> str:
        thick = f"about {self.pixels:.0f}" if self.pixels else "less than 1"
        return (
            f"in {self.screens:.0%} of the screens something that moves is thinner than a token, "
            f"{thick} of {TOKEN_PIXELS} pixels: the tokenizer may lose it"
        )


def measure_small_things(emulator: EmulatorConfig) -> SmallThings:
    """Play a few games and look at what moves in their own screens."""
    env = make_atari_env(config=emulator)
    screens = _screens(env)
    rows, columns, height, width = fitted(screens.shape[1], screens.shape[2], emulator.fit)
    shown = screens[:, rows, columns].astype(np.int16)
    moving = np.abs(shown - np.median(shown, 0)).max(-1) > MIN_DIFFERENCE
    masks = torch.from_numpy(moving).float()[:, None]  # (n, 1, H, W)

    def side(pixels: int) -> tuple[int, int]:
        high, wide = pixels * shown.shape[1] / height, pixels * shown.shape[2] / width
        return max(1, round(high)), max(1, round(wide))

    thick = _opened(masks, side(TOKEN_PIXELS))
    small = masks * (1 - _grown(thick, side(TOKEN_PIXELS)))
    sizes = np.zeros(len(masks))
    for pixels in range(1, TOKEN_PIXELS):
        sizes[_opened(small, side(pixels)).amax((1, 2, 3)).numpy() > 0] = pixels
    is_there = small.amax((1, 2, 3)).numpy() > 0
    thickness = statistics.median_low(sizes[is_there]) if any(is_there) else 0.0
    return SmallThings(float(is_there.mean()), float(thickness))


def _screens(env: AtariFrameEnv) -> np.ndarray:
    """Return native screens, uint8 (n, H, W, 3)."""
    rng = np.random.default_rng(0)
    policy = make_policy(STICKY, env.config.game, env.action_meanings, rng)
    env.reset(seed=0)
    screens = []
    for step in range(NUM_STEPS):
        *_, terminated, truncated, _ = env.step(policy.act(env.ram))
        if terminated or truncated:
            env.reset(seed=step)
        if step % STEPS_BETWEEN_LOOKS == 0:
            screens.append(env.env.render())
    return np.stack(screens)


def _opened(masks: torch.Tensor, side: tuple[int, int]) -> torch.Tensor:
    """Keep what a rectangle of this height and width fits into."""
    high, wide = (min(a, b) for a, b in zip(side, masks.shape[2:], strict=True))
    fits = 1 - _highest(1 - masks, high, wide)
    return _highest(F.pad(fits, (wide - 1, wide - 1, high - 1, high - 1)), high, wide)


def _grown(masks: torch.Tensor, side: tuple[int, int]) -> torch.Tensor:
    high, wide = side
    return _highest(F.pad(masks, (wide, wide, high, high)), 2 * high + 1, 2 * wide + 1)


def _highest(masks: torch.Tensor, high: int, wide: int) -> torch.Tensor:
    return F.max_pool2d(F.max_pool2d(masks, (high, 1), 1), (1, wide), 1)
