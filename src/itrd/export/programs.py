"""A classifier as a program that runs without this package: ``torch.export`` and ONNX."""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from itrd.errors import UserError, first_line
from itrd.extras import require
from itrd.models.observe import logits_of

INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4  # of the largest logit; another order of the same float32 sums stays well below it
_EXPORTING = threading.Lock()
_CHECK_BATCHES = (1, 2, 5)  # the program is recorded with 2


class Classifier(nn.Module):
    """A network as it is handed over: images in, logits out.

    The network is copied, to the CPU, in float32, eval mode and the standard memory order.

    Args:
        net: any classifier.
        normalise: mean and std per channel, to be applied inside; None where the images come normalised.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, net: nn.Module, normalise: tuple[Sequence[float], Sequence[float]] | None = None
    ) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).cpu().float().requires_grad_(False)
        for tensor in (*self.net.parameters(), *self.net.buffers()):
            tensor.data = tensor.data.contiguous()
        self.normalises = normalise is not None
        if normalise is not None:
            for name, values in zip(("pixel_mean", "pixel_std"), normalise, strict=True):
                self.register_buffer(name, torch.tensor(list(values), dtype=torch.float32).view(1, -1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        return logits_of(self.net((images - self.pixel_mean) / self.pixel_std if self.normalises else images))


@dataclass(frozen=True)
class Agreement:
    """How an exported program compares with the network, on random images.

    Attributes:
        images: how many were tried, in batches of several sizes.
        largest_difference: between two logits.
        same_class: images for which the largest logit is the same one.
    """

    images: int
    largest_difference: float
    same_class: int


def record_program(classifier: Classifier, image_shape: tuple[int, int, int]) -> ExportedProgram:
    """Record what a classifier computes, for any batch size.

    Raises:
        UserError: its computation depends on the data or on the batch size.
    """
    batch = Dim("batch", min=1)
    example = torch.zeros(2, *image_shape)
    try:
        return torch.export.export(classifier, (example,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # torch documents no type, and raises many
        raise UserError(
            f"{type(classifier.net).__name__} cannot be exported as a program: {first_line(error)}; make its "
            "forward() free of decisions on the data and on the batch size, or choose --format safetensors"
        ) from error


def write_torch(program: ExportedProgram, path: Path) -> None:
    """Write a program for ``torch.export.load``."""
    torch.export.save(program, path)


def require_onnx() -> None:
    """Refuse to begin what ONNX is needed for: recording a program fails, too, where ``onnx`` is missing.

    Raises:
        UserError: one of the ONNX packages is not installed.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, extra="onnx")


def write_onnx(
    program: ExportedProgram, path: Path, opset: int | None = None, metadata: Mapping[str, str] | None = None
) -> int:
    """Write a program as ONNX, weights included; return its operator set.

    Raises:
        UserError: there is no such operator set.
    """
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    try:
        with warnings.catch_warnings(), _unlogged():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, about torch
            converted = torch.onnx.export(
                program, (), dynamo=True, opset_version=opset, verbose=False, **names
            )
    except Exception as error:  # as above
        raise UserError(
            f"cannot be exported to ONNX: {first_line(error)}; try --format torch_export"
        ) from error
    assert converted is not None
    written = converted.model.opset_imports[""]
    if opset not in (None, written):
        raise UserError(f"this network has no form in ONNX's operator set {opset}; choose --opset {written}")
    converted.model.metadata_props.update(metadata or {})
    converted.save(path, external_data=False)
    return written


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep the exporter's remarks and tracebacks on versions to itself: what it wrote is looked at afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    with _EXPORTING:
        before = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def run_torch(path: Path) -> Callable[[Tensor], Tensor]:
    """Load a program that :func:`write_torch` wrote, as a function of images."""
    return torch.export.load(path).module()


def run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Load a program that :func:`write_onnx` wrote into ONNX Runtime, as a function of images."""
    runtime = require("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


@torch.no_grad()
def compare(
    program: Callable[[Tensor], Tensor], classifier: Classifier, image_shape: tuple[int, int, int]
) -> Agreement:
    """Compare a program's logits with the network's.

    Raises:
        UserError: they differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    ours, theirs = [], []
    for size in _CHECK_BATCHES:
        images = torch.rand(size, *image_shape, generator=generator)
        ours.append(classifier(images))
        theirs.append(program(images))
    expected, found = torch.cat(ours), torch.cat(theirs)
    difference = (expected - found).abs().max().item()
    largest = expected.abs().max().item()
    if not difference <= TOLERANCE * largest:  # not finite: refused, too
        raise UserError(
            f"the exported program's logits differ from the network's by {difference:.3g}, where the largest logit is "
            f"{largest:.3g}; nothing is exported, try another --format"
        )
    same = (expected.argmax(1) == found.argmax(1)).sum().item()
    return Agreement(len(expected), difference, int(same))
