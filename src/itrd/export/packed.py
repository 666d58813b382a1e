"""Binary networks with their weights packed into bits, and inference by XOR and popcount on a CPU.

A file is safetensors. For every binary convolution it holds

    NAME.bits    uint8 (C_out, 9 ceil(C_in / 8)): bit 1 where the binarised weight is +1. Rows are 3x3 taps of
                 ceil(C_in / 8) bytes, channel c of a tap is bit c % 8 of byte c // 8.
    NAME.zeros   likewise, bit 1 where the binarised weight is 0; only where there are any.
    NAME.alpha   float32 (C_out, 1, 1)

and everything else (stem, batch norms, classifier) under its own name in full precision. Metadata: ``format``,
``arch``, and what the caller adds.

What is exact: a convolution of signs is a whole number, the same here and in the training graph. Zeros count as the
graph counts them: the sign of zero is zero, for activations, weights and padding alike. Everything between two
binary convolutions is done by the same torch operations in float32, hence rounds alike.
"""

from __future__ import annotations

import copy
import ctypes
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from itrd.engine.checkpoint import canonical_safetensors, classes_in, load_into, read_weights
from itrd.errors import CheckpointError, UserError
from itrd.files import write_atomically
from itrd.models import create_model, list_models
from itrd.models.base import FeatureNet
from itrd.models.binary.layers import BinaryConv2d, binary_weight

FORMAT = "itrd-packed-1"
Kernel = Literal["auto", "numpy", "compiled"]

Words = NDArray[np.uint64]
# (activations (P, n), which of them are not zero (P, n), weights (n, C_out)) -> dot products, float32 (P, C_out)
Dots = Callable[[Words, Words, Words], NDArray[np.float32]]


class PackedConv2d(nn.Module):
    """The inference of a :class:`itrd.models.binary.layers.BinaryConv2d` with packed weights.

    Args:
        c_in: input channels.
        c_out: output channels.
        stride: of the convolution.
        dots: computes the dot products.

    Attributes:
        bits, zeros, alpha: as in the file; ``zeros`` is None where no weight is zero.
    """

    bits: Tensor
    zeros: Tensor | None
    alpha: Tensor

    def __init__(self, c_in: int, c_out: int, stride: int, dots: Dots) -> None:
        super().__init__()
        self._stride, self._dots = stride, dots
        self._weights: list[Words] = []
        self.register_buffer("bits", torch.zeros(c_out, 9 * -(-c_in // 8), dtype=torch.uint8))
        self.register_buffer("zeros", None)
        self.register_buffer("alpha", torch.zeros(c_out, 1, 1))

    @staticmethod
    def of(conv: BinaryConv2d, dots: Dots) -> PackedConv2d:
        """Pack a binary convolution."""
        c_out, c_in = conv.weight.shape[:2]
        packed = PackedConv2d(c_in, c_out, conv.stride, dots)
        signs = binary_weight(conv.weight.detach(), conv.tau).permute(0, 2, 3, 1).numpy(force=True)
        packed.bits = torch.from_numpy(_filter_bytes(signs > 0))
        if (signs == 0).any():
            packed.zeros = torch.from_numpy(_filter_bytes(signs == 0))
        packed.alpha = conv.alpha.detach().cpu().clone()
        packed.prepare()
        return packed

    def prepare(self) -> None:
        """Lay the bits out as the dot products want them; call when ``bits`` and ``zeros`` have been set."""
        # Weights that are zero count once as -1 and once as +1: in the mean they are zero.
        taken = [self.bits] if self.zeros is None else [self.bits, self.bits | self.zeros]
        self._weights = [np.ascontiguousarray(_words(bits.numpy()).T) for bits in taken]

    def forward(self, x: Tensor) -> Tensor:
        """Map finite float32 activations (B, C_in, H, W) to (B, C_out, H', W')."""
        return self.convolve(x) * self.alpha

    def convolve(self, x: Tensor) -> Tensor:
        """Return the convolution of the signs (B, C_out, H', W'): whole numbers."""
        pixels = x.permute(0, 2, 3, 1).contiguous().numpy()
        positive, valid = _patches(pixels > 0, self._stride), _patches(pixels != 0, self._stride)
        sums = self._dots(positive, valid, self._weights[0])
        for weights in self._weights[1:]:
            sums = (sums + self._dots(positive, valid, weights)) * np.float32(0.5)
        batch, height, width = len(pixels), *(-(-side // self._stride) for side in pixels.shape[1:3])
        return torch.from_numpy(sums).view(batch, height, width, -1).permute(0, 3, 1, 2)


class PackedNet(nn.Module):
    """A binary network for inference on a CPU, its binary convolutions packed.

    Attributes:
        net: the network; its features can be observed like any other's.
        arch: its name.
        metadata: what the file says of it.
    """

    def __init__(self, net: FeatureNet, metadata: Mapping[str, str]) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.arch = net.arch
        self.metadata = dict(metadata)
        for module in net.modules():
            if isinstance(module, PackedConv2d):
                module.prepare()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Map normalised float32 images (B, 3, 32, 32) to logits (B, K)."""
        logits: Tensor = self.net(images)
        return logits

    def train(self, mode: bool = True) -> PackedNet:
        """Stay in eval mode: there is nothing to train."""
        return super().train(False)


def pack(net: FeatureNet, kernel: Kernel = "auto") -> PackedNet:
    """Pack a binary network of `itrd models`; the network itself is left as it is.

    Args:
        net: the network, with the weights to be packed.
        kernel: what computes the dot products, see :func:`dots_of`.

    Raises:
        UserError: it has no binary convolution, or no name.
    """
    names = _binary_convolutions(net)
    if not names or net.arch not in list_models():
        raise UserError(
            f"{net.arch or type(net).__name__} cannot be packed: it is no binary network of `itrd models` "
            "(their names end in _1w1a)"
        )
    dots = dots_of(kernel)
    packed = copy.deepcopy(net).cpu()
    for name in names:
        packed.set_submodule(name, PackedConv2d.of(_binary(packed, name), dots))
    return PackedNet(packed, {})


def save_packed(net: FeatureNet, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a binary network with packed weights.

    Args:
        net: the network.
        path: of the file to be written.
        metadata: what else to say of it, for example its ``data`` and ``normalisation``.

    Raises:
        UserError: it is no binary network.
    """
    state = pack(net, "numpy").net.state_dict()
    said = {**(metadata or {}), "format": FORMAT, "arch": net.arch}
    write_atomically(Path(path), canonical_safetensors(state, said))


def load_packed(path: str | Path, kernel: Kernel = "auto") -> PackedNet:
    """Read a network that :func:`save_packed` wrote.

    Args:
        path: of the file.
        kernel: what computes the dot products, see :func:`dots_of`.

    Raises:
        CheckpointError: missing, damaged, or not such a file.
        UserError: the kernel cannot be had.
    """
    path = Path(path)
    dots = dots_of(kernel)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is no packed network; they are .safetensors files")
    state, metadata = read_weights(path)
    arch, classes = metadata.get("arch"), classes_in(state)
    if metadata.get("format") != FORMAT or arch not in list_models() or classes is None:
        raise CheckpointError(
            f"{path} is no packed network of this version; write it again from the trained one"
        )
    net = create_model(arch, classes)
    names = _binary_convolutions(net)
    if not names:
        raise CheckpointError(f"{path} is no packed network: {arch} has no binary convolution")
    for name in names:
        conv = _binary(net, name)
        packed = PackedConv2d(conv.weight.shape[1], conv.weight.shape[0], conv.stride, dots)
        if f"{name}.zeros" in state:
            packed.zeros = torch.zeros_like(packed.bits)
        net.set_submodule(name, packed)
    wanted = net.state_dict()
    for key in state.keys() & wanted.keys():
        if state[key].dtype != wanted[key].dtype:
            raise CheckpointError(
                f"{path}: {key} is {state[key].dtype} instead of {wanted[key].dtype}; write it again"
            )
    load_into(net, state, str(path))
    return PackedNet(net, metadata)


def _binary_convolutions(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, BinaryConv2d)]


def _binary(net: nn.Module, name: str) -> BinaryConv2d:
    conv = net.get_submodule(name)
    assert isinstance(conv, BinaryConv2d)
    return conv


# --- bits ------------------------------------------------------------------------------------------------


def _filter_bytes(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack flags (C_out, 3, 3, C_in) to (C_out, 9 ceil(C_in / 8))."""
    return _channel_bytes(flags).reshape(len(flags), -1)


def _patches(flags: NDArray[np.bool_], stride: int) -> Words:
    """Pack flags (B, H, W, C), and unset ones around them, to the 3x3 windows (B H' W', words)."""
    batch, height, width = flags.shape[0], *(-(-side // stride) for side in flags.shape[1:3])
    packed = _channel_bytes(flags)
    in_bytes = packed.shape[-1]
    unit = np.dtype(
        f"u{math.gcd(in_bytes, 8)}"
    )  # the largest number that divides a pixel and a word: fewer to copy
    padded = np.pad(packed.view(unit), ((0, 0), (1, 1), (1, 1), (0, 0)))
    size = padded.shape[-1]
    rows = np.zeros((batch, height, width, _whole_words(9 * in_bytes) // unit.itemsize), dtype=unit)
    for tap in range(9):
        down, right = divmod(tap, 3)
        seen = padded[:, down : down + flags.shape[1] : stride, right : right + flags.shape[2] : stride]
        rows[..., tap * size : (tap + 1) * size] = seen
    return rows.view(np.uint64).reshape(batch * height * width, -1)


def _channel_bytes(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack flags (..., C) to (..., ceil(C / 8))."""
    if flags.shape[-1] % 8:
        return np.packbits(flags, axis=-1, bitorder="little")
    # The same, as one long row instead of many short ones: several times faster.
    return np.packbits(flags, bitorder="little").reshape(*flags.shape[:-1], -1)


def _words(rows: NDArray[np.uint8]) -> Words:
    """Fill rows of bytes (N, n) up with zeros to whole words (N, ceil(n / 8))."""
    filled = np.zeros((len(rows), _whole_words(rows.shape[1])), dtype=np.uint8)
    filled[:, : rows.shape[1]] = rows
    return filled.view(np.uint64)


def _whole_words(size: int) -> int:
    """Round a number of bytes up to words of eight."""
    return -(-size // 8) * 8


# --- dot products ----------------------------------------------------------------------------------------


def dots_of(kernel: Kernel = "auto") -> Dots:
    """Return what computes dot products of signs, as the comment at :data:`Dots` says.

    Args:
        kernel: ``numpy``, the reference; ``compiled``, a few lines of C that the system's compiler (``cc``, or what
            CC names) translates on first use; ``auto``, the compiled one if there is a compiler.

    Raises:
        UserError: it cannot be had here.
    """
    compiled = compiled_dots() if kernel != "numpy" else None
    if compiled is not None:
        return compiled
    if kernel == "compiled":
        raise UserError("there is no C compiler that works here (cc, or what CC names); choose kernel numpy")
    return numpy_dots


def numpy_dots(positive: Words, valid: Words, weights: Words) -> NDArray[np.float32]:
    """Compute with NumPy: number of valid entries, less twice those that differ."""
    count = np.bitwise_count(valid).sum(axis=1, dtype=np.int64)
    differ = np.zeros((len(positive), weights.shape[1]), dtype=np.int64)
    for k, word in enumerate(weights):  # a word at a time, so that no (P, C_out, words) array is needed
        differ += np.bitwise_count((positive[:, k, None] ^ word) & valid[:, k, None])
    return (count[:, None] - 2 * differ).astype(np.float32)


@cache
def compiled_dots() -> Dots | None:
    """Compile the kernel for this processor, in a folder that is gone afterwards; None where that fails."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if not compiler:
        return None
    source = files("itrd.export").joinpath("packed_dots.c").read_bytes()
    flags = ["-O3", "-march=native", "-shared", "-fPIC", "-x", "c", "-"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "packed_dots.so"
        try:
            subprocess.run(
                [compiler, *flags, "-o", str(library)],
                input=source,
                capture_output=True,
                check=True,
                timeout=60,
            )
            function = ctypes.CDLL(str(library)).itrd_packed_dots
        except (OSError, subprocess.SubprocessError, AttributeError):
            return None
    words = np.ctypeslib.ndpointer(np.uint64, ndim=2, flags="C_CONTIGUOUS")
    floats = np.ctypeslib.ndpointer(np.float32, ndim=2, flags="C_CONTIGUOUS")
    function.argtypes = [words, words, words, floats, *[ctypes.c_size_t] * 3]
    function.restype = None

    def dots(positive: Words, valid: Words, weights: Words) -> NDArray[np.float32]:
        out = np.empty((len(positive), weights.shape[1]), dtype=np.float32)
        function(positive, valid, weights, out, len(positive), *weights.shape)
        return out

    return dots
