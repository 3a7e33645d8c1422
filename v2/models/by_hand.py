"""Gradients made by hand: the numbers that autograd makes, in fewer passes over memory.

Contract: used where `is_training`; a compiler makes its own. Knows nothing of worlds.
"""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def is_training() -> bool:
    """Tell whether gradients are recorded by PyTorch as it runs."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class Places(NamedTuple):
    """Where rows lie in a batch of grids, with room to lay out two sets of them.

    The room is zero outside the rows, and every use of it writes the same ones.
    """

    rows: torch.Tensor  # int64 (R,), among the B * h * w cells
    room: torch.Tensor  # (2, B, h, w, D)

    @classmethod
    def of(cls, rows: torch.Tensor, size: tuple[int, ...], like: torch.Tensor) -> "Places":
        """Make room of a size (B, h, w, D), of the precision in which the layers compute."""
        device = like.device.type
        is_cast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_cast else like.dtype
        return cls(rows, like.new_zeros(2, *size, dtype=dtype))

    def lay_out(self, slot: int, x: torch.Tensor) -> torch.Tensor:
        """Return rows (R, D) as images (B, D, h, w), valid until the slot's next use."""
        self.room[slot].flatten(0, 2).index_copy_(0, self.rows, x)
        return self.room[slot].permute(0, 3, 1, 2)

    def pick(self, images: torch.Tensor) -> torch.Tensor:
        """Return the rows (R, D) of images (B, D, h, w)."""
        return images.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, self.rows)


class MixNeighbours(torch.autograd.Function):
    """A depthwise 3x3 convolution of rows (R, D) at their places, zero where there is none."""

    @staticmethod
    def forward(ctx, x, weight, bias, places: Places):
        ctx.save_for_backward(x, weight)
        ctx.places = places
        mixed = F.conv2d(places.lay_out(0, x), weight, bias, padding=1, groups=len(weight))
        return places.pick(mixed)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        images, gradients = ctx.places.lay_out(0, x), ctx.places.lay_out(1, gradient)
        groups = len(weight)
        # A convolution, too, and twice as fast as what torch does for it.
        of_images = F.conv2d(gradients, weight.flip(2, 3), padding=1, groups=groups)
        _, of_weight, _ = torch.ops.aten.convolution_backward(
            gradients, images, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], groups,
            [False, True, False],
        )  # fmt: skip
        return ctx.places.pick(of_images), of_weight, gradient.sum(0), None


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """Return the square of what is positive (arXiv 2109.08668)."""
    if is_training():
        return SquaredReLU.apply(x)
    positive = F.relu(x)
    return positive * positive  # ONNX Runtime is slow at powers


class SquaredReLU(torch.autograd.Function):
    """See `squared_relu`."""

    @staticmethod
    def forward(ctx, x):
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)
