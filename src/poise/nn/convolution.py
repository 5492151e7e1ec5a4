r"""Convolutions over the horizon, each computed in the way that is fastest where it runs.

Plans are short and batches, at run time, small. There a convolution

$$ y_{b i} = \beta + \sum_{k} W_k\, x_{b, s i + k - p}, $$

with zeros beyond the ends of the plan, is best computed as products of matrices. Tensors go by `(B, C, L)`, as in
PyTorch; in large batches on a CPU they lie in memory as rows `(B, L, C)`, where what a place i sees is one piece.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_input

_FEW, _MANY = 8, 64  # samples: up to and from here matrix products beat the convolution of PyTorch
_LARGE = 128  # samples of a batch in bfloat16, from which they do
_AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"  # with AVX-512 PyTorch's convolutions in float32 are faster
_PART = 16  # outputs of one product
_SHORT, _WIDE = 4, 2**14  # steps of a plan, and inputs times outputs: here PyTorch's gradient of weights is slow


class Convolution(nn.Module):
    """A convolution over the horizon with zeros beyond its ends; its tensors are those of `nn.Conv1d`.

    A convolution is the product of its windows, as rows `(B L, C kernel)`, with the matrix of its weights. For a few
    short plans this takes a third to two thirds of the time of PyTorch's convolution. The weights are cut into parts
    of `_PART` outputs, because PyTorch shares a batch of products out to its threads, but leaves a single one with few
    rows to one thread. For many plans a product for every place takes two thirds of the time of PyTorch's convolution,
    and with the gradients half of it.

    Args:
        inputs: Channels it sees.
        outputs: Channels it makes.
        kernel: Odd number of steps it sees.
        stride: Steps between its places.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.weight, self.bias = nn.Conv1d(inputs, outputs, kernel).parameters()
        self.stride, self.padding = stride, kernel // 2
        self.parts = outputs // math.gcd(outputs, _PART)
        self.wide = stride == 1 and kernel > 1 and inputs * outputs >= _WIDE

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs, L)` to `(B, outputs, L / stride)`."""
        if row_by_row(self, x):
            if self.weight.shape[2] == 1:
                return _product(x.transpose(1, 2), self.weight[:, :, 0], self.bias).transpose(1, 2)
            by_places = _ByPlaces.apply if self.training else _by_places
            rows, weight, bias = _cast(x.transpose(1, 2), self.weight, self.bias)
            return by_places(rows, weight, bias, self.stride).transpose(1, 2)
        if self.training and self.wide and x.shape[2] <= _SHORT and x.device.type == "cpu":
            return _ByProducts.apply(*_cast(x, self.weight, self.bias), self.padding)
        if frozen(self):
            rows = _beside(x, self.weight.shape[2], self.padding, self.stride)
            return _product(rows, self.weight.transpose(1, 2).flatten(1), self.bias).transpose(1, 2)
        # An exported network convolves at any batch; not len, which would fix it.
        if torch.compiler.is_exporting() or x.shape[0] > _FEW:
            return functional.conv1d(x, self.weight, self.bias, self.stride, self.padding)
        padded, (_, channels, kernel) = functional.pad(x, (self.padding, self.padding)), self.weight.shape
        windows = padded.unfold(2, kernel, self.stride).transpose(1, 2)
        rows, (batch, length) = windows.reshape(-1, channels * kernel), windows.shape[:2]
        weight, bias = self.weight.view(self.parts, -1, channels * kernel), self.bias.view(self.parts, 1, -1)
        y = torch.baddbmm(bias, rows.expand(self.parts, -1, -1), weight.transpose(1, 2))
        return y.unflatten(1, (batch, length)).permute(1, 0, 3, 2).flatten(1, 2)


class Upsample(nn.Module):
    """Twice the steps, by a transposed convolution of width 4; its tensors are those of `nn.ConvTranspose1d`.

    Args:
        channels: Channels it sees, and makes.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.ConvTranspose1d(channels, channels, 4).parameters()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, L)` to `(B, C, 2 L)`."""
        if not frozen(self):
            return functional.conv_transpose1d(x, self.weight, self.bias, stride=2, padding=1)
        # Of the steps before, here and after, even outputs see the first two and odd ones the last two.
        after_odd, here_even, here_odd, before_even = self.weight.unbind(2)
        even = functional.pad(torch.cat([before_even, here_even]), (0, 0, 0, len(self.weight)))
        odd = functional.pad(torch.cat([here_odd, after_odd]), (0, 0, len(self.weight), 0))
        y = _product(_beside(x, 3, 1), torch.cat([even, odd], 1).t(), torch.cat([self.bias, self.bias]))
        return y.unflatten(2, (2, -1)).flatten(1, 2).transpose(1, 2)


def frozen(module: nn.Module) -> bool:
    """Whether a compiler looks on that takes the weights for constants, and packs those of plain matrix products."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not module.training


def row_by_row(module: nn.Module, x: Tensor) -> bool:
    """Whether plans lie as rows, on a CPU: in training or many with AVX2 alone, batches of training in bfloat16."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return module.training and len(x) >= _LARGE
    return _AVX2 and x.dtype in (torch.float32, torch.float64) and (module.training or len(x) >= _MANY)


def _beside(x: Tensor, kernel: int, padding: int, stride: int = 1) -> Tensor:
    """What a convolution sees at its places, with zeros beyond the ends: `(B, C, L)` to `(B, L / stride, kernel C)`."""
    padded = functional.pad(x.transpose(1, 2), (0, 0, padding, padding))
    return torch.cat([padded[:, k : k + x.shape[2] : stride] for k in range(kernel)], 2)


def _product(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer as one product of two matrices, whatever the strides of its rows `(B, L, N)`."""
    return functional.linear(rows.flatten(0, 1), weight, bias).unflatten(0, rows.shape[:2])


class _Place(NamedTuple):
    """What an output of a convolution sees, as columns of the rows of a plan, and of the matrix of weights."""

    seen: slice
    taps: slice


def _places(length: int, channels: int, kernel: int, stride: int) -> list[_Place]:
    """The places of a convolution over so many steps, without those beyond their ends."""
    places = []
    for first in range(-(kernel // 2), length - kernel // 2, stride):
        begin, end = max(first, 0), min(first + kernel, length)
        seen = slice(begin * channels, end * channels)
        places.append(_Place(seen, slice((begin - first) * channels, (end - first) * channels)))
    return places


def _by_places(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """A convolution of rows `(B, L, C)` by a product of matrices for every place.

    Nothing is copied to be multiplied, and nothing multiplied that lies beyond the ends: with five taps and four
    steps that is 14 of 20 products.
    """
    rows, matrix = x.flatten(1), weight.transpose(1, 2).flatten(1).t()
    places = _places(x.shape[1], x.shape[2], weight.shape[2], stride)
    return torch.stack([torch.addmm(bias, rows[:, seen], matrix[taps]) for seen, taps in places], 1)


class _ByPlaces(torch.autograd.Function):
    """`_by_places` with gradients that add up where they belong, instead of in a tensor a place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _by_places(x, weight, bias, stride)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (x, weight), g = ctx.saved_tensors, gradients[0].contiguous()
        rows, matrix = x.flatten(1), weight.transpose(1, 2).flatten(1)
        of_rows, of_matrix = torch.zeros_like(rows), torch.zeros_like(matrix)
        for i, (seen, taps) in enumerate(_places(x.shape[1], x.shape[2], weight.shape[2], ctx.stride)):
            of_rows[:, seen].addmm_(g[:, i], matrix[:, taps])
            of_matrix[:, taps].addmm_(g[:, i].t(), rows[:, seen])
        of_weight = of_matrix.unflatten(1, (weight.shape[2], -1)).transpose(1, 2)
        return of_rows.view(x.shape), of_weight, g.sum((0, 1)), None


class _ByProducts(torch.autograd.Function):
    """A convolution whose gradient with respect to its weights is one product of matrices.

    PyTorch's own takes twice as long on a CPU where plans are short and channels many, and up to six times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return functional.conv1d(x, weight, bias, 1, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (x, weight), (g,) = ctx.saved_tensors, gradients
        kernel, rows = weight.shape[2], _beside(x, weight.shape[2], ctx.padding).flatten(0, 1)
        product = (g.transpose(1, 2).flatten(0, 1).t() @ rows).unflatten(1, (kernel, -1))
        inner = conv1d_input(x.shape, weight, g, padding=ctx.padding)
        return inner, product.transpose(1, 2), g.sum((0, 2)), None


def _cast(*tensors: Tensor) -> list[Tensor]:
    """As autocast would for a convolution."""
    if not torch.is_autocast_enabled("cpu"):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors]


__all__ = ["Convolution", "Upsample", "frozen", "row_by_row"]
