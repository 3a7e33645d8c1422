"""The window: opens a display, turns events into held inputs and commands, shows views.

Contract: every key works by its KEYDOWN and KEYUP events alone; with Alt, Ctrl or Meta it is not
ours; keys that are held when the window loses focus are released. A display that nobody can see is
refused. Knows no torch and no games.
"""

import pygame

from v2.play.keys import HeldInputs
from v2.play.picture import WIDEST, View, draw, largest_scale, picture_size

UNSEEN_DRIVERS = ("dummy", "offscreen")
FOREIGN_MODIFIERS = pygame.KMOD_ALT | pygame.KMOD_CTRL | pygame.KMOD_META
SCREEN_SHARE = 0.88  # of the desktop that a new window may take

INPUT_KEYS = {
    pygame.K_UP: "UP", pygame.K_w: "UP", pygame.K_DOWN: "DOWN", pygame.K_s: "DOWN",
    pygame.K_LEFT: "LEFT", pygame.K_a: "LEFT", pygame.K_RIGHT: "RIGHT", pygame.K_d: "RIGHT",
    pygame.K_SPACE: "FIRE",
}  # fmt: skip
QUIT_KEYS = {pygame.K_q: "quit", pygame.K_ESCAPE: "quit"}
PLAY_COMMANDS = QUIT_KEYS | {
    pygame.K_p: "pause", pygame.K_PERIOD: "one step", pygame.K_r: "sync", pygame.K_TAB: "mode",
    pygame.K_m: "player", pygame.K_f: "branches", pygame.K_BACKSPACE: "rewind", pygame.K_v: "clip",
    pygame.K_h: "help",
}  # fmt: skip
REPLAY_COMMANDS = QUIT_KEYS | {
    pygame.K_SPACE: "pause", pygame.K_p: "pause", pygame.K_LEFT: "back", pygame.K_RIGHT: "on",
    pygame.K_DOWN: "far back", pygame.K_UP: "far on", pygame.K_HOME: "first",
    pygame.K_END: "last", pygame.K_r: "sync", pygame.K_n: "next", pygame.K_b: "previous",
    pygame.K_v: "clip", pygame.K_h: "help",
}  # fmt: skip
PLAY_ADVICE = "add --headless --record play.mp4 to watch a video instead, or run it on a desktop"
REPLAY_ADVICE = "--replay browses in a window: run it on a desktop"


class Window:
    """One resizable window.

    Args:
        commands: pygame key -> command.
        inputs: pygame key -> game input; held keys stand in `held`.
        scale: whole-number scale of the frames; 0 takes what fits the desktop.
        advice: what to do without a display.
        must_be_seen: refuse SDL's invisible displays.
    """

    def __init__(self, title: str, commands: dict, inputs: dict | None = None, scale: int = 0,
                 columns: int = 2, advice: str = PLAY_ADVICE,
                 must_be_seen: bool = True):  # fmt: skip
        try:
            pygame.display.init()
        except pygame.error as error:
            raise ValueError(f"no display ({error}): {advice}") from error
        if must_be_seen and pygame.display.get_driver() in UNSEEN_DRIVERS:
            driver = pygame.display.get_driver()
            pygame.display.quit()
            raise ValueError(f"no display (SDL would draw to {driver!r}): {advice}")
        self.commands, self.inputs = commands, inputs or {}
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
        pygame.display.quit()

    def poll(self) -> list[str]:
        """Return the commands since the last call, and `redraw` where the window has changed."""
        found = []
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                found.append("quit")
            elif event.type == pygame.WINDOWFOCUSLOST:
                self.held.release_all()
                found.append("redraw")
            elif event.type in (pygame.WINDOWRESIZED, pygame.WINDOWEXPOSED):
                found.append("redraw")
            elif event.type == pygame.KEYUP:
                self.held.release(event.key)
            elif event.type == pygame.KEYDOWN and not getattr(event, "mod", 0) & FOREIGN_MODIFIERS:
                found += self._key_down(event.key)
        return found

    def _key_down(self, key: int) -> list[str]:
        self.has_seen_key = True
        if key in self.inputs:
            self.held.press(key, self.inputs[key])
        return [self.commands[key]] if key in self.commands else ["redraw"]

    def show(self, view: View) -> None:
        self.surface = pygame.display.get_surface()
        draw(self.surface, view)
        pygame.display.flip()
