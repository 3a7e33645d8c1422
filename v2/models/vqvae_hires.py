"""VQ-VAE: 84x64 RGB frames <-> 21x16 tokens of a 32-code codebook (arXiv 1711.00937).

Contract: tokens are local, and the same wherever their pixels are the same. The encoder sees 10x10
pixels a token, mixes channels by 1x1 convolutions and has no normalisation over the image, so a
token changes only where pixels within 3 px of its 4x4 patch changed. The codebook moves only in
`Quantizer.update`, never by a forward. Knows nothing of data, games or files.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

USUAL_COLOUR = ("usual_red", "usual_green", "usual_blue")  # fields of the config
WINDOW, MARGIN = 10, 3  # pixels a token sees along each axis, and how far beyond its 4x4 patch


@dataclass(frozen=True)
class VQVAEConfig:
    height: int = 84
    width: int = 64
    num_codes: int = 32  # K
    latent_dim: int = 256  # D
    stem_dim: int = 64
    encoder_blocks: int = 3  # 1x1 residual blocks: depth without a wider view
    encoder_position: bool = False  # tokens depend on where they are; only older weights do
    usual_red: float = 0.0  # the colour, in [0, 1], that is nothing to encoder and decoder: their
    usual_green: float = 0.0  # numbers say how pixels differ from it, so that a game on grey
    usual_blue: float = 0.0  # is learnt like one on black
    decoder_dim: int = 128  # at 21x16
    decoder_blocks: int = 3
    cell_dim: int = 512  # of cells of 2x2 tokens, mixed by 1x1: many parameters, a narrow view
    cell_blocks: int = 3
    pixel_dim: int = 64  # at 42x32
    pixel_blocks: int = 1
    ema_decay: float = 0.99
    commitment_weight: float = 0.25

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "ema_decay" and not 0 < value < 1:
                raise ValueError(f"ema_decay must be in (0, 1), got {value}")
            if value < 0 or (field.type is int and value < 1):
                raise ValueError(f"{field.name} must be positive, got {value}")
            if field.name in USUAL_COLOUR and value > 1:
                raise ValueError(f"{field.name} must be at most 1, got {value}")
        if self.height % 4 or self.width % 4:
            raise ValueError(f"height and width must divide by 4, got {self.height}x{self.width}")

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns, (h, w)."""
        return self.height // 4, self.width // 4

    @property
    def usual_colour(self) -> tuple[float, ...]:
        return tuple(getattr(self, name) for name in USUAL_COLOUR)


class Reconstruction(NamedTuple):
    pixels: torch.Tensor  # (B, 3, H, W), unclamped
    latents: torch.Tensor  # (B, D, h, w), encoder outputs
    tokens: torch.Tensor  # (B, h*w) int64
    commitment: torch.Tensor  # scalar, mean squared distance of latents to their codes


class VQVAE(nn.Module):
    """Encoder, quantizer and decoder; most of its parameters are in the decoder."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = Quantizer(config.num_codes, config.latent_dim, config.ema_decay)
        self.decoder = Decoder(config)

    def forward(self, pixels: torch.Tensor, is_quantized: bool = True) -> Reconstruction:
        """Reconstruct (B, 3, H, W) in [0, 1], gradients straight through the quantizer.

        Args:
            is_quantized: False decodes the latents themselves, for a warm-up as an autoencoder.
        """
        latents = self.encoder(pixels)
        with torch.autocast(latents.device.type, enabled=False):
            codes, tokens = self.quantizer(latents.float())
            commitment = F.mse_loss(latents.float(), codes)
        through = latents + (codes.to(latents.dtype) - latents).detach()
        decoded = self.decoder(through if is_quantized else latents)
        return Reconstruction(decoded, latents, tokens, commitment)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the tokens of (B, 3, H, W) pixels in [0, 1], int64 (B, N)."""
        return self.quantizer.nearest(self.encoder(pixels).float())

    def encode_at(
        self, windows: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor:
        """Return the tokens at some positions only, int64 (n,).

        Args:
            windows: the pixels each token sees, (n, 3, 10, 10): from 3 before its patch to 3
                after; outside the frame they count for nothing.
            rows, columns: where in the token grid, (n,).
        """
        return self.quantizer.nearest(self.encoder.at(windows, rows, columns).float()).flatten()

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the pixels of tokens (B, N), float (B, 3, H, W), unclamped."""
        return self.decoder(self.quantizer.look_up(tokens, self.config.grid))


class Encoder(nn.Module):
    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.grid, self.usual = config.grid, config.usual_colour
        self.stem = nn.Conv2d(3, config.stem_dim, 4, stride=2, padding=1)
        self.patches = nn.Conv2d(config.stem_dim, config.latent_dim, 4, stride=2, padding=1)
        self.position = None
        if config.encoder_position:
            self.position = nn.Parameter(torch.zeros(1, config.latent_dim, *config.grid))
        dims = (config.latent_dim, config.latent_dim, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(*dims) for _ in range(config.encoder_blocks)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.patches(F.relu(self.stem(_shifted(pixels, self.usual, -1))))  # (B, D, h, w)
        return self.blocks(x if self.position is None else x + self.position)

    def at(self, windows: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the latents (1, D, n, 1) of windows (n, 3, 10, 10); see `VQVAE.encode_at`.

        As products of matrices and as one tall image: so many tiny ones take three times longer.
        """
        if any(self.usual):
            pixels = _shifted(windows, self.usual, -1)
            windows = pixels * self._inside(rows, columns, WINDOW, MARGIN, 4)
        x = F.relu(F.conv2d(windows, self.stem.weight, self.stem.bias, stride=2))  # (n, C, 4, 4)
        x = x * self._inside(rows, columns, 4, 1, 2)
        weight = self.patches.weight.permute(0, 2, 3, 1).flatten(1)  # channels last, as in x
        x = F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, self.patches.bias)  # (n, D)
        if self.position is not None:
            x = x + self.position[0, :, rows, columns].T
        return self.blocks(x.T[None, ..., None])

    def _inside(self, rows, columns, size: int, margin: int, scale: int) -> torch.Tensor:
        """Tell what of windows lies in the image, bool (n, 1, size, size).

        Args:
            margin: of a window before its token; scale: size of a token's own part.
        """
        span = torch.arange(size, device=rows.device) - margin
        i, j = (scale * first[:, None] + span for first in (rows, columns))  # (n, size)
        height, width = (scale * n for n in self.grid)
        return (((i >= 0) & (i < height))[:, :, None] & ((j >= 0) & (j < width))[:, None])[:, None]


class Decoder(nn.Module):
    """Cells of 2x2 tokens, then 21x16, then 42x32, then pixels; a code reaches 7 tokens at most.

    Far-reaching layers would be cheaper, but they paint specks wherever a board was never seen.
    """

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.usual = config.usual_colour
        dim, cell, pixel = config.decoder_dim, config.cell_dim, config.pixel_dim
        self.enter = nn.Conv2d(config.latent_dim, dim, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(1, dim, *config.grid))
        self.gather = nn.Conv2d(dim, cell, 2, stride=2)
        self.cells = nn.Sequential(
            *(ResidualBlock(cell, 2 * cell, 1) for _ in range(config.cell_blocks))
        )
        self.spread = nn.Conv2d(cell, 4 * dim, 1)
        self.fine = nn.Sequential(
            *(ResidualBlock(dim, dim, 3) for _ in range(config.decoder_blocks))
        )
        self.expand = nn.Conv2d(dim, 4 * pixel, 3, padding=1)
        self.pixel = nn.Sequential(
            *(ResidualBlock(pixel, pixel, 3) for _ in range(config.pixel_blocks))
        )
        self.to_rgb = nn.Conv2d(pixel, 4 * 3, 3, padding=1)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        x = self.enter(codes) + self.position
        cells = self.spread(F.relu(self.cells(self.gather(self.padded(x)))))
        return self.paint(x, cells)

    def padded(self, x: torch.Tensor) -> torch.Tensor:
        """Return what cells gather of x (B, dim, h, w): zeros complete the last row and column."""
        height, width = x.shape[-2:]
        return F.pad(F.relu(x), (0, width % 2, 0, height % 2))

    def paint(self, x: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Return pixels (B, 3, H, W) of x (B, dim, h, w) and its cells, two tokens apart."""
        height, width = x.shape[-2:]
        x = self.fine(x + F.pixel_shuffle(cells, 2)[..., :height, :width])
        x = F.pixel_shuffle(self.expand(F.relu(x)), 2)  # (B, pixel_dim, H/2, W/2)
        decoded = F.pixel_shuffle(self.to_rgb(F.relu(self.pixel(x))), 2)  # (B, 3, H, W)
        return _shifted(decoded, self.usual, 1)


def _shifted(pixels: torch.Tensor, colour: tuple[float, ...], sign: int) -> torch.Tensor:
    """Add a colour to pixels (B, 3, H, W), or take it away; black changes nothing, not even -0."""
    if not any(colour):
        return pixels
    shift = torch.tensor(colour, dtype=torch.float32, device=pixels.device)
    return pixels + sign * shift.view(-1, 1, 1)


class ResidualBlock(nn.Module):
    """A convolution and a 1x1 one; starts as the identity."""

    def __init__(self, dim: int, hidden_dim: int, kernel_size: int):
        super().__init__()
        self.inner = nn.Conv2d(dim, hidden_dim, kernel_size, padding=kernel_size // 2)
        self.outer = nn.Conv2d(hidden_dim, dim, 1)
        nn.init.zeros_(self.outer.weight)
        assert self.outer.bias is not None
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(F.relu(self.inner(F.relu(x))))


class Quantizer(nn.Module):
    """Nearest code by Euclidean distance; codes follow their latents by moving averages."""

    codebook: torch.Tensor  # (K, D), sums / counts
    counts: torch.Tensor  # (K,), moving
    sums: torch.Tensor  # (K, D), moving

    def __init__(self, num_codes: int, dim: int, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("codebook", nn.init.normal_(torch.empty(num_codes, dim)))
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes (B, D, h, w) and tokens (B, N) of latents (B, D, h, w)."""
        tokens = self.nearest(latents)
        return self.look_up(tokens, latents.shape[-2:]), tokens

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        flat = _flatten(latents).float()
        with torch.autocast(flat.device.type, enabled=False):  # bfloat16 confuses close codes
            scores = flat @ self.codebook.T - self.codebook.square().sum(1) / 2
        return scores.argmax(1).view(latents.shape[0], -1)

    def look_up(self, tokens: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        codes = F.embedding(tokens, self.codebook)  # (B, N, D)
        return codes.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, D, h, w), channels last

    @torch.no_grad()
    def initialise(self, latents: torch.Tensor, generator: torch.Generator) -> None:
        """Choose codes by farthest point, which keeps rare features, from latents (B, D, h, w)."""
        flat = _flatten(latents)
        first = int(torch.randint(len(flat), (1,), generator=generator))
        chosen = [flat[first]]
        distance = (flat - chosen[0]).square().sum(1)
        for _ in range(len(self.codebook) - 1):
            chosen.append(flat[distance.argmax()])
            distance = torch.minimum(distance, (flat - chosen[-1]).square().sum(1))
        self.codebook.copy_(torch.stack(chosen))
        self.counts.fill_(1)
        self.sums.copy_(self.codebook)

    @torch.no_grad()
    def update(self, latents: torch.Tensor, tokens: torch.Tensor, revive_below: float = 0) -> None:
        """Move the codes toward the latents (B, D, h, w) that chose them.

        Args:
            revive_below: codes whose moving count falls below this are placed on the worst-fitted
                latents, with fresh statistics; 0 revives none.
        """
        flat, chosen = _flatten(latents), tokens.reshape(-1)
        counts = torch.bincount(chosen, minlength=len(self.codebook)).to(flat.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, flat)
        _all_reduce(counts, sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        counts = self.counts.unsqueeze(1)  # of a code that is not used any more they run out
        self.codebook.copy_(torch.where(counts > 1e-5, self.sums / counts, self.codebook))
        dead = (self.counts < revive_below).nonzero().flatten()
        if len(dead):
            self._revive(dead, flat, chosen)

    def _revive(self, dead: torch.Tensor, flat: torch.Tensor, chosen: torch.Tensor) -> None:
        distance = (flat - self.codebook[chosen]).square().sum(1)
        for code in dead.tolist():
            largest, row = distance.max(0)
            worst = _of_largest(largest, flat[row].clone())
            self.codebook[code], self.sums[code], self.counts[code] = worst, worst, 1.0
            distance = torch.minimum(distance, (flat - worst).square().sum(1))


def _flatten(latents: torch.Tensor) -> torch.Tensor:
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])  # (B*h*w, D)


def _all_reduce(*tensors: torch.Tensor) -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def _of_largest(value: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor of the worker whose value is the largest."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(values, value)
        torch.distributed.broadcast(tensor, int(torch.stack(values).argmax()))
    return tensor
