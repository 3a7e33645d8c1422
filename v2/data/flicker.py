"""Whether a game's objects blink with the emulator's frames, so that a step may never show them.

Contract: measured on raw screens of a short game of random held keys, the same every time; no game
is known. An object blinks where its colour is gone from all of its surroundings in the screens
before and after, and back in the next; what only moves or is animated is still near.
"""

from dataclasses import dataclass

import numpy as np

from v2.data.emulator import make_atari_env
from v2.data.games import EmulatorConfig
from v2.data.policies import STICKY, make_policy

NUM_STEPS, STEPS_BETWEEN_LOOKS, FRAMES_A_STEP = 800, 8, 4
NEAR_PIXELS = 4  # of the emulator's screen: what moves or changes its shape is as near as this
MIN_PIXELS = 16  # of a screen; less is no object
MIN_SCREENS = 0.1  # share of the screens in which an object blinks; fewer are explosions


@dataclass(frozen=True)
class Flicker:
    """What blinks in a game."""

    screens: float  # share of the screens in which an object blinks
    pixels: float  # share of a screen's pixels that blink, on average

    @property
    def is_worth_pooling(self) -> bool:
        return self.screens >= MIN_SCREENS

    def __str__(self) -> str:
        verdict = "on, each frame is the maximum of two screens" if self.is_worth_pooling else "off"
        return (
            f"objects blink in {self.screens:.0%} of the screens, {self.pixels:.3%} of the "
            f"pixels: max-pool {verdict}"
        )


def measure_flicker(emulator: EmulatorConfig) -> Flicker:
    """Play a game and compare its raw screens."""
    env, rng = make_atari_env(config=emulator), np.random.default_rng(0)
    env.reset(seed=0)
    ale, counts = env.ale, []
    codes, num_pixels = ale.getMinimalActionSet(), ale.getScreen().size
    policy = make_policy(STICKY, emulator.game, [code.name for code in codes], rng)
    for step in range(NUM_STEPS):
        code, screens = codes[policy.act(env.ram)], []
        for _ in range(FRAMES_A_STEP):
            ale.act(code)
            if step % STEPS_BETWEEN_LOOKS == 0:
                screens.append(ale.getScreen())  # colours as indices of the palette
        if ale.game_over():
            ale.reset_game()
        elif screens:
            counts.append(_num_blinking(*screens))
    env.close()
    pixels = np.array(counts or [0])
    return Flicker(float((pixels >= MIN_PIXELS).mean()), float(pixels.mean() / num_pixels))


def _num_blinking(first, second, third, fourth) -> int:
    """Count the pixels of the two screens in the middle that blink."""
    return _num_gone(second, (first, third), fourth) + _num_gone(third, (second, fourth), first)


def _num_gone(shown: np.ndarray, beside: tuple[np.ndarray, np.ndarray], again: np.ndarray) -> int:
    """Count the pixels whose colour is not near in the screens beside theirs, and again later."""
    y, x = np.nonzero((shown != beside[0]) & (shown != beside[1]))
    colours = shown[y, x]
    is_gone = ~_is_near(colours, y, x, beside[0]) & ~_is_near(colours, y, x, beside[1])
    return int((is_gone & _is_near(colours, y, x, again)).sum())


def _is_near(colours: np.ndarray, y: np.ndarray, x: np.ndarray, screen: np.ndarray) -> np.ndarray:
    """Tell which colours a screen shows near their places, bool (n,)."""
    span = np.arange(2 * NEAR_PIXELS + 1)
    padded = np.pad(screen, NEAR_PIXELS, constant_values=255)  # no colour: all are even
    near = padded[y[:, None, None] + span[:, None], x[:, None, None] + span]  # (n, 9, 9)
    return (near == colours[:, None, None]).any((1, 2))
