"""Videos and animated pictures of play.

Contract: a file is complete or absent, also after Ctrl-C: it appears when it is closed. Video goes
through PyAV, animated pictures through Pillow, in play on a thread of their own. Knows nothing of
windows or models.
"""

import contextlib
import importlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from v2.runtime.files import atomic_path

MP4_OPTIONS = {"crf": "18", "preset": "veryfast"}
MAX_WAITING = 16  # pictures that may wait to be encoded, about a second
MAX_GIF_PICTURES = 1800  # they wait in memory; two minutes at 15 steps a second
GIF_TICK_MS = 10  # GIF counts time in hundredths of a second
MIN_GIF_TICKS = 2  # browsers show a picture of one tick for ten


def open_video(path: Path, fps: float) -> "_Video":
    """Open a video, an animated picture or a last picture for writing; a context manager.

    Raises:
        ValueError: a suffix other than .mp4, .gif or .png.
        ImportError: the package that writes it is missing.
    """
    kinds = {".mp4": Mp4Video, ".gif": GifVideo, ".png": LastPicture}
    path = Path(path)
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path}: a video ends in {' or '.join(kinds)}")
    importlib.import_module("av" if path.suffix.lower() == ".mp4" else "PIL")  # not at the end
    path.parent.mkdir(parents=True, exist_ok=True)
    return kinds[path.suffix.lower()](path, fps)


class _Video(contextlib.AbstractContextManager):
    """Count frames; a video without any leaves no file."""

    def __init__(self, path: Path, fps: float):
        self.path, self.fps, self.num_frames = path, fps, 0

    def write(self, picture: np.ndarray) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __exit__(self, *exception) -> None:
        self.close()


class Mp4Video(_Video):
    """H.264 in the pixel format that every player and browser shows."""

    def __init__(self, path: Path, fps: float):
        super().__init__(path, fps)
        self._container: Any = None  # PyAV's

    def write(self, picture: np.ndarray) -> None:
        """Add one uint8 (H, W, 3) picture; all have one size."""
        import av

        picture = _even(picture)
        if self._container is None:
            self._open(av, *picture.shape[:2])
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self._container.mux(self._stream.encode(frame))
        self.num_frames += 1

    def close(self) -> None:
        if self._container is None:
            return
        container, self._container = self._container, None
        with self._stack:
            container.mux(self._stream.encode(None))

    def _open(self, av, height: int, width: int) -> None:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            container = stack.enter_context(
                av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"})
            )
            rate = Fraction(self.fps).limit_denominator(1000)
            self._stream = container.add_stream("libx264", rate=rate, options=MP4_OPTIONS)
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"
            self._container, self._stack = container, stack.pop_all()


class GifVideo(_Video):
    """An animated GIF; frames wait in memory, one byte a pixel, until it is closed.

    It takes the first `MAX_GIF_PICTURES` and says once that it is full; see `gif_times` for those
    that it shows.
    """

    def __init__(self, path: Path, fps: float):
        super().__init__(path, fps)
        self._pictures: list = []
        self._is_full = False

    def write(self, picture: np.ndarray) -> None:
        """Add one uint8 (H, W, 3) picture."""
        from PIL import Image

        if self.num_frames == MAX_GIF_PICTURES:
            if not self._is_full:
                print(f"{self.path}: a GIF holds two minutes: use .mp4", flush=True)
            self._is_full = True
            return
        image = Image.fromarray(picture)
        self._pictures.append(image.quantize(128, dither=Image.Dither.NONE))
        self.num_frames += 1

    def close(self) -> None:
        if not self._pictures:
            return
        kept, durations = gif_times(len(self._pictures), self.fps)
        first, *others = (self._pictures[index] for index in kept)
        with atomic_path(self.path) as temporary:
            first.save(temporary, format="GIF", save_all=True, append_images=others,
                       duration=durations, loop=0, optimize=False)  # fmt: skip
        self._pictures, self.num_frames = [], len(kept)


def gif_times(num_pictures: int, fps: float) -> tuple[list[int], list[int]]:
    """Return which pictures a GIF holds and for how many ms it shows each, 20 at least.

    Above 50 a second some are left out, evenly, so that the whole lasts as long as it should.
    """
    num_ticks = 1000 / GIF_TICK_MS * num_pictures / fps
    num_kept = max(1, min(num_pictures, int(num_ticks / MIN_GIF_TICKS)))
    starts = np.rint(np.linspace(0, max(num_ticks, MIN_GIF_TICKS), num_kept + 1)).astype(int)
    kept = np.arange(num_kept) * num_pictures // num_kept
    return kept.tolist(), (np.diff(starts) * GIF_TICK_MS).tolist()


class LastPicture(_Video):
    """The last picture alone, as PNG."""

    def write(self, picture: np.ndarray) -> None:
        self._picture = picture
        self.num_frames += 1

    def close(self) -> None:
        from PIL import Image

        if self.num_frames:
            with atomic_path(self.path) as temporary:
                Image.fromarray(self._picture).save(temporary, format="PNG")


class BackgroundVideo(contextlib.AbstractContextManager):
    """Encode the pictures of a video on a thread, in their order.

    What the thread raises comes out of a later `write`, or of `close`, which waits for it; no
    picture is encoded after that.
    """

    def __init__(self, video: _Video):
        self._video = video
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="video")
        self._waiting: deque[Future] = deque()
        self._has_failed = self.is_saved = False

    def __exit__(self, *exception) -> None:
        self.close()

    @property
    def num_frames(self) -> int:
        """How many pictures are encoded."""
        return self._video.num_frames

    def write(self, picture: np.ndarray) -> None:
        """Hand over one picture; waits only where `MAX_WAITING` are not encoded yet."""
        while self._waiting and (self._waiting[0].done() or len(self._waiting) == MAX_WAITING):
            self._waiting.popleft().result()
        self._waiting.append(self._executor.submit(self._encode, picture))

    def _encode(self, picture: np.ndarray) -> None:
        if self._has_failed:
            return
        self._has_failed = True  # unless the next line returns
        self._video.write(picture)
        self._has_failed = False

    def close(self) -> None:
        with self._video, self._executor:
            while self._waiting:
                self._waiting.popleft().result()
        self.is_saved = self.num_frames > 0


def _even(picture: np.ndarray) -> np.ndarray:
    """Cut the odd row and column that H.264 cannot hold."""
    height, width = picture.shape[:2]
    return picture[: height - height % 2, : width - width % 2]
