"""Folders, Parquet and Hugging Face datasets: what is read, and how bad input is refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from itrd.cli import main
from itrd.data.datasets import IMAGENET_MEAN, ImageDataset, Split
from itrd.data.decode import CorruptImageError, check, decode, size_of
from itrd.data.lazy import LazySplit
from itrd.data.opening import Reading, open_dataset, read_dataset
from itrd.engine.config import TrainConfig
from itrd.engine.inputs import get_data
from itrd.errors import DataError, UserError
from photos import pixels, write_classes, write_photos


def read(source: Any, **how: Any) -> ImageDataset:
    return read_dataset(source, Reading(**how))


# --- decoding --------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_modes_become_rgb() -> None:
    rgb = pixels(0, 5, 7)
    grey = rgb[..., 0]
    for image, expected in (
        (Image.fromarray(rgb), rgb),
        (Image.fromarray(grey), np.repeat(grey[..., None], 3, axis=2)),
        (Image.fromarray(np.dstack([rgb, grey])), rgb),  # transparency is dropped
        (Image.fromarray((grey.astype(np.uint16) << 8) + 7), np.repeat(grey[..., None], 3, axis=2)),
        (Image.fromarray(grey > 128), np.repeat((grey > 128)[..., None], 3, axis=2) * np.uint8(255)),
    ):
        found = decode(encoded(image), "x")
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected, err_msg=image.mode)
    palette = Image.fromarray(rgb).convert("P")
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode(encoded(palette), "x").permute(1, 2, 0).numpy(), expected)
    cmyk = encoded(Image.fromarray(rgb).convert("CMYK"), "TIFF")
    assert decode(cmyk, "x").shape == (3, 5, 7)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(orientation: int) -> None:
    image = Image.fromarray(pixels(1, 4, 6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(image, exif=exif)
    by_hand = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: np.rot90(a),
    }[orientation](pixels(1, 4, 6))
    np.testing.assert_array_equal(decode(raw, "x").permute(1, 2, 0).numpy(), by_hand)
    assert size_of(raw, "x") == by_hand.shape[:2]


def bomb() -> bytes:
    """A PNG whose header claims 100,000 x 100,000 pixels."""
    raw = bytearray(encoded(Image.fromarray(pixels(0))))
    raw[16:24] = struct.pack(">II", 100_000, 100_000)
    return bytes(raw)


WHOLE = encoded(Image.fromarray(pixels(0, 64, 64)), "JPEG")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


@pytest.mark.parametrize(
    "raw", [b"", b"nonsense", WHOLE[: len(WHOLE) // 2], WHOLE[:20], bomb(), EPS], ids=range(6)
)
def test_what_cannot_be_decoded_is_one_line(raw: bytes) -> None:
    for function in (decode, check):
        with pytest.raises(
            CorruptImageError, match=r"cannot decode picture: .*; replace or remove it"
        ) as error:
            function(raw, "picture")
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


# --- folders ---------------------------------------------------------------------------------------------


def test_train_and_val(tmp_path: Path) -> None:
    data = read(str(write_photos(tmp_path)))
    assert (data.num_classes, data.class_names) == (2, ("cat", "dog"))
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6
    assert data.test.labels.tolist() == [0] * 3 + [1] * 3
    assert (data.image_size, data.padding, data.flip, data.augmentation) == (12, 1, True, None)
    assert data.mean == IMAGENET_MEAN
    assert isinstance(data.train, Split)
    np.testing.assert_array_equal(data.train.images[7].transpose(1, 2, 0), pixels(1001))
    assert data.facts["kind"] == "image folder"


def test_one_folder_is_split_by_class(tmp_path: Path) -> None:
    write_classes(tmp_path, each=10)
    data = read(str(tmp_path), val_fraction=0.3)
    assert [np.bincount(split.labels).tolist() for split in (data.train, data.test)] == [[7, 7], [3, 3]]
    assert data.facts["val_fraction"] == 0.3
    everything = np.concatenate([split.images for split in (data.train, data.test)]).reshape(20, -1)
    assert len(np.unique(everything, axis=0)) == 20  # nothing twice, nothing lost
    again = read(str(tmp_path), val_fraction=0.3)
    assert again.fingerprint == data.fingerprint
    assert read(str(tmp_path), val_fraction=0.2).fingerprint != data.fingerprint


def test_which_folder_is_the_test(tmp_path: Path) -> None:
    write_photos(tmp_path)
    write_classes(tmp_path / "test", each=4)
    assert len(read(str(tmp_path)).test) == 6
    assert len(read(str(tmp_path), test_split="test").test) == 8
    with pytest.raises(DataError, match=r"has no folder exam; it has train, val, test"):
        read(str(tmp_path), test_split="exam")


@pytest.mark.parametrize(("train", "test"), [("Train", "Val"), ("training", "testing"), ("TRAIN", "Eval")])
def test_other_names_of_the_halves(tmp_path: Path, train: str, test: str) -> None:
    write_classes(tmp_path / train, each=4)
    write_classes(tmp_path / test, each=2)
    data = read_dataset(tmp_path)
    assert (len(data.train), len(data.test), data.class_names) == (8, 4, ("cat", "dog"))
    with pytest.raises(DataError, match="is for training; name another test_split"):
        read_dataset(tmp_path, Reading(test_split=train))


def test_the_same_pictures_have_the_same_fingerprint_and_others_do_not(tmp_path: Path) -> None:
    first = open_dataset(str(write_photos(tmp_path / "a")), Reading()).fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_dataset(str(tmp_path / "b"), Reading()).fingerprint == first
    image = tmp_path / "b" / "train" / "cat" / "000.png"
    image.rename(image.with_name("other.png"))
    assert open_dataset(str(tmp_path / "b"), Reading()).fingerprint != first
    image.with_name("other.png").rename(image)
    image.write_bytes(image.read_bytes()[:-1] + b"?")
    assert open_dataset(str(tmp_path / "b"), Reading()).fingerprint != first
    assert open_dataset(str(tmp_path / "a"), Reading(image_size=16)).fingerprint != first


def test_decoding_once_or_not_is_no_other_dataset(tmp_path: Path) -> None:
    write_photos(tmp_path)
    (tmp_path / "train" / "cat" / "bad.png").write_bytes(b"\x89PNG")
    kept, read_later = (read(str(tmp_path), resident=resident) for resident in ("auto", "no"))
    assert isinstance(kept.train, Split)
    assert isinstance(read_later.train, LazySplit)
    assert kept.fingerprint == read_later.fingerprint
    assert kept.facts == read_later.facts
    assert kept.subset(train=4).fingerprint == read_later.subset(train=4).fingerprint != kept.fingerprint


@pytest.mark.parametrize("resident", ["auto", "no"])
def test_corrupt_images_are_left_out_and_counted(tmp_path: Path, resident: str) -> None:
    write_photos(tmp_path)
    for name in ("train/cat/000.png", "train/dog/005.png", "val/cat/001.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    data = read(str(tmp_path), resident=resident)
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5
    assert data.facts["unreadable_train"] == 2
    assert data.facts["unreadable_test"] == 1
    assert read(str(tmp_path), resident=resident).fingerprint == data.fingerprint


def test_strict_stops_at_a_corrupt_image(tmp_path: Path) -> None:
    write_photos(tmp_path)
    (tmp_path / "val" / "dog" / "002.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"cannot decode .*002.png"):
        read(str(tmp_path), strict=True)


def test_what_was_found_corrupt_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path)
    (tmp_path / "train" / "cat" / "003.png").write_bytes(b"\x89PNG")
    assert len(read(str(tmp_path), resident="no").train) == 11
    assert [3] in json.loads((tmp_path / "itrd-checked.json").read_text()).values()
    with monkeypatch.context() as patch:
        patch.setattr("itrd.data.decode.check", lambda *_: pytest.fail("decoded again"))
        assert len(read(str(tmp_path), resident="no").train) == 11
    for damaged in ("[1, ", "[" * 100_000):  # done again
        (tmp_path / "itrd-checked.json").write_text(damaged)
        assert len(read(str(tmp_path), resident="no").train) == 11
    (tmp_path / "itrd-checked.json").unlink()
    os.mkfifo(tmp_path / "itrd-checked.json")  # nobody ever writes into it
    assert len(read(str(tmp_path), resident="no").train) == 11


def test_sizes(tmp_path: Path) -> None:
    for side, size in ((12, 12), (70, 64), (100, 96), (300, 224)):
        root = write_photos(tmp_path / str(side), train=2, test=1, side=side)
        data = open_dataset(str(root), Reading())
        assert data.image_size == size
        assert (data.augmentation is None) == (size <= 64)
    assert open_dataset(str(root), Reading(image_size=48)).image_size == 48


@pytest.mark.parametrize(("train", "test"), [([0, 1, 1, 0], [0, 1, 2, 2]), ([0, 2, 2, 0], [0, 1, 2, 2])])
def test_training_images_may_lack_a_class(train: list[int], test: list[int], tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", rows(4, train))
    write_parquet(tmp_path / "test.parquet", rows(4, test))
    data = read(str(tmp_path))
    assert (data.num_classes, data.train.labels.tolist(), data.test.labels.tolist()) == (3, train, test)


def test_a_folder_of_test_images_alone(tmp_path: Path) -> None:
    whole = write_photos(tmp_path / "whole")
    (tmp_path / "half").mkdir()
    (whole / "val").rename(tmp_path / "half" / "val")
    data = read(str(tmp_path / "half"))
    assert (len(data.train), data.class_names) == (0, ("cat", "dog"))
    assert data.test.labels.tolist() == [0] * 3 + [1] * 3
    with pytest.raises(DataError, match="has no images to train on"):
        get_data(TrainConfig(model="resnet8", data=str(tmp_path / "half")))
    (tmp_path / "half" / "owl").mkdir()  # a class, and so is the other one
    (tmp_path / "half" / "val" / "cat").rename(tmp_path / "half" / "owl" / "cat")
    assert read(str(tmp_path / "half")).class_names == ("owl", "val")


def test_images_without_labels(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", ("all",))
    data = read(str(tmp_path / "photos" / "all"))
    assert (data.num_classes, data.labelled, len(data.train), len(data.test)) == (0, False, 6, 0)
    shutil.move(tmp_path / "photos" / "all", tmp_path / "mixed" / "train")
    write_classes(tmp_path / "mixed" / "val")
    data = read(str(tmp_path / "mixed"))
    assert (data.num_classes, data.labelled, len(data.test)) == (2, False, 12)


def no_image(root: Path) -> None:
    (root / "cat").mkdir()
    (root / "cat" / "notes.txt").write_text("no image")


def one_class(root: Path) -> None:
    write_classes(root, ("cat",))


def both(root: Path) -> None:
    write_classes(root)
    Image.fromarray(pixels(0)).save(root / "loose.png")


def other_classes(root: Path) -> None:
    write_photos(root)
    (root / "val" / "dog").rename(root / "val" / "dogs")


def empty_class(root: Path) -> None:
    write_photos(root)
    (root / "train" / "eel").mkdir()


def single(root: Path) -> None:
    write_classes(root)
    write_classes(root, ("ape",), each=1)


def nothing_decodes(root: Path) -> None:
    write_photos(root)
    for path in root.rglob("*.png"):
        path.write_bytes(b"\x89PNG")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_image, "there is no image in .*; known are .bmp, .*, in one folder for each class"),
        (one_class, "has images of one class only; classification needs two"),
        (both, "holds both images .*loose.png.* and folders of images .*; sort the images"),
        (other_classes, r"has classes that the training images lack: dogs \(those have cat, dog\)"),
        (empty_class, "eel holds no image; fill or remove it"),
        (single, "class 0 of .* has one image, so none can be held out"),
        (nothing_decodes, "can be decoded"),
    ],
)
def test_bad_folders(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        read(str(tmp_path))
    assert "\n" not in str(error.value)


def test_paths_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder \./nowhere"):
        read("./nowhere")
    with pytest.raises(UserError, match=r"did you mean 'cifar100'\?.*or a folder of images"):
        read("cifar1000")
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"no folder and no .parquet file"):
        read(str(tmp_path / "x.zip"))


def test_settings_of_data_read_before(tmp_path: Path) -> None:
    data = read(str(write_photos(tmp_path)), image_size=16)
    assert read_dataset(data) is data
    with pytest.raises(UserError, match="was read before with other settings"):
        read(data, image_size=20)


# --- tables ----------------------------------------------------------------------------------------------


def rows(count: int, labels: list[Any], **columns: Any) -> Any:
    """A table as the Hugging Face library writes it."""
    pa = pytest.importorskip("pyarrow")
    images = [{"bytes": encoded(Image.fromarray(pixels(i))), "path": None} for i in range(count)]
    return pa.table({"image": images, "label": labels, **columns})


def write_parquet(path: Path, table: Any) -> Path:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def test_parquet_in_splits(tmp_path: Path) -> None:
    metadata = {"info": {"features": {"label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"}}}}
    table = rows(6, [0, 1, 2] * 2).replace_schema_metadata({"huggingface": json.dumps(metadata)})
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", table)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", table)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", table.slice(0, 3))
    data = read(str(tmp_path))
    assert data.class_names == ("cat", "dog", "eel")
    assert (len(data.train), len(data.test)) == (12, 3)
    np.testing.assert_array_equal(data.train.images[4].transpose(1, 2, 0), pixels(4))


def test_parquet_of_words(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(8, ["dog", "cat"] * 4))
    data = read(str(path), val_fraction=0.25)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (6, 2)


def test_columns_by_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(4, [0, 1, 0, 1], species=[1, 1, 0, 0], note=["x"] * 4))
    assert open_dataset(str(path), Reading(val_fraction=0.5)).train.labels.tolist() == [0, 1]
    data = open_dataset(str(path), Reading(val_fraction=0.5, label_column="species"))
    assert sorted(data.train.labels.tolist()) == [0, 1]
    with pytest.raises(DataError, match="no column 'kind'; its columns are image, label, species, note"):
        read(str(path), label_column="kind")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [1, 2, 5, 5],
            "labels of .* are 1, 2, 5, which leaves numbers out; number the 3 classes from 0 to 2",
        ),
        ([0, -3, 1, 1], "has the label -3; labels are 0, 1, 2"),
        ([0, None, 1, 1], "1 of 4 images of .* have no label"),
        ([0, -1, 1, 1], r"1 of 4 images of .* have the label -1 \(none\)"),
        ([0, 0, 0, 0], "images of one class only"),
    ],
)
def test_bad_labels(tmp_path: Path, labels: list[int], message: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(4, labels))
    with pytest.raises(DataError, match=message):
        read(str(path))


def test_bad_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    path = write_parquet(tmp_path / "empty.parquet", rows(4, [0, 1] * 2).slice(0, 0))
    with pytest.raises(DataError, match="has no rows"):
        read(str(path))
    path = write_parquet(tmp_path / "words.parquet", pa.table({"text": ["a"], "label": [0]}))
    with pytest.raises(DataError, match=r"which column of .* holds the images; its columns are text, label"):
        read(str(path))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"cannot read .* as Parquet"):
        read(str(tmp_path / "torn.parquet"))
    write_parquet(tmp_path / "two" / "train.parquet", rows(4, [0, 1] * 2))
    write_parquet(tmp_path / "two" / "test.parquet", rows(4, [0, 1, 3, 3]))
    with pytest.raises(DataError, match="are 0, 1, 3, which leaves numbers out"):
        read(str(tmp_path / "two"))


def hf(count: int, **columns: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    images = [Image.fromarray(pixels(i)) for i in range(count)]
    return datasets.Dataset.from_dict(
        {"image": images, "label": [i % 2 for i in range(count)]}, features=features
    )


def test_hugging_face_in_memory_and_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    both = datasets.DatasetDict({"train": hf(8), "test": hf(4)})
    given = read(both)
    both.save_to_disk(tmp_path / "saved")
    saved = read(str(tmp_path / "saved"))
    for data in (given, saved):
        assert data.class_names == ("cat", "dog")
        assert data.train.labels.tolist() == [0, 1] * 4
        np.testing.assert_array_equal(data.test.images[3].transpose(1, 2, 0), pixels(3))
    assert given.fingerprint == saved.fingerprint
    assert len(read(hf(10), val_fraction=0.4).test) == 4


def test_describing_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path)
    (tmp_path / "train" / "cat" / "000.png").write_bytes(b"\x89PNG")
    assert main(["datasets", str(tmp_path), "--statistics"]) == 0
    out = capsys.readouterr().out
    assert "training images: 12, 6 of each class, 12 pixels high and 12 wide" in out
    assert "cannot be decoded, and are left out: 1" in out
    assert "classes: 2 (cat, dog)" in out
    shown = next(line for line in out.splitlines() if "measured on" in line)
    images = np.stack([pixels(i) for i in range(1, 6)] + [pixels(1000 + i) for i in range(6)]) / 255
    assert f"11 training images: mean {images[..., 0].mean():.4f}, {images[..., 1].mean():.4f}" in shown
    assert f"deviation {images[..., 0].std():.4f}" in shown


def test_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(*name: Any) -> Any:
        asked.append(name)
        return datasets.DatasetDict({"train": hf(8), "validation": hf(4), "test": hf(2)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = read("hf:org/pets")
    assert (data.name, len(data.train), len(data.test)) == ("hf:org/pets", 8, 4)
    assert len(read("hf:org/pets:small", test_split="test").test) == 2
    assert asked == [("org/pets", None), ("org/pets", "small")]
    with pytest.raises(DataError, match="has no split called exam; it has train, validation, test"):
        read("hf:org/pets", test_split="exam")

    def fail(*name: Any) -> Any:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match="cannot load hf:org/pets: no route; check the name and the connection"
    ):
        read("hf:org/pets")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_photos(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match=r"pip install 'itrd\[images\]'"):
        read(str(tmp_path))


def test_describing_a_named_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "digits"]) == 0
    out = capsys.readouterr().out
    assert "training images: 1,000, 100 of each class, 32 pixels high and 32 wide" in out
