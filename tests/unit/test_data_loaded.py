"""Images that are read in every epoch: equal to those kept on the device, and the same with any number of workers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from itrd.data import DeviceImages, Split, load_dataset, plan_epoch
from itrd.data.datasets import ImageDataset
from itrd.data.loaded import LoadedImages
from itrd.data.opening import Reading, open_dataset, read_dataset
from itrd.data.views import UNLIMITED, AsGiven, Augmentation, Crop, Own, ResizedCrop, Strong, fit, policy_of
from itrd.engine.place import place_split, plain_view, training_view
from itrd.errors import DataError, UserError
from photos import pixels, write_photos

CPU = torch.device("cpu")


def split(count: int = 40, side: int = 12, channels: int = 3) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    return Split(images, rng.integers(0, 3, count))


def loaded(source: Any, augmentation: Augmentation, **settings: Any) -> LoadedImages:
    settings = {"size": None, "device": CPU, **settings}
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    return LoadedImages(source, mean, std, augmentation=augmentation, **settings)


def epoch(source: Any, number: int = 1, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    plan = plan_epoch(len(source), source.num_views, 16, seed=3, epoch=number)
    return [(drawn.indices, source.images(drawn)) for drawn in source.draw(plan, start)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_crops_are_those_of_the_device_bit_for_bit(workers: int, channels_last: bool) -> None:
    images = split()
    here = loaded(images, Crop(None, 2, True), workers=workers, channels_last=channels_last)
    there = DeviceImages(
        images,
        here._mean.flatten().tolist(),
        here._std.flatten().tolist(),
        padding=2,
        flip=True,
        device=CPU,
        channels_last=channels_last,
    )
    assert here.num_views == there.num_views == 50
    for (i, a), (j, b) in zip(epoch(here), epoch(there), strict=True):
        assert torch.equal(i, j)
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    every = torch.arange(50)
    assert torch.equal(here.batch(torch.full((50,), 7), every), there.batch(torch.full((50,), 7), every))
    assert torch.equal(here.plain(torch.arange(40)), there.plain(torch.arange(40)))


def folder(tmp_path: Path, **how: Any) -> ImageDataset:
    write_photos(tmp_path, train=10, side=20)
    return read_dataset(str(tmp_path), Reading(resident="no", **how))


STRONG = ("randaugment", "trivialaugment", "autoaugment")


@pytest.mark.parametrize("augment", ["crop", "resized_crop", *STRONG])
def test_workers_and_restarts_change_nothing(tmp_path: Path, augment: str) -> None:
    data = folder(tmp_path, augment=augment)
    batches = {}
    for workers in (0, 2):
        torch.manual_seed(workers)  # nothing may depend on the state of the process
        random.seed(workers)
        source = place_split(data, data.train, training_view(data), CPU, workers=workers, keep=False)
        batches[workers] = [*epoch(source), *epoch(source, 2)]
        middle = epoch(source, 2, start=1)
        assert torch.equal(middle[0][1], batches[workers][3][1])
    for (i, a), (j, b) in zip(batches[0], batches[2], strict=True):
        assert torch.equal(i, j)
        assert torch.equal(a, b)
    first, second = (torch.cat([a for _, a in batches[0][n : n + 2]]) for n in (0, 2))
    assert first.unique(dim=0).shape[0] > 10  # images differ
    assert not torch.equal(first.sort(0).values, second.sort(0).values)  # and so do epochs


def test_reading_leaves_the_processs_generators_alone(tmp_path: Path) -> None:
    data = folder(tmp_path, augment="randaugment")
    source = place_split(data, data.train, training_view(data), CPU, keep=False)
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    epoch(source)
    source.plain(torch.arange(20))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_folder_on_the_device_and_read_in_every_epoch(tmp_path: Path) -> None:
    data = folder(tmp_path, augment="crop")
    kept = read_dataset(str(tmp_path), Reading(augment="crop"))
    sources = [place_split(d, d.train, training_view(d), CPU) for d in (data, kept)]
    assert [source.resident for source in sources] == [False, True]
    for (i, a), (j, b) in zip(*map(epoch, sources), strict=True):
        assert torch.equal(i, j)
        assert torch.equal(a, b)
    tests = [place_split(d, d.test, plain_view(d), CPU) for d in (data, kept)]
    every = torch.arange(6)
    assert torch.equal(tests[0].plain(every), tests[1].plain(every))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (224, 224), (9, 100)])
@pytest.mark.parametrize("size", [32, 96])
def test_geometry_is_torchvisions(shape: tuple[int, int], size: int) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2.functional")
    image = torch.from_numpy(pixels(1, *shape)).permute(2, 0, 1).contiguous()
    shorter = 32 if size == 32 else 110  # 8/7 of 96
    whole = v2.center_crop(v2.resize(image, [shorter], antialias=True), [size, size])
    # On some processors torchvision resizes in floating point, where half a level is rounded otherwise.
    assert (fit(image, size).int() - whole.int()).abs().max() <= 1
    seen = set()
    for view in range(20):
        made = ResizedCrop(size, flip=True)(image, 5, view)
        assert made.shape == (3, size, size)
        assert made.dtype == torch.uint8
        seen.add(made.numpy().tobytes())
    assert len(seen) > 2  # of a very long image most views are its middle


def test_a_random_part_is_of_the_promised_size_and_shape() -> None:
    from itrd.data.views import _random_box

    boxes = []
    for seed in range(500):
        top, left, height, width = _random_box(100, 120, torch.Generator().manual_seed(seed))
        assert 0 <= top <= 100 - height
        assert 0 <= left <= 120 - width
        boxes.append((height * width / 12000, width / height))
    areas, ratios = np.array(boxes).T
    assert 0.07 < areas.min() < 0.15
    assert areas.max() > 0.8
    assert 0.7 < ratios.min() < ratios.max() < 1.4


@pytest.mark.parametrize("name", STRONG)
def test_strong_augmentation_is_the_policy_on_the_crop(name: str) -> None:
    image = torch.from_numpy(pixels(2, 12, 12)).permute(2, 0, 1)
    made = [Strong(Crop(12, 1, True), policy_of(name))(image, 0, view) for view in range(30)]
    assert {tuple(a.shape) for a in made} == {(3, 12, 12)}
    assert len({a.numpy().tobytes() for a in made}) > 15


def test_a_function_of_the_users() -> None:
    def invert_sometimes(image: Tensor) -> Tensor:
        return 255 - image if torch.rand(()) < 0.5 else image

    image = torch.from_numpy(pixels(2, 12, 12)).permute(2, 0, 1)
    own = Own(12, invert_sometimes)
    made = [own(image, 0, view) for view in range(20)]
    assert [torch.equal(a, own(image, 0, view)) for view, a in enumerate(made)] == [True] * 20
    assert {torch.equal(a, image) for a in made} == {True, False}
    with pytest.raises(DataError, match="must return a tensor"):
        Own(12, lambda image: "no image")(image, 0, 0)


def test_corrupt_image_met_while_reading(tmp_path: Path) -> None:
    data = folder(tmp_path, strict=True)
    (tmp_path / "train" / "dog" / "009.png").write_bytes(b"\x89PNG")
    for workers in (0, 2):
        source = place_split(data, data.train, training_view(data), CPU, workers=workers)
        with pytest.raises(DataError, match=r"cannot decode .*009.png: .*; replace or remove it") as error:
            epoch(source)
        assert "\n" not in str(error.value)


def test_a_named_dataset_read_otherwise() -> None:
    digits = load_dataset("digits").subset(train=20, test=10)
    strong = read_dataset(digits, Reading(augment="randaugment"))
    assert isinstance(strong.augmentation, Strong)
    assert strong.augmentation.geometry == Crop(32, 4, False)
    larger = read_dataset(digits, Reading(image_size=48, flip=True))
    assert (larger.padding, larger.flip, larger.train.images.shape) == (6, True, (20, 3, 48, 48))
    later = read_dataset(digits, Reading(image_size=48, flip=True, resident="no"))
    assert later.fingerprint == larger.fingerprint != digits.fingerprint
    assert read_dataset(digits) is digits
    with pytest.raises(UserError, match="resident=yes keeps every image in one size"):
        read_dataset(digits, Reading(augment="randaugment", resident="yes"))


@pytest.mark.parametrize("setting", [{"val_fraction": 0.5}, {"test_split": "val"}, {"label_column": "label"}])
def test_settings_without_effect_are_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    name = next(iter(setting))
    with pytest.raises(UserError, match=f"{name} has no effect on digits"):
        read_dataset("digits", Reading(**setting))
    if name == "label_column":
        write_photos(tmp_path / "photos")
        with pytest.raises(UserError, match="no table; leave"):
            read_dataset(str(tmp_path / "photos"), Reading(**setting))


def test_a_split_that_is_not_there() -> None:
    a, b = Pictures(), Pictures(6)
    with pytest.raises(DataError, match="nothing is called vall; the mapping has 'train', 'val'"):
        read_dataset({"train": a, "val": b}, Reading(test_split="vall"))
    for given in ((a, b), a):
        with pytest.raises(DataError, match=r"test_split names a split, and this .* has none"):
            read_dataset(given, Reading(test_split="val"))


# --- datasets given in Python ----------------------------------------------------------------------------


class Pictures(Dataset):
    """Map-style: Pillow images, optionally changed by a transform."""

    def __init__(self, count: int = 20, transform: Any = None, labelled: bool = True) -> None:
        self.count, self.transform, self.labelled = count, transform, labelled

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        if row >= self.count:
            raise IndexError
        image = Image.fromarray(pixels(row))
        changed = image if self.transform is None else self.transform(image)
        return (changed, row % 2) if self.labelled else changed


def to_float(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def noisy(image: Any) -> Tensor:
    return to_float(image) + torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002


def test_a_plain_dataset_is_decoded_once() -> None:
    data = read_dataset((Pictures(), Pictures(6)))
    assert isinstance(data.train, Split)
    assert (data.name, data.image_size, data.padding) == ("Pictures", 12, 1)
    np.testing.assert_array_equal(data.train.images[3].transpose(1, 2, 0), pixels(3))
    assert data.train.labels.tolist() == [0, 1] * 10


def test_floats_come_as_they_are() -> None:
    data = read_dataset((Pictures(transform=to_float), Pictures(6, transform=to_float)))
    assert isinstance(data.augmentation, AsGiven)
    source = place_split(data, data.train, training_view(data), CPU)
    assert torch.equal(source.plain(torch.tensor([4]))[0], to_float(Image.fromarray(pixels(4))))
    normalised = place_split(data.normalised("imagenet"), data.train, training_view(data), CPU)
    expected = (to_float(Image.fromarray(pixels(4)))[0] - 0.485) / 0.229
    assert torch.allclose(normalised.plain(torch.tensor([4]))[0, 0], expected)
    with pytest.raises(UserError, match="an augmentation needs plain uint8 images"):
        read_dataset(Pictures(transform=to_float), Reading(augment="randaugment"))
    with pytest.raises(DataError, match="give both of one kind"):
        read_dataset((Pictures(transform=to_float), Pictures()))


def test_random_transforms_are_functions_of_the_view() -> None:
    data = read_dataset((Pictures(transform=noisy), Pictures(6, transform=to_float)))
    sources = [place_split(data, data.train, training_view(data), CPU, workers=w) for w in (0, 2)]
    assert sources[0].num_views == UNLIMITED
    one, other = epoch(sources[0]), epoch(sources[1])
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one[0][1], epoch(sources[0], 2)[0][1])


def test_a_loaders_own_collate_function() -> None:
    def brighter(items: list[Any]) -> Any:
        images, labels = default_collate([(to_float(image), label) for image, label in items])
        return images + 1, labels

    loader = DataLoader(Pictures(), batch_size=4, shuffle=True, collate_fn=brighter)
    data = read_dataset((loader, DataLoader(Pictures(6, transform=to_float))))
    source = place_split(data, data.train, training_view(data), CPU)
    assert torch.equal(source.plain(torch.tensor([4]))[0], to_float(Image.fromarray(pixels(4))) + 1)

    def mixed(items: list[Any]) -> Any:
        images, labels = brighter(items)
        return images, labels.flip(0)

    data = read_dataset(DataLoader(Pictures(), collate_fn=mixed), Reading(val_fraction=0.2))
    with pytest.raises(DataError, match=r"collate_fn of .* changes labels"):
        epoch(place_split(data, data.train, training_view(data), CPU))


def test_sampler_of_a_loader_is_refused() -> None:
    loader = DataLoader(Pictures(), sampler=WeightedRandomSampler([1.0] * 20, 20))
    with pytest.raises(DataError, match="draws with WeightedRandomSampler"):
        read_dataset(loader)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(Pictures())


def test_an_iterable_is_read_into_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = read_dataset((Stream(), Pictures(6)))
    assert isinstance(data.train, Split)
    np.testing.assert_array_equal(data.train.images[5].transpose(1, 2, 0), pixels(5))
    monkeypatch.setattr("itrd.data.resident.RESIDENT_LIMIT", 1000)
    with pytest.raises(DataError, match="can only be iterated, and more than 1,000 bytes"):
        read_dataset((Stream(), Pictures(6)))


def test_other_kinds_of_datasets() -> None:
    images = torch.from_numpy(np.stack([pixels(i) for i in range(12)])).permute(0, 3, 1, 2)
    tensors = TensorDataset(images, torch.arange(12) % 3)
    data = read_dataset(tensors, Reading(val_fraction=0.25))
    assert (data.num_classes, len(data.train), len(data.test)) == (3, 9, 3)
    part = read_dataset((Subset(tensors, list(range(6))), Subset(tensors, [9, 10, 11])))
    np.testing.assert_array_equal(part.train.images, images[:6].numpy())
    assert part.test.labels.tolist() == [0, 1, 2]
    both = read_dataset({"train": tensors, "val": Subset(tensors, [0, 1])})
    assert len(both.test) == 2
    bare = read_dataset(Pictures(labelled=False))
    assert (bare.labelled, bare.num_classes, len(bare.test)) == (False, 0, 0)


def test_a_data_module() -> None:
    class Module:
        """What a LightningDataModule offers."""

        done = ""

        def prepare_data(self) -> None:
            self.done += "prepared "

        def setup(self, stage: str) -> None:
            self.done += stage

        def train_dataloader(self) -> DataLoader:
            return DataLoader(Pictures(), shuffle=True)

        def val_dataloader(self) -> DataLoader:
            return DataLoader(Pictures(6))

    module = Module()
    data = read_dataset(module)
    assert (len(data.train), len(data.test), module.done) == (20, 6, "prepared fit")


class Loaders:
    """What a LightningDataModule offers; its loaders for validation are given."""

    def __init__(self, validation: object) -> None:
        self.validation = validation

    def prepare_data(self) -> None: ...

    def setup(self, stage: str) -> None: ...

    def train_dataloader(self) -> list[DataLoader]:
        return [DataLoader(Pictures(), shuffle=True)]

    def val_dataloader(self) -> object:
        if isinstance(self.validation, Exception):
            raise self.validation
        return self.validation


def test_a_data_module_whose_loaders_are_a_list_or_missing() -> None:
    class MisconfigurationException(Exception):
        """Of the name that Lightning's error has."""

    loader = DataLoader(Pictures(6))
    one = read_dataset(Loaders([loader]))
    assert (len(one.train), len(one.test)) == (20, 6)
    for nothing in (MisconfigurationException("`val_dataloader` must be implemented"), [], None):
        data = read_dataset(Loaders(nothing))
        assert (len(data.train), len(data.test)) == (16, 4)  # held out
    with pytest.raises(DataError, match=r"val_dataloader\(\) of the LightningDataModule gives 2 loaders"):
        read_dataset(Loaders([loader, loader]))
    with pytest.raises(RuntimeError, match="broken"):
        read_dataset(Loaders(RuntimeError("broken")))


def test_a_data_module_of_lightning_without_validation() -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(Pictures(), shuffle=True)

    assert len(read_dataset(Module()).test) == 4


def test_torchvisions_datasets(tmp_path: Path) -> None:
    tv = pytest.importorskip("torchvision.datasets")
    write_photos(tmp_path)
    pair = tuple(tv.ImageFolder(str(tmp_path / half)) for half in ("train", "val"))
    given, read = read_dataset(pair), read_dataset(str(tmp_path))
    assert given.class_names == read.class_names == ("cat", "dog")
    np.testing.assert_array_equal(given.train.images, read.train.images)
    assert given.train.labels.tolist() == read.train.labels.tolist()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "is empty"),
        ([("text", 0), ("text", 1)], "is a str, no image"),
        ([(pixels(0), 0, 1)], "has 3 parts"),
        ([{"picture": 1}], "has no image, img"),
        ([(pixels(0), torch.tensor([1.0, 0.0])), (pixels(1), torch.tensor([0.0, 1.0]))], "whole numbers"),
        ([(pixels(0).astype(np.int32), 0), (pixels(1).astype(np.int32), 1)], "must be uint8 or floating"),
        (7, "is no dataset; give a folder"),
        ((1, 2, 3), "must be a pair"),
        ((torch.zeros(4, 3, 8, 8), torch.arange(4)), r"a Tensor of shape \(4,\); .*TensorDataset\(X, y\)"),
        ({"tests": []}, "needs 'train', or 'test' to test alone; it has 'tests'"),
        ({"test": []}, "is empty"),
    ],
)
def test_what_is_no_dataset(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(source)


def test_images_of_different_sizes() -> None:
    class Ragged(Pictures):
        def __getitem__(self, row: int) -> Any:
            return to_float(pixels(row, 10 + row % 2, 10)), row % 2

    source = open_dataset((Ragged(), Ragged()), Reading())
    with pytest.raises(DataError, match=r"images of one batch differ: .*; set image_size"):
        epoch(place_split(source, source.train, training_view(source), CPU))
    source = open_dataset((Ragged(), Ragged()), Reading(image_size=12))
    assert epoch(place_split(source, source.train, training_view(source), CPU))[0][1].shape[1:] == (3, 12, 12)
