"""Reading datasets from folders: layouts, damage, trust on first use, subsets, digits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_helpers import contents, python2_pickle, write_folder
from itrd.data import ImageDataset, Split, describe_dataset, list_datasets, load_dataset
from itrd.data.cifar import LAYOUTS
from itrd.data.trust import RECORD
from itrd.engine.config import TrainConfig
from itrd.engine.inputs import get_data
from itrd.engine.record import label_of
from itrd.errors import DataError, UnknownNameError

CIFAR = ("cifar100", "cifar10")


def refused(name: str, root: Path, *parts: str) -> str:
    """Load, and return the error's one line, which must hold the parts."""
    with pytest.raises(DataError) as caught:
        load_dataset(name, root)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


def test_importing_is_cheap() -> None:
    code = (
        "import sys, itrd.data as d; d.list_datasets(); d.describe_dataset('digits'); "
        "print([m for m in ('torch', 'numpy', 'sklearn', 'pooch', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    import itrd.data

    for name in itrd.data.__all__:
        assert getattr(itrd.data, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = itrd.data.no_such_thing


def test_table() -> None:
    assert list_datasets() == ["cifar100", "cifar10", "digits"]
    for name in list_datasets():
        info = describe_dataset(name)
        assert info.name == name
        assert info.image_shape == (3, 32, 32)
        assert info.citation
    assert "--download cifar100" in describe_dataset("cifar100").source
    with pytest.raises(UnknownNameError, match="did you mean 'cifar100'"):
        describe_dataset("cifar1000")
    with pytest.raises(UnknownNameError):
        load_dataset("imagenet")


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("inside", [False, True])
def test_reads_the_official_layout(name: str, inside: bool, tmp_path: Path) -> None:
    folder = write_folder(name, tmp_path)
    dataset = load_dataset(name, folder if inside else tmp_path)
    files = contents(name)
    layout = LAYOUTS[name]
    images = np.concatenate([files[file][b"data"] for file in layout.train]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([files[file][layout.labels_key] for file in layout.train])
    np.testing.assert_array_equal(dataset.train.images, images)
    np.testing.assert_array_equal(dataset.train.labels, labels)
    np.testing.assert_array_equal(dataset.test.labels, files[layout.test][layout.labels_key])
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == np.uint8
        assert split.images.flags.c_contiguous
        assert split.images.flags.writeable
        assert split.labels.dtype == np.int64
    assert dataset.num_classes == len(dataset.class_names) == layout.classes
    assert dataset.class_names[3] == "class_3"
    assert (dataset.name, dataset.padding, dataset.flip) == (name, 4, True)


def test_missing_data_names_the_command(tmp_path: Path) -> None:
    refused("cifar100", tmp_path, "cifar-100-python", "`itrd datasets --download cifar100`")
    refused("cifar10", tmp_path / "nowhere", "`itrd datasets --download cifar10`")
    folder = write_folder("cifar10", tmp_path)
    (folder / "data_batch_3").unlink()
    refused("cifar10", tmp_path, "data_batch_3 is missing", "--download cifar10")


def test_odd_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder("cifar100", tmp_path)
    (folder / "train").unlink()
    os.mkfifo(folder / "train")  # reading it would wait for ever
    refused("cifar100", tmp_path, "train is missing")
    (folder / "train").unlink()
    (folder / "train").write_bytes(b"not a pickle")
    refused("cifar100", tmp_path, "cannot read", "--download cifar100")
    monkeypatch.setattr("itrd.data.cifar.MAX_FILE", 100)
    refused("cifar100", tmp_path, "larger than any")


def damage(name: str, file: str, key: bytes, value: object) -> dict:
    files = contents(name)
    files[file][key] = value
    return files[file]


DAMAGES = {
    "too few labels": ("cifar100", "train", b"fine_labels", [1, 2], "200 images but 2 labels"),
    "no labels": ("cifar100", "train", b"fine_labels", None, "no list of whole numbers"),
    "labels that are words": ("cifar10", "data_batch_2", b"labels", [b"x"] * 40, "no list of whole numbers"),
    "labels that are flags": ("cifar10", "data_batch_2", b"labels", [True] * 40, "no list of whole numbers"),
    "label too large": ("cifar10", "test_batch", b"labels", [10] * 100, "outside 0..9"),
    "label too small": ("cifar10", "test_batch", b"labels", [-1] * 100, "outside 0..9"),
    "narrow images": ("cifar100", "test", b"data", np.zeros((100, 3071), np.uint8), "3072 columns"),
    "flat images": ("cifar100", "test", b"data", np.zeros(3072, np.uint8), "3072 columns"),
    "no images": ("cifar100", "test", b"data", b"x" * 3072, "3072 columns"),
    "no names": ("cifar100", "meta", b"fine_label_names", None, "no list of names"),
    "numbers for names": ("cifar10", "batches.meta", b"label_names", [1] * 10, "no list of names"),
    "too few names": ("cifar10", "batches.meta", b"label_names", [b"a"] * 9, "9 class names"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_wrong_content_is_refused(kind: str, tmp_path: Path) -> None:
    name, file, key, value, message = DAMAGES[kind]
    folder = write_folder(name, tmp_path)
    (folder / file).write_bytes(python2_pickle(damage(name, file, key, value)))
    refused(name, tmp_path, file, message, f"--download {name}")
    assert not (folder / RECORD).exists()  # what was refused is not trusted


def test_altered_files_are_refused_until_accepted(tmp_path: Path) -> None:
    folder = write_folder("cifar100", tmp_path)
    first = load_dataset("cifar100", tmp_path)
    record = json.loads((folder / RECORD).read_text())
    assert record.keys() == {"train", "test", "meta"}
    assert {path.name for path in folder.iterdir()} == {"train", "test", "meta", RECORD}
    assert load_dataset("cifar100", tmp_path).fingerprint == first.fingerprint

    raw = bytearray((folder / "test").read_bytes())
    raw[raw.index(b"T") + 500] ^= 1  # one bit of one pixel: still a good pickle
    (folder / "test").write_bytes(raw)
    refused("cifar100", tmp_path, "altered since", "--download cifar100", f"delete {folder / RECORD}")
    (folder / RECORD).unlink()
    assert load_dataset("cifar100", tmp_path).fingerprint != first.fingerprint


@pytest.mark.parametrize("text", ["", "[]", '{"train": 1}', "[" * 50_000, "\0", " " * 70_000])
def test_a_damaged_record_is_refused(text: str, tmp_path: Path) -> None:
    folder = write_folder("cifar100", tmp_path)
    (folder / RECORD).write_text(text)
    refused("cifar100", tmp_path, "delete that file")


def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder("cifar100", tmp_path)

    def no_space(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr("itrd.data.trust.write", no_space)
    load_dataset("cifar100", tmp_path)
    assert not (folder / RECORD).exists()
    monkeypatch.undo()
    monkeypatch.setattr("os.replace", no_space)
    load_dataset("cifar100", tmp_path)
    assert {path.name for path in folder.iterdir()} == {"train", "test", "meta"}


def tiny(labels: list[int], classes: int = 3) -> ImageDataset:
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(4, axis=2)
    split = Split(np.ascontiguousarray(images), np.array(labels, dtype=np.int64))
    names = tuple(str(i) for i in range(classes))
    return ImageDataset("tiny", classes, names, split, split, (0.5,), (0.5,), 1, False)


def test_subset_is_balanced_deterministic_and_named() -> None:
    dataset = tiny([0, 1, 2] * 20)
    part = dataset.subset(train=10)
    assert part.name == "tiny[train=10]"
    assert len(part.train) == 10
    assert part.test is dataset.test
    assert sorted(np.bincount(part.train.labels)) == [3, 3, 4]
    assert (np.diff(part.train.images[:, 0, 0, 0].astype(int)) > 0).all()  # in their own order
    assert part.fingerprint == dataset.subset(train=10).fingerprint
    assert part.fingerprint != dataset.subset(train=10, seed=1).fingerprint
    assert dataset.subset(train=10, test=6, seed=4).name == "tiny[train=10,test=6,seed=4]"
    assert dataset.subset() is dataset
    small, large = (set(dataset.subset(train=n).train.images[:, 0, 0, 0].tolist()) for n in (7, 31))
    assert small < large


def test_subset_choice_never_changes() -> None:
    """Published numbers name subsets: the choice is part of the interface."""
    chosen = tiny([0, 1, 2] * 20).subset(train=9).train.images[:, 0, 0, 0].tolist()
    assert chosen == [2, 3, 11, 13, 20, 21, 46, 48, 55]


def test_subset_takes_what_classes_have() -> None:
    part = tiny([0] * 2 + [1] * 30 + [2] * 30).subset(train=20)
    assert np.bincount(part.train.labels).tolist() == [2, 9, 9]
    everything = tiny([2, 0, 1]).subset(train=3)
    assert everything.train.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("size", [0, -1, 61])
def test_subset_of_impossible_size(size: int) -> None:
    with pytest.raises(DataError, match="between 1 and 60"):
        tiny([0, 1, 2] * 20).subset(train=size)


def test_fingerprint_sees_pixels_labels_and_shapes() -> None:
    one, two, three = tiny([0, 1, 2]), tiny([0, 1, 1]), tiny([0, 1, 2])
    three.test.images[0] += 1
    square = Split(one.train.images.reshape(3, 1, 2, 2), one.train.labels)
    four = ImageDataset("tiny", 3, one.class_names, square, square, (0.5,), (0.5,), 1, False)
    assert len({each.fingerprint for each in (one, two, three, four)}) == 4
    assert one.fingerprint == tiny([0, 1, 2]).fingerprint


def test_split_refuses_wrong_arrays() -> None:
    images, labels = np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int64)
    for wrong in (images.astype(float), images[0], images[:, :, ::2]):
        with pytest.raises(DataError, match="contiguous uint8"):
            Split(wrong, labels)
    for wrong in (labels[:1], labels.astype(np.int32)):
        with pytest.raises(DataError, match="labels must be int64"):
            Split(images, wrong)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -5], r"tiny \(training\) has the label -5; .* -1 for none"),
        (
            [0, -1, 2],
            r"1 of 3 images of tiny \(training\) have the label -1 \(none\); give each one, or none",
        ),
    ],
)
def test_labels_are_all_there_or_none(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny(labels)
    with pytest.raises(DataError, match=message.replace("training", "test")):
        replace(tiny([0, 1, 2]), test=Split(tiny([0] * 3).test.images, np.array(labels)))


def test_test_images_without_labels_are_left_out() -> None:
    none = tiny([-1, -1, -1])
    assert (len(none.train), none.labelled, len(none.test)) == (3, False, 0)
    assert len(replace(none, train=tiny([0, 1, 2]).train).subset(train=2).test) == 0


def test_digits(tmp_path: Path) -> None:
    dataset = load_dataset("digits", tmp_path, download=True)
    info = describe_dataset("digits")
    assert (len(dataset.train), len(dataset.test)) == (info.train_size, info.test_size) == (1000, 797)
    assert np.bincount(dataset.train.labels).tolist() == [100] * 10
    assert dataset.train.images.shape[1:] == info.image_shape
    assert dataset.train.images.max() == 255
    assert not dataset.flip
    blocks = dataset.train.images.reshape(1000, 3, 8, 4, 8, 4)
    assert (blocks == blocks[:, :1, :, :1, :, :1]).all()
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(pixels.mean(axis=(0, 2, 3)), dataset.mean, atol=1e-4)
    np.testing.assert_allclose(pixels.std(axis=(0, 2, 3)), dataset.std, atol=1e-4)
    assert dataset.fingerprint == load_dataset("digits").fingerprint
    assert not list(tmp_path.iterdir())


def real(name: str) -> ImageDataset:
    """The true dataset, from the folder that ITRD_DATA names."""
    root = os.environ.get("ITRD_DATA")
    if not root:
        pytest.skip("ITRD_DATA is not set: it names a folder that holds cifar-100-python")
    if not (Path(root) / LAYOUTS[name].folder).is_dir():
        pytest.skip(f"no {LAYOUTS[name].folder} in ITRD_DATA")
    return load_dataset(name, root)


def test_real_cifar100() -> None:
    dataset = real("cifar100")
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    assert set(np.bincount(dataset.train.labels)) == {500}
    assert set(np.bincount(dataset.test.labels)) == {100}
    assert dataset.class_names[:2] == ("apple", "aquarium_fish")
    assert len(set(dataset.class_names)) == 100
    mean = [dataset.train.images[:, c].mean() / 255 for c in range(3)]
    std = [dataset.train.images[:, c].std() / 255 for c in range(3)]
    np.testing.assert_allclose(mean, (0.50708, 0.48655, 0.44092), atol=6e-6)
    np.testing.assert_allclose(std, (0.26733, 0.25644, 0.27615), atol=6e-6)
    published = TrainConfig(model="resnet8").resolved()
    assert label_of(published, get_data(published, dataset)) == "protocol"
    assert label_of(published, get_data(published, dataset).normalised("imagenet")) == "custom"
    part = dataset.subset(train=2000, test=500)
    assert label_of(published, part) == "custom"
    assert set(np.bincount(part.train.labels)) == {20}
    assert set(np.bincount(part.test.labels)) == {5}


def test_real_cifar10() -> None:
    dataset = real("cifar10")
    assert 49_000 <= len(dataset.train) <= 50_000
    assert 9_900 <= len(dataset.test) <= 10_000
    assert dataset.class_names[0] == "airplane"
    mean = [dataset.train.images[:, c].mean() / 255 for c in range(3)]
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=1e-3)
