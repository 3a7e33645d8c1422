"""Pictures for people: grids of frames, as arrays or PNG files. Knows no torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from v2.runtime.files import atomic_path

GAP_PX, GAP_SHADE = 2, 120  # between frames; a grey that no frame's background has


def strip_of(result: Path) -> Path:
    """Return where the strip of a result lies, real over dream: beside its document."""
    return result.with_name(f"{result.stem}.strip.png")


def lay_out(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Lay out rows of frames, each uint8 (n, H, W, 3), as one picture, uint8 (Y, X, 3)."""
    height, width = rows[0].shape[1:3]
    steps = height + GAP_PX, width + GAP_PX
    size = len(rows) * steps[0] - GAP_PX, max(map(len, rows)) * steps[1] - GAP_PX
    picture = np.full((*size, 3), GAP_SHADE, np.uint8)
    for i, row in enumerate(rows):
        for j, frame in enumerate(row):
            y, x = i * steps[0], j * steps[1]
            picture[y : y + height, x : x + width] = frame
    return picture


def save_grid(path: Path, rows: Sequence[np.ndarray], scale: int = 3) -> None:
    """Write rows of frames, each uint8 (n, H, W, 3), as one PNG file, `scale` times as large."""
    picture = Image.fromarray(lay_out(rows))
    size = (picture.width * scale, picture.height * scale)
    picture = picture.resize(size, Image.Resampling.NEAREST)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
