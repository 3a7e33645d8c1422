"""Pictures for people: grids of frames as PNG files. Takes uint8 arrays, knows no torch."""

from pathlib import Path

import numpy as np
from PIL import Image

from v2.runtime.files import atomic_path


def save_grid(path: Path, rows: list[np.ndarray], scale: int = 3, gap: int = 2) -> None:
    """Write rows of frames, each uint8 (n, H, W, 3), as one picture."""
    count = max(len(row) for row in rows)
    height, width = rows[0].shape[1:3]
    size = (len(rows) * (height + gap) - gap, count * (width + gap) - gap)
    canvas = np.full((*size, 3), 40, np.uint8)
    for i, row in enumerate(rows):
        for j, frame in enumerate(row):
            y, x = i * (height + gap), j * (width + gap)
            canvas[y : y + height, x : x + width] = frame
    picture = Image.fromarray(canvas)
    size = (picture.width * scale, picture.height * scale)
    picture = picture.resize(size, Image.Resampling.NEAREST)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
