"""Images on a device: every view is bit for bit what it is by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itrd.data import DeviceImages, Split, plan_epoch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def make_split(n: int = 7, channels: int = 3, height: int = 32, width: int = 32) -> Split:
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, channels, height, width), dtype=np.uint8)
    images[0].flat[:256] = np.arange(256)  # every value of a pixel
    return Split(images, rng.integers(0, 10, n))


def by_hand(
    image: np.ndarray, dy: int, dx: int, mirrored: bool, padding: int, mean: tuple, std: tuple
) -> np.ndarray:
    """One view of one image (C, H, W): pad, crop, flip, scale, normalise, in this order."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), dtype=np.uint8)
    padded[:, padding : padding + height, padding : padding + width] = image
    crop = padded[:, dy : dy + height, dx : dx + width]
    if mirrored:
        crop = crop[:, :, ::-1]
    scaled = crop.astype(np.float32) / np.float32(255)
    normalised = np.empty_like(scaled)
    for channel in range(channels):
        normalised[channel] = (scaled[channel] - np.float32(mean[channel])) / np.float32(std[channel])
    return normalised


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "padding", "flip"),
    [
        ((3, 32, 32), 4, True),
        ((3, 32, 32), 4, False),
        ((3, 32, 32), 0, True),
        ((3, 32, 32), 0, False),
        ((1, 16, 24), 2, True),
        ((3, 17, 9), 3, True),
        ((2, 5, 4), 6, True),  # more padding than image
    ],
)
def test_every_view_is_bit_equal(
    shape: tuple[int, int, int], padding: int, flip: bool, channels_last: bool, device: str
) -> None:
    split = make_split(7, *shape)
    mean, std = (MEAN * 2)[: shape[0]], (STD * 2)[: shape[0]]
    images = DeviceImages(
        split, mean, std, padding=padding, flip=flip, device=device, channels_last=channels_last
    )
    side = 2 * padding + 1
    assert images.num_views == side * side * (2 if flip else 1)
    order = [(dy, dx, f) for dy in range(side) for dx in range(side) for f in range(2 if flip else 1)]
    for index in range(0, 7, 3):
        views = torch.arange(images.num_views, device=device)
        batch = images.batch(torch.full_like(views, index), views)
        expected = [by_hand(split.images[index], dy, dx, bool(f), padding, mean, std) for dy, dx, f in order]
        assert batch.dtype == torch.float32
        assert batch.shape == (images.num_views, *shape)
        assert batch.is_contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        found = batch.cpu().contiguous().numpy()
        np.testing.assert_array_equal(found.view(np.int32), np.stack(expected).view(np.int32))


def test_mixed_batch_and_plain(device: str) -> None:
    split = make_split(50)
    images = DeviceImages(split, MEAN, STD, padding=4, flip=True, device=device)
    plan = plan_epoch(50, images.num_views, 20, seed=0, epoch=0).to(device)
    for indices, views in plan:
        batch = images.batch(indices, views).cpu().numpy()
        for row, index, view in zip(batch, indices.tolist(), views.tolist(), strict=True):
            dy, dx, mirrored = view // 18, view // 2 % 9, view % 2
            expected = by_hand(split.images[index], dy, dx, bool(mirrored), 4, MEAN, STD)
            np.testing.assert_array_equal(row, expected)

        plain = images.plain(indices)
        center = torch.full_like(indices, 80)
        assert torch.equal(plain, images.batch(indices, center))
        unaugmented = [by_hand(split.images[i], 4, 4, False, 4, MEAN, STD) for i in indices.tolist()]
        np.testing.assert_array_equal(plain.cpu().numpy(), np.stack(unaugmented))
    assert len(images) == 50
    assert images.shape == (3, 32, 32)
    assert images.device.type == device


def test_batches_are_not_views_of_the_images() -> None:
    images = DeviceImages(make_split(), MEAN, STD, padding=4, flip=True, device="cpu")
    indices = torch.arange(7)
    first = images.plain(indices)
    before = first.clone()
    first.zero_()
    assert torch.equal(images.plain(indices), before)


def test_keeps_its_own_copy() -> None:
    split = make_split()
    split.images.setflags(write=False)  # read-only arrays are taken without a warning
    images = DeviceImages(split, MEAN, STD, padding=4, flip=True, device="cpu")
    before = images.plain(torch.arange(7))
    split.images.setflags(write=True)
    split.images[:] = 0
    assert torch.equal(images.plain(torch.arange(7)), before)


def test_refuses_wrong_settings() -> None:
    with pytest.raises(ValueError, match="padding"):
        DeviceImages(make_split(), MEAN, STD, padding=-1, flip=True, device="cpu")
    with pytest.raises(ValueError, match="3 channels"):
        DeviceImages(make_split(), (0.5,), STD, padding=4, flip=True, device="cpu")


@pytest.mark.gpu
def test_batches_can_be_recorded_in_a_cuda_graph() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = DeviceImages(make_split(64), MEAN, STD, padding=4, flip=True, device="cuda")
    indices, views = (torch.zeros(32, dtype=torch.int64, device="cuda") for _ in range(2))
    images.batch(indices, views)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = images.batch(indices, views)
    for epoch in range(3):
        plan = plan_epoch(64, images.num_views, 32, seed=0, epoch=epoch).to("cuda")
        for new_indices, new_views in plan:
            indices.copy_(new_indices)
            views.copy_(new_views)
            graph.replay()
            assert torch.equal(recorded, images.batch(new_indices, new_views))
