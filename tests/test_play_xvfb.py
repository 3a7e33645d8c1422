"""A real window on a virtual screen, real key presses that reach the game, both panes seen."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from v2.data.atari_dataset import load_game_data
from v2.play.draw import COLORS

ROOT = Path(__file__).resolve().parents[1]
missing = [tool for tool in ("Xvfb", "xdotool") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f"apt-get install xvfb xdotool: {' and '.join(missing)} not there"
)

PROGRAM = """
import pathlib, sys, time
sys.path[:0] = [{root!r}]
from tests.fake_engine import FakeEngine
from v2 import play_atari_hires
from v2.runtime import cli
def load(*args, **kwargs):
    while not pathlib.Path("weights").exists():
        time.sleep(0.05)
    return FakeEngine()
play_atari_hires.load_quickest = load
sys.argv = ["play", "--scale", "4", "--record", "play.mp4", "--save-data", "data.npz"]
cli.run(play_atari_hires.main)
"""
FIRE, RIGHT = 1, 2
LIT_PIXELS = 300  # a key of the picture that is down is a box of more pixels than this


@pytest.fixture
def display(tmp_path):
    """Start a virtual screen whose pixels stand in a file; yield its name and that file."""
    screen = tmp_path / "Xvfb_screen0"
    reads, writes = os.pipe()  # the server takes a free number itself and tells it when ready
    command = ["Xvfb", "-displayfd", str(writes), "-screen", "0", "1024x768x24", "-noreset"]
    with subprocess.Popen([*command, "-fbdir", str(tmp_path)], pass_fds=[writes],
                          stderr=subprocess.DEVNULL) as server, open(reads) as told:  # fmt: skip
        os.close(writes)
        number = told.readline().strip()
        wait_for(screen.exists)
        yield f":{number}", screen
        server.terminate()


def wait_for(condition, seconds=60):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.05)
    return True


def screenshot(path: Path) -> np.ndarray:
    """Read an xwd file of 32-bit pixels; returns uint8 (H, W, 3)."""
    raw = path.read_bytes()
    header = np.frombuffer(raw[:100], ">u4").astype(int)
    size, width, height, line, colors = header[0], header[4], header[5], header[12], header[19]
    start = size + 12 * colors
    pixels = np.frombuffer(raw, np.uint8, line * height, start).reshape(height, line // 4, 4)
    return pixels[:, :width, 2::-1].copy()


@pytest.fixture
def program(display, tmp_path):
    """Start play on the virtual screen; end it whatever happens."""
    name, screen = display
    environment = os.environ | {"DISPLAY": name, "SDL_VIDEODRIVER": "x11"}
    code = PROGRAM.format(root=str(ROOT))
    with subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path,
                          stdout=subprocess.PIPE, text=True) as process:  # fmt: skip
        try:
            yield process, environment, screen
        finally:
            process.kill()


def test_a_window_is_left_while_its_weights_are_loaded(program, tmp_path):
    process, environment, screen = program

    def count(color):
        return int((screenshot(screen) == COLORS[color]).all(-1).sum())

    wait_for(lambda: count("panel"), 120)
    for words in (("mousemove", "512", "384", "click", "1"), ("key", "q")):
        subprocess.run(["xdotool", *words], env=environment, timeout=60, check=True)
    wait_for(lambda: not count("panel"))
    (tmp_path / "weights").touch()  # what is loading comes to its end
    assert process.wait(60) == 0


def test_a_person_plays_in_a_real_window(program, tmp_path):
    process, environment, screen = program

    def xdotool(*words):
        subprocess.run(["xdotool", *words], env=environment, timeout=60, check=True)

    def count(color):
        return int((screenshot(screen) == COLORS[color]).all(-1).sum())

    def wait_for_another_picture():
        now = screenshot(screen)
        wait_for(lambda: not np.array_equal(now, screenshot(screen)))

    wait_for(lambda: count("panel"), 120)  # empty panes at once, before any weights
    assert not count("dream")
    (tmp_path / "weights").touch()
    wait_for(lambda: count("dream"), 120)
    xdotool("mousemove", "512", "384", "click", "1")
    dark = count("text")
    for key in ("space", "Right"):
        xdotool("keydown", key)
        wait_for(lambda: count("text") > dark + LIT_PIXELS)
        for _ in range(3):
            wait_for_another_picture()
        xdotool("keyup", key)
        wait_for(lambda: count("text") < dark + LIT_PIXELS)
    panel = count("panel")
    xdotool("key", "h")
    wait_for(lambda: count("panel") > panel + 10_000)
    xdotool("key", "h")
    wait_for(lambda: count("panel") < panel + 10_000)
    last = screenshot(screen)
    Image.fromarray(last).save(tmp_path / "screenshot.png")
    xdotool("key", "q")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and (tmp_path / "play.mp4").exists()
    assert '"steps"' in out.splitlines()[-1]
    assert_both_panes(last)
    data = load_game_data(tmp_path / "data.npz")
    pressed = data.actions[data.actions > 0].tolist()
    assert pressed == sorted(pressed) and set(pressed) == {FIRE, RIGHT}  # in the order of the keys
    assert pressed.count(RIGHT) > 1  # held for more than one step
    assert data.ram[-1, 72] > data.ram[0, 72]  # and the paddle went there


def has_color(picture: np.ndarray, color) -> bool:
    return bool((picture == color).all(-1).any())


def assert_both_panes(picture: np.ndarray) -> None:
    """Both halves show the wall of bricks and the grey frame of Breakout."""
    upper = picture[: len(picture) // 2]  # the chart below has the same colour
    columns = np.flatnonzero((upper == COLORS["dream"]).all(-1).any(0))
    middle = columns[0] - 8  # the dream's dot stands at the left edge of its pane
    for half in (picture[:, :middle], picture[:, middle:]):
        for color in [(200, 72, 72), (66, 72, 200), (142, 142, 142)]:
            assert (np.abs(half.astype(int) - color).max(-1) < 12).sum() > 200, color
