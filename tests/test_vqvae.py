import numpy as np
import pytest
import torch

from tests.conftest import ON_BROWN
from v2.data.emulator import make_atari_env
from v2.data.frames import frames_to_float
from v2.data.tokens import encode_frames
from v2.models.vqvae_hires import VQVAE, Quantizer, VQVAEConfig
from v2.runtime.device import autocast
from v2.train.sampling import rare_motion_chances
from v2.train.vqvae_loss import deviation_rarity, median_frame, pixel_weights


def test_parameters_are_within_the_design():
    model = VQVAE(VQVAEConfig())
    count = sum(p.numel() for p in model.parameters())
    assert 5.5e6 <= count <= 6.5e6
    decoder = sum(p.numel() for p in model.decoder.parameters())
    assert decoder > 0.8 * count


def test_shapes_are_those_of_the_design(vqvae):
    output = vqvae(torch.rand(2, 3, 84, 64))
    assert output.pixels.shape == (2, 3, 84, 64)
    assert output.tokens.shape == (2, 336) and output.latents.shape[2:] == (21, 16)


def test_codes_from_tokens_equal_the_quantizers_output(vqvae):
    latents = torch.randn(2, 16, 21, 16)
    codes, tokens = vqvae.quantizer(latents)
    assert torch.equal(vqvae.quantizer.look_up(tokens, (21, 16)), codes)
    distances = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 16), vqvae.quantizer.codebook)
    assert torch.equal(distances.argmin(1), tokens.flatten())


def test_a_token_does_not_change_when_pixels_far_away_do():
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig())
    pixels = torch.rand(1, 3, 84, 64)
    changed = pixels.clone()
    changed[:, :, 40:44, 32:36] = torch.rand(1, 3, 4, 4)  # one patch
    with torch.no_grad():
        difference = (model.encoder(pixels) - model.encoder(changed)).abs().amax(1)[0]  # (h, w)
    rows, columns = difference.nonzero(as_tuple=True)
    assert len(rows) > 0
    assert rows.min() >= 9 and rows.max() <= 11 and columns.min() >= 7 and columns.max() <= 9


def test_a_token_is_the_same_wherever_its_pixels_are():
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig())
    pixels = torch.rand(1, 3, 84, 64)
    moved = pixels.roll((8, 4), (2, 3))  # two tokens down, one right
    with torch.no_grad():
        latents, after = (model.encoder(each)[0] for each in (pixels, moved))
    inside, there = latents[:, 1:-3, 1:-2], after[:, 3:-1, 2:-1]  # but for the frame's border
    assert torch.allclose(inside, there, atol=1e-5)
    assert not torch.allclose(inside, after[:, 1:-3, 1:-2], atol=1e-2)


def test_the_gradient_passes_straight_through(vqvae):
    pixels = torch.rand(1, 3, 84, 64)
    output = vqvae(pixels)
    output.latents.retain_grad()
    output.pixels.sum().backward()
    codes = vqvae.quantizer.look_up(output.tokens, (21, 16)).detach().requires_grad_()
    vqvae.decoder(codes).sum().backward()
    assert torch.allclose(output.latents.grad, codes.grad, atol=1e-5)
    assert vqvae.encoder.stem.weight.grad.abs().sum() > 0


def test_a_forward_never_moves_the_codebook(vqvae):
    before = vqvae.quantizer.codebook.clone()
    vqvae.train()
    vqvae(torch.rand(2, 3, 84, 64))
    assert torch.equal(before, vqvae.quantizer.codebook)


def test_codes_follow_their_latents():
    quantizer = Quantizer(4, 2, decay=0.5)
    quantizer.initialise(torch.randn(1, 2, 8, 8), torch.Generator().manual_seed(0))
    target = torch.full((1, 2, 4, 4), 3.0)
    for _ in range(40):
        quantizer.update(target, quantizer.nearest(target))
    code = quantizer.codebook[quantizer.nearest(target)[0, 0]]
    assert torch.allclose(code, torch.full((2,), 3.0), atol=1e-3)


def test_a_code_that_is_not_used_any_more_stays_where_it_is():
    quantizer = Quantizer(2, 2, decay=0.5)
    quantizer.codebook.copy_(torch.tensor([[0.0, 0], [5, 5]]))
    quantizer.sums.copy_(quantizer.codebook)
    latents = torch.zeros(1, 2, 4, 4)
    for _ in range(200):  # its count runs out
        quantizer.update(latents, quantizer.nearest(latents))
    assert quantizer.codebook.tolist() == [[0, 0], [5, 5]]


def test_dead_codes_revive_on_the_worst_fitted_latents():
    quantizer = Quantizer(4, 2, decay=0.5)
    quantizer.codebook.copy_(torch.tensor([[0.0, 0], [100, 100], [101, 100], [102, 100]]))
    quantizer.sums.copy_(quantizer.codebook)
    latents = torch.zeros(1, 2, 4, 4)
    latents[..., 0, 0] = 7.0
    for _ in range(3):
        quantizer.update(latents, quantizer.nearest(latents), revive_below=0.9)
    assert (quantizer.codebook - 7).abs().sum(1).min() < 1e-5
    assert (quantizer.codebook > 50).sum() == 0
    assert (quantizer.counts >= 0).all()


def test_initial_codes_keep_a_rare_feature():
    latents = torch.randn(1, 2, 20, 20) * 0.01
    latents[..., 7, 7] = 50.0
    quantizer = Quantizer(4, 2, decay=0.9)
    quantizer.initialise(latents, torch.Generator().manual_seed(0))
    assert (quantizer.codebook - 50).abs().sum(1).min() < 1e-4


def test_rare_and_moving_pixels_weigh_more():
    pixels = torch.zeros(5, 3, 24, 24)
    pixels[:2, 0, 20, 20] = 1.0  # common
    pixels[2, 0, 3, 3] = 1.0  # rare
    median = median_frame(pixels)
    rarity = deviation_rarity(pixels, median)
    assert 0 < rarity[0, 0, 20, 20] < rarity[0, 0, 3, 3] <= 1
    still = pixel_weights(pixels, pixels, median, rarity, 20.0, 40.0)
    common, rare = still[0, 0, 16:, 16:], still[2, 0, :8, :8]  # 4 px around them
    assert (rare == rare[3, 3]).all() and (common == common[4, 4]).all()
    assert rare[3, 3] > common[4, 4] > 1 and (still != 1).sum() == 3 * 64
    moving = pixel_weights(pixels, pixels.roll(1, 0), median, rarity, 0.0, 40.0)
    assert (moving[2, 0, :8, :8] == 41).all() and moving[2, 0, 8, 8] == 1  # 4 px around it
    assert moving[4].max() == 1


def test_frames_are_drawn_oftener_where_motion_is_rare():
    frames = np.zeros((200, 84, 64, 3), np.uint8)
    frames[1:181:2, 60, 30] = 200  # a pixel that blinks often
    frames[190, 20, 30] = 200  # and one that is lit once, off again in frame 191
    rows = np.arange(1, 200)
    chances = rare_motion_chances(frames, rows, rows - 1, share=0.5) * len(rows)
    assert chances.sum() == pytest.approx(len(rows))
    often, rare, still = chances[:180], chances[189:191], chances[191:]
    assert np.allclose(still, 0.5) and (often > 0.5).all()
    assert rare.min() > 5 * often.max()


@pytest.mark.parametrize("has_position, colour", [(False, {}), (True, {}), (False, ON_BROWN)])
def test_carrying_unchanged_tokens_over_equals_encoding_every_frame(has_position, colour):
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(encoder_position=has_position, **colour))
    if has_position:
        torch.nn.init.normal_(model.encoder.position, std=0.1)
    env = make_atari_env("breakout")
    frames = [env.reset()[0]] + [env.step((1, 2, 3, 3)[t % 4])[0] for t in range(60)]
    frames = np.stack(frames + [255 - frames[-1]])  # the last one differs everywhere
    pixels = frames_to_float(torch.from_numpy(frames))
    device = torch.device("cpu")
    with torch.no_grad(), autocast(device):
        model.quantizer.initialise(
            model.encoder(pixels[::9]).float(), torch.Generator().manual_seed(0)
        )
        every = model.encode(pixels).numpy()
    carried = encode_frames(model, frames, device)
    assert len(np.unique(every)) > 16
    assert (carried == every).mean() > 0.9999  # sums in another order may break a tie


def test_what_has_the_usual_colour_is_nothing_and_is_decoded_first():
    torch.manual_seed(0)
    black, brown = VQVAE(VQVAEConfig()), VQVAE(VQVAEConfig(**ON_BROWN))
    brown.load_state_dict(black.state_dict())
    colour, pixels = torch.tensor(list(ON_BROWN.values())).view(3, 1, 1), torch.rand(2, 3, 84, 64)
    with torch.no_grad():
        assert torch.allclose(brown.encoder(pixels), black.encoder(pixels - colour), atol=1e-5)
        codes = torch.randn(2, 256, 21, 16)
        assert torch.equal(brown.decoder(codes), black.decoder(codes) + colour)


@pytest.mark.parametrize(
    "field, value",
    [("num_codes", 0), ("ema_decay", 1.5), ("height", 83), ("usual_red", 2), ("usual_blue", -1)],
)
def test_an_absurd_config_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        VQVAEConfig(**{field: value})
