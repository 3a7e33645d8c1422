"""Text and shapes for the window: one palette, one font, smooth at every size.

Contract: lengths are given at unit 1 and scaled by the drawing's unit. The font is pygame's own, so
a picture looks the same on every machine. Knows nothing of games.
"""

import functools
import math

import pygame

OVERSAMPLING = 4

COLORS = {
    "background": (13, 16, 22),
    "panel": (21, 26, 34),
    "line": (43, 51, 63),
    "text": (230, 236, 243),
    "dim": (139, 150, 165),
    "real": (86, 204, 138),
    "dream": (178, 140, 255),
    "tokens": (178, 140, 255),
    "ball": (255, 170, 84),
    "paddle": (96, 176, 255),
    "alarm": (255, 99, 99),
}


class Draw:
    """Text and shapes in one size unit."""

    def __init__(self, surface: pygame.Surface, unit: float):
        self.surface, self.unit = surface, unit

    def px(self, length: float) -> int:
        return round(length * self.unit)

    def text(self, text: str, position, size=16, color="text", anchor="left") -> pygame.Rect:
        """Write a line whose vertical middle is at `position`; return where it stands."""
        image = _text(text, self.px(size), color)
        rect = image.get_rect()
        places = {"left": "midleft", "right": "midright", "middle": "center"}
        setattr(rect, places[anchor], position)
        return self.surface.blit(image, rect)

    def width(self, text: str, size=16) -> int:
        return _text(text, self.px(size), "text").get_width()

    def dot(self, center, radius: float, color: str) -> None:
        image = _dot(self.px(radius), color)
        self.surface.blit(image, image.get_rect(center=center))

    def box(self, rect, color="panel", radius=8, width=0) -> None:
        pygame.draw.rect(self.surface, COLORS[color], rect, width, border_radius=self.px(radius))

    def fitted(self, text: str, width: int, size=16) -> str:
        """Shorten a text to a width."""
        if self.width(text, size) <= width:
            return text
        while text and self.width(text + "…", size) > width:
            text = text[:-1]
        return text + "…"


@functools.lru_cache(maxsize=512)
def _text(text: str, size: int, color: str) -> pygame.Surface:
    """Draw a line large and shrink it: even spacing where hinting at small sizes has none."""
    shown = text.encode("utf-8", "backslashreplace").decode("utf-8")  # a path may hold other bytes
    image = _font(size * OVERSAMPLING).render(shown, True, COLORS[color])
    width, height = (math.ceil(length / OVERSAMPLING) for length in image.get_size())
    return pygame.transform.smoothscale(image, (width, height))


@functools.lru_cache(maxsize=32)
def _font(size: int) -> pygame.font.Font:
    pygame.font.init()
    return pygame.font.Font(None, size)


@functools.lru_cache(maxsize=32)
def _dot(radius: int, color: str) -> pygame.Surface:
    side = 2 * radius * OVERSAMPLING
    image = pygame.Surface((side, side), pygame.SRCALPHA)
    image.fill((*COLORS[color], 0))
    pygame.draw.circle(image, COLORS[color], (side // 2, side // 2), side // 2)
    return pygame.transform.smoothscale(image, (2 * radius, 2 * radius))
