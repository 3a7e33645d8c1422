"""The window: opens a display, turns events into held inputs and commands, shows views.

Contract: every key works by its KEYDOWN and KEYUP events alone; with Alt, Ctrl or Meta it is not
ours; keys that are held when the window loses focus are released. A display that nobody can see is
refused. Knows no torch and no games.
"""

from collections.abc import Sequence

import pygame

from v2.play.keys import REDRAW, HeldInputs, KeyRow, commands_of, inputs_of
from v2.play.picture import WIDEST, View, draw_view, largest_scale, picture_size

UNSEEN_DRIVERS = ("dummy", "offscreen")
FOREIGN_MODIFIERS = pygame.KMOD_ALT | pygame.KMOD_CTRL | pygame.KMOD_META
SCREEN_SHARE = 0.88  # of the desktop that a new window may take

PLAY_ADVICE = "add --headless --record play.mp4 to watch a video instead, or run it on a desktop"
REPLAY_ADVICE = "--replay browses in a window: run it on a desktop"


class Window:
    """One resizable window.

    Args:
        rows: the table of keys; those of the game, while they are down, stand in `held`.
        scale: whole-number scale of the frames; 0 takes what fits the desktop.
        advice: what to do without a display.
        must_be_seen: refuse SDL's invisible displays.
    """

    def __init__(self, title: str, rows: Sequence[KeyRow], scale: int = 0, columns: int = 2,
                 advice: str = PLAY_ADVICE, must_be_seen: bool = True):  # fmt: skip
        try:
            pygame.display.init()
        except pygame.error as error:
            raise ValueError(f"no display ({error}): {advice}") from error
        if must_be_seen and pygame.display.get_driver() in UNSEEN_DRIVERS:
            driver = pygame.display.get_driver()
            pygame.display.quit()
            raise ValueError(f"no display (SDL would draw to {driver!r}): {advice}")
        self.commands, self.inputs = codes(commands_of(rows)), codes(inputs_of(rows))
        self.held = HeldInputs()
        self.has_seen_key = False
        if not scale:
            desktop = pygame.display.get_desktop_sizes()[0]
            room = (int(desktop[0] * SCREEN_SHARE / WIDEST), int(desktop[1] * SCREEN_SHARE))
            scale = max(2, min(8, largest_scale(columns, 1, room)))
        pygame.display.set_caption(title)
        width, height = picture_size(columns, 1, scale)
        size = (round(width * WIDEST), height)  # branches of four actions fit, at half the scale
        self.surface = pygame.display.set_mode(size, pygame.RESIZABLE)

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        pygame.display.quit()

    def poll(self) -> list[str]:
        """Return the commands since the last call, and `REDRAW` where the window has changed."""
        found = []
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                found.append("quit")
            elif event.type == pygame.WINDOWFOCUSLOST:
                self.held.release_all()
                found.append(REDRAW)
            elif event.type in (pygame.WINDOWRESIZED, pygame.WINDOWEXPOSED):
                found.append(REDRAW)
            elif event.type == pygame.KEYUP:
                self.held.release(event.key)
            elif event.type == pygame.KEYDOWN and not getattr(event, "mod", 0) & FOREIGN_MODIFIERS:
                found += self._key_down(event.key)
        return found

    def _key_down(self, key: int) -> list[str]:
        self.has_seen_key = True
        if key in self.inputs:
            self.held.press(key, self.inputs[key])
        return [self.commands[key]] if key in self.commands else [REDRAW]

    def show(self, view: View) -> None:
        self.shown, self.surface = view, pygame.display.get_surface()
        draw_view(self.surface, view)
        pygame.display.flip()

    def show_again(self) -> None:
        self.show(self.shown)


def codes(keys: dict[str, str]) -> dict[int, str]:
    """Return pygame's codes for the names of keys."""
    names = {key: key.lower() if len(key) == 1 else key for key in keys}
    return {getattr(pygame, f"K_{names[key]}"): does for key, does in keys.items()}
