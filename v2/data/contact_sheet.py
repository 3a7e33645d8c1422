"""A contact sheet: moments of a dataset with the actions drawn below them.

Contract: below each frame stands the action that was taken at it, whose result is the next frame.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from v2.data.atari_dataset import GameData, spread, window_starts
from v2.runtime.files import atomic_path

NUM_MOMENTS, NUM_FRAMES = 6, 9  # rows, evenly spread, and consecutive frames of each
SCALE, TEXT_PX, GAP_PX = 2, 14, 4


def save_contact_sheet(path: Path, data: GameData) -> None:
    """Write the sheet as PNG: moments at which another action begins, where there are enough."""
    height, width = data.frames.shape[1] * SCALE, data.frames.shape[2] * SCALE
    step_y, step_x = height + TEXT_PX + GAP_PX, width + GAP_PX
    starts = _moments(data)
    sheet = Image.new("RGB", (NUM_FRAMES * step_x, len(starts) * step_y), (32, 32, 32))
    draw = ImageDraw.Draw(sheet)
    for i, start in enumerate(starts):
        for j in range(NUM_FRAMES):
            row = start + j
            picture = Image.fromarray(data.frames[row]).resize((width, height), 0)
            sheet.paste(picture, (j * step_x, i * step_y))
            name = data.meta["action_meanings"][data.actions[row]] if data.has_action[row] else "-"
            place = j * step_x + 2, i * step_y + height + 1
            draw.text(place, name[:20], fill=(255, 210, 80))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _moments(data: GameData) -> np.ndarray:
    """Return the first rows of the moments: where another action begins in their middle."""
    starts = window_starts(data.episode_ids, NUM_FRAMES)
    middle = starts + NUM_FRAMES // 2
    changes = starts[data.actions[middle] != data.actions[middle - 1]]
    chosen = changes if len(changes) >= NUM_MOMENTS else starts
    return spread(chosen, NUM_MOMENTS)
