"""Short videos saved in the background, with the actions beside them.

Contract: play goes on while a clip is drawn and encoded, and when that fails, which the next clip
or `close` tells; one clip at a time.
"""

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from v2.play.picture import View, render
from v2.play.video import open_video
from v2.runtime.files import write_text


def save_clip(path: Path, views: Sequence[View], scale: int, fps: float, details: dict) -> int:
    """Write a video and, beside it, a JSON file; return the number of frames."""
    with open_video(path, fps) as video:
        for view in views:
            video.write(render(view, scale))
    write_text(Path(path).with_suffix(".json"), json.dumps(details, indent=1) + "\n")
    return video.num_frames


class BackgroundClips:
    """Save clips on a thread of their own."""

    def __init__(self):
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="clip")
        self._future: Future | None = None
        self._path: Path | None = None

    def save(self, path: Path, views: Sequence[View], scale: int, fps: float, details: dict) -> str:
        """Begin to save; return what to tell the user."""
        if not views:
            return "nothing to save yet"
        if self._future is not None and not self._future.done():
            return "still saving the last clip"
        failure = self._future.exception() if self._future is not None else None
        self._path = path
        self._future = self._executor.submit(save_clip, path, views, scale, fps, details)
        print(f"clip: {path} and {path.with_suffix('.json').name}", flush=True)
        told = f"; the last clip was not saved: {failure}" if failure else ""
        return f"saving {path.name}{told}"

    @property
    def notice(self) -> str:
        """What is being saved now."""
        is_saving = self._future is not None and not self._future.done()
        return f"saving {self._path.name}" if is_saving and self._path else ""

    def close(self) -> None:
        """Wait for the last clip; an OSError where it was not saved."""
        self._executor.shutdown(wait=True)
        failure = self._future.exception() if self._future is not None else None
        if failure:
            raise OSError(f"the clip {self._path} was not saved: {failure}") from failure
