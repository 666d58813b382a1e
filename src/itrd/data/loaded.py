"""A split whose images are read, batch by batch, by worker processes, and normalised on the device."""

from __future__ import annotations

import signal
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from itrd.data.datasets import AnySplit
from itrd.data.lazy import LazySplit
from itrd.data.objects import ItemStore, as_pixels, image_and_label
from itrd.data.plan import EpochPlan
from itrd.data.source import Drawn
from itrd.data.views import Augmentation, fit, seeded
from itrd.errors import DataError, UserError

_PLAIN = -1  # in place of a view's number: the image as it is
_FEW = 32  # images; no worker is started for so many or fewer
_GRACE = 30  # seconds that a worker goes on after it was told to end
_SHARE = 16  # images that a worker reads at a time of a batch that is wanted as a whole

Request = list[tuple[int, int]]  # (index, view) of each image of a batch


class LoadedImages:
    """The images of a split, read when they are needed; see :class:`itrd.data.source.ImageSource`.

    Pixels travel to the device as uint8, from pinned memory and without waiting where it is a GPU, and are normalised
    there with the operations of :class:`itrd.data.device.DeviceImages`: equal pixels give equal bits.

    Args:
        split: the images.
        mean, std: per channel, of pixels in 0..1. Floating-point images are taken to be in that range.
        augmentation: how a view is made.
        size: side that plain images are brought to; None where they have it already.
        device: where batches go.
        channels_last: memory order of the batches.
        workers: processes that read; 0 to read in this one.

    Attributes:
        labels: int64 (N,), on the device.
        num_views: number of views of an image.
        shape: (C, H, W) of a plain image.
    """

    resident = False

    def __init__(
        self,
        split: AnySplit,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augmentation: Augmentation,
        size: int | None,
        device: torch.device | str,
        channels_last: bool = False,
        workers: int = 0,
    ) -> None:
        self.labels = torch.tensor(split.labels, device=device)
        self.num_views = augmentation.num_views
        self.channels_last = channels_last
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._reader = _Reader(split, augmentation, size)
        self._workers = workers
        self._streams = {name: _Requests() for name in ("epoch", "batch")}  # each with workers of its own
        self._loaders: dict[str, DataLoader] = {}
        weakref.finalize(self, _end_workers, self._loaders)  # also when the process ends
        self.shape = tuple(self._reader.batch([(0, _PLAIN)]).shape[1:]) if len(split) else (len(mean), 0, 0)
        if not len(mean) == len(std) == self.shape[0]:
            raise UserError(
                f"images of {self.shape[0]} channels need as many means and deviations, not {tuple(mean)} and "
                f"{tuple(std)}; choose another normalisation"
            )
        # Tensors on the device, as in DeviceImages.
        self._mean, self._std = (
            torch.tensor(list(values), dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for values in (mean, std)
        )
        self._scale = torch.full((1, 1, 1, 1), 255.0, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.labels.device

    def draw(self, plan: EpochPlan, start: int = 0) -> Iterator[Drawn]:
        """Yield an epoch's batches with their pixels, from batch ``start``; workers read ahead."""
        batches = [batch for number, batch in enumerate(plan) if number >= start]
        requests = [list(zip(indices.tolist(), views.tolist(), strict=True)) for indices, views in batches]
        # The plan goes over in one piece: a copy from ordinary memory makes the host wait for all that was launched.
        there = [batch for number, batch in enumerate(plan.to(self.device)) if number >= start]
        for (indices, views), pixels in zip(there, self._read("epoch", requests), strict=True):
            yield Drawn(indices, views, self._moved(pixels))

    def images(self, drawn: Drawn) -> Tensor:
        """Return a drawn batch's images, normalised: float32 (B, C, H, W)."""
        assert drawn.pixels is not None
        return self._normalised(drawn.pixels)

    def batch(self, indices: Tensor, views: Tensor) -> Tensor:
        """Return images as seen in the given views, normalised: float32 (B, C, H, W), for int64 (B,) each."""
        return self._together(list(zip(indices.tolist(), views.tolist(), strict=True)))

    def plain(self, indices: Tensor) -> Tensor:
        """Return images as they are, normalised: float32 (B, C, H, W), for int64 indices (B,)."""
        return self._together([(index, _PLAIN) for index in indices.tolist()])

    def _together(self, request: Request) -> Tensor:
        if len(request) <= _FEW:
            return self._normalised(self._moved(self._reader.batch(request)))
        shares = [request[start : start + _SHARE] for start in range(0, len(request), _SHARE)]
        return self._normalised(torch.cat([self._moved(part) for part in self._read("batch", shares)]))

    def _read(self, stream: str, requests: list[Request]) -> Iterator[Tensor]:
        self._streams[stream].now = requests
        if stream not in self._loaders:
            self._loaders[stream] = DataLoader(
                self._reader,
                sampler=self._streams[stream],
                batch_size=None,  # a request is a batch
                num_workers=self._workers,
                persistent_workers=self._workers > 0,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_leave_signals_to_the_parent,
                generator=torch.Generator(),  # otherwise every epoch would draw from the run's own
            )
        try:
            for answer in self._loaders[stream]:
                if isinstance(answer, UserError):
                    raise answer
                yield answer
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            reason = str(error).split(". ")[0]
            raise DataError(
                f"a process that reads images is gone ({reason}); use fewer with --workers"
            ) from None

    def _moved(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device, non_blocking=True)

    def _normalised(self, pixels: Tensor) -> Tensor:
        values = pixels.to(torch.float32, memory_format=self._format, copy=True)
        if not pixels.is_floating_point():
            values = values.div_(self._scale)
        return values.sub_(self._mean).div_(self._std)


class _Requests:
    """The requests of one pass; workers live on from pass to pass, so that they are exchanged, not made anew."""

    def __init__(self) -> None:
        self.now: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)


class _Reader(Dataset):
    """Reads whole batches: ``reader[[(index, view), ...]]`` is (B, C, H, W), or what went wrong."""

    def __init__(self, split: AnySplit, augmentation: Augmentation, size: int | None) -> None:
        self._split, self._augmentation, self._size = split, augmentation, size

    def __getitem__(self, request: Request) -> Tensor | UserError:
        try:
            return self.batch(request)
        except UserError as error:  # returned: what a worker raises would come with its traceback as text
            return error

    def batch(self, request: Request) -> Tensor:
        """Read a batch.

        Raises:
            DataError: an image cannot be decoded, or images differ in size or kind.
        """
        store = self._split.store if isinstance(self._split, LazySplit) else None
        if isinstance(store, ItemStore) and store.collate is not None:
            return self._collated(store, request)
        images = [self._one(index, view) for index, view in request]
        if len({(image.shape, image.dtype) for image in images}) > 1:
            shapes = sorted({f"{image.dtype} {tuple(image.shape)}" for image in images})
            raise DataError(f"images of one batch differ: {', '.join(shapes[:3])}; set image_size")
        return torch.stack(images)

    def _one(self, index: int, view: int) -> Tensor:
        pixels = self._split.read(index, max(view, 0))
        return fit(pixels, self._size) if view == _PLAIN else self._augmentation(pixels, index, view)

    def _collated(self, store: ItemStore, request: Request) -> Tensor:
        """Make a batch as the user's DataLoader does."""
        assert isinstance(self._split, LazySplit)
        assert store.collate is not None
        rows = [int(self._split.rows[index]) for index, _ in request]
        raw = [store.raw(row, max(view, 0)) for row, (_, view) in zip(rows, request, strict=True)]
        with seeded(max(request[0][1], 0), rows[0]):
            images, labels = image_and_label(store.collate(raw), store.title)
        wanted = self._split.labels[[index for index, _ in request]].tolist()
        if len(images) != len(request) or (labels is not None and torch.as_tensor(labels).tolist() != wanted):
            raise DataError(
                f"the collate_fn of {store.title} changes labels or the number of images; a method needs every image's "
                "own label: leave mixing out"
            )
        return torch.stack([as_pixels(image, store.title) for image in images])


def _end_workers(loaders: dict[str, DataLoader]) -> None:
    """End the workers of loaders that somebody, such as a traceback, may still hold.

    Python ends them with a signal when the process ends, which they put off, and then waits for them.
    """
    for loader in loaders.values():
        iterator = getattr(loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()


def _leave_signals_to_the_parent(worker: int) -> Any:
    """Go on reading when a run is asked to stop: the parent finishes its step, saves, and ends its workers.

    SIGTERM is also the parent's last means against a worker that does not end by itself, so it is put off, not ignored.
    """
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
