import numpy as np
import pytest
import torch
from ale_py import AtariVectorEnv

from v2.data.emulator import make_atari_env
from v2.data.frames import FRAME_SHAPE, downsample_screen, float_to_frames, frames_to_float


def test_all_256_levels_survive_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(float_to_frames(frames_to_float(levels)), levels)


def test_floats_are_rounded_and_clamped():
    pixels = torch.tensor([-1.0, 0.5 / 255 - 1e-4, 0.5 / 255 + 1e-4, 2.0]).view(1, 1, 4, 1)
    seen = float_to_frames(pixels.expand(1, 3, 4, 1))[0, :, 0, 0]
    assert seen.tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("height", [210, 214, 220, 230, 250])
def test_downsampling_is_the_exact_area_average(height):
    screen = np.random.default_rng(0).integers(0, 256, (height, 160, 3), dtype=np.uint8)
    rows = screen.repeat(84, axis=0).reshape(84, height, 160, 3).mean(1)
    exact = rows.repeat(2, axis=1).reshape(84, 64, 5, 3).mean(2)
    seen = downsample_screen(screen)
    assert seen.shape == FRAME_SHAPE
    assert np.abs(seen - exact).max() <= 0.5


def test_downsampling_agrees_with_opencv_area_in_the_vector_environment():
    vector = AtariVectorEnv(
        "breakout", num_envs=1, grayscale=False, stack_num=1, img_height=84, img_width=64,
        frameskip=4, maxpool=False, use_fire_reset=False, noop_max=0,
    )  # fmt: skip
    env = make_atari_env("breakout")
    observation, _ = vector.reset(seed=0)
    frame, _ = env.reset()
    for step in range(40):
        assert np.abs(observation[0, 0].astype(int) - frame).max() <= 1
        observation, *_ = vector.step(np.array([step % 4]))
        frame, *_ = env.step(step % 4)


@pytest.mark.parametrize("screen", [np.zeros((84, 64, 3), np.uint8), np.zeros((210, 160, 3))])
def test_a_foreign_screen_is_refused(screen):
    with pytest.raises(ValueError, match="screen must be uint8"):
        downsample_screen(screen)
