"""Runs on images of every kind: folders, datasets given in Python, images without labels, given logits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

import itrd
from itrd.cli import main
from itrd.data.opening import Reading, read_dataset
from itrd.engine.checkpoint import read_weights, save_weights
from itrd.engine.config import DistillConfig, TrainConfig
from itrd.engine.inputs import get_test_data
from itrd.engine.log import Quiet
from itrd.engine.networks import TrainedNetwork, load_network
from itrd.engine.run import prepare, prepare_distill
from itrd.engine.trainer import Interrupted
from itrd.errors import CheckpointError, DataError, UserError
from photos import Plain, pixels, write_classes, write_photos

QUIET = {"progress": False, "tensorboard": False}
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8, **QUIET}


@pytest.fixture
def photos(tmp_path: Path) -> str:
    return str(write_photos(tmp_path / "photos", train=10, test=4))


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_eval_brings_images_to_the_size_that_benchmark_networks_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos", side=56)
    torch.save(itrd.create_model("resnet8", num_classes=2).state_dict(), tmp_path / "s.pt")
    assert main(["eval", "--model", f"resnet8:{tmp_path / 's.pt'}", "--data", str(photos)]) == 0
    assert "6 test images: top-1 " in capsys.readouterr().out


@pytest.mark.parametrize("augment", ["crop", "resized_crop", "trivialaugment"])
def test_where_images_are_makes_no_difference(photos: str, augment: str) -> None:
    runs = {}
    places = [
        {"resident": "no"},
        {"resident": "no", "workers": 2},
        *[{"resident": "yes"}] * (augment == "crop"),
    ]
    for how in places:
        result = itrd.distill(
            Plain(), Plain(width=3, dropout=0.5), photos, method="kd", augment=augment, **SHORT, **how
        )
        runs[str(how)] = (weights(result.student), result.last.test, result.last.train["loss"])
    first, *others = runs.values()
    for other in others:
        assert torch.equal(first[0], other[0])
        assert first[1:] == other[1:]


def stopped(config: DistillConfig, steps: int) -> None:
    given = TrainedNetwork(Plain(), "Plain", 2, "given", None, None)
    with (
        prepare_distill(config, teacher=given, student=Plain(width=3, dropout=0.5)) as trainer,
        pytest.MonkeyPatch.context() as patch,
    ):
        left = [steps]

        def step(display: Quiet, epoch: int, images: int) -> None:
            left[0] -= 1
            if left[0] == 0:
                trainer.request_stop()

        patch.setattr(Quiet, "step", step)
        with pytest.raises(Interrupted):
            trainer.fit()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_in_an_epoch_ends_with_the_same_bits(photos: str, tmp_path: Path, workers: int) -> None:
    def config(out: str, resume: bool, processes: int) -> DistillConfig:
        settings: dict[str, Any] = {**SHORT, "epochs": 3, "data": photos, "augment": "randaugment"}
        return DistillConfig(
            teacher="given",
            student="Plain",
            method="kd",
            out=str(tmp_path / out),
            resume=resume,
            workers=processes,
            **settings,
        )

    given = TrainedNetwork(Plain(), "Plain", 2, "given", None, None)

    def finish(out: str, resume: bool) -> torch.Tensor:
        student = Plain(width=3, dropout=0.5)
        with prepare_distill(config(out, resume, 0), teacher=given, student=student) as trainer:
            return weights(trainer.fit().student)

    whole = finish("whole", False)
    for number, steps in enumerate((2, 2)):  # of 3 an epoch
        stopped(config("parts", number > 0, workers), steps)
    assert torch.equal(finish("parts", True), whole)


def test_from_the_command_line(photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "teacher")
    flags = ["--epochs", "1", "--batch_size", "8", "--tensorboard", "false", "--progress", "false"]
    assert main(["train", "--model", "resnet8", "--data", photos, *flags, "--out", out]) == 0
    assert "20 training images (kept in memory), 8 test images, classes 2" in capsys.readouterr().out
    student = str(tmp_path / "student")
    more = ["--method", "itrd", "--resident", "no", *flags, "--out", student]
    assert (
        main(["distill", "--teacher", out, "--student", "resnet8", *more]) == 0
    )  # the data is the teacher's
    assert "(read in every epoch)" in capsys.readouterr().out
    record = json.loads((tmp_path / "student" / "result.json").read_text())
    assert record["data"]["name"] == photos
    assert record["data"]["kind"] == "image folder"
    assert (record["data"]["image_size"], record["data"]["train"]) == (32, 20)
    assert read_weights(tmp_path / "student" / "last.safetensors")[1]["image_size"] == "32"
    assert main(["eval", "--model", student]) == 0
    last = record["last"]["test"]["top1"]
    assert f"8 test images: top-1 {last:.2f}%" in capsys.readouterr().out


def test_a_changed_folder_is_not_resumed(photos: str, tmp_path: Path) -> None:
    config = {"model": "resnet8", "data": photos, "out": str(tmp_path / "run"), **SHORT, "epochs": 1}
    with prepare(TrainConfig(**config)) as trainer:
        trainer.fit()
    (Path(photos) / "train" / "cat" / "000.png").unlink()
    with (
        pytest.raises(UserError, match=r"the data of the run in .* changed since it began"),
        prepare(TrainConfig(**config, resume=True)),
    ):
        pass


def test_images_that_were_trained_on_are_not_tested_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network remembers how its data was divided, and is not tested on more of it than was held out."""
    photos, out = str(write_classes(tmp_path / "photos", each=20)), str(tmp_path / "run")
    flags = ["--data", photos, "--epochs", "1", "--tensorboard", "false", "--progress", "false"]
    assert main(["train", "--model", "resnet8", *flags, "--val_fraction", "0.1", "--out", out]) == 0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert main(["eval", "--model", out, "--data", photos + "/"]) == 0
    assert f"4 test images: top-1 {record['last']['test']['top1']:.2f}%" in capsys.readouterr().out
    assert main(["eval", "--model", out, "--val_fraction", "0.05"]) == 0  # 2 of these 4
    refused = "was trained with 0.1 of each class held out for the test, and now it is 0.2"
    for command in (["eval", "--model", out], ["distill", "--teacher", out, "--student", "resnet8", *flags]):
        assert main([*command, "--val_fraction", "0.2"]) == 2
        assert refused in capsys.readouterr().err


def test_classes_in_another_order_are_not_taken_for_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("cat", "dog", "fox")
    photos, out = str(write_classes(tmp_path / "photos", names)), str(tmp_path / "run")
    flags = ["--epochs", "1", "--tensorboard", "false", "--progress", "false"]
    assert main(["train", "--model", "resnet8", "--data", photos, *flags, "--out", out]) == 0
    (tmp_path / "photos" / "fox").rename(tmp_path / "photos" / "wolf")
    assert main(["eval", "--model", out]) == 0  # another name for the same number
    (tmp_path / "photos" / "wolf").rename(tmp_path / "photos" / "ape")
    student = ["distill", "--teacher", out, "--student", "resnet8", "--data", photos, *flags]
    for command in (["eval", "--model", out], [*student, "--method", "kd"]):
        assert main(command) == 2
        assert "class 'cat' is number 0 for" in capsys.readouterr().err
    assert main([*student, "--method", "hint", "--out", str(tmp_path / "hint")]) == 0  # it reads no logits


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("reading", '{"val_fraction": "all"}'),
        ("reading", '{"size": 3}'),
        ("reading", "[]"),
        ("reading", "{"),
        ("class_names", '{"cat": 1}'),
        ("class_names", "[1]"),
    ],
)
def test_metadata_in_no_known_form_are_refused(tmp_path: Path, key: str, said: str) -> None:
    path = tmp_path / "resnet8.safetensors"
    save_weights(path, itrd.create_model("resnet8", 10), {"arch": "resnet8", key: said})
    with pytest.raises(CheckpointError, match=f"the {key} of .* cannot be understood"):
        load_network(str(path))


def test_a_single_image_at_the_end_joins_the_batch_before() -> None:
    """A batch norm makes nothing of one value a channel."""
    data = [(pixels(i), i % 2) for i in range(17)], [(pixels(i), i % 2) for i in range(4)]
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    assert len(itrd.train(net, data, **SHORT).history) == 2


class Vanishing:
    """A dataset whose files are gone after a while; or one with a mistake in it."""

    def __init__(self, error: Exception) -> None:
        self.error, self.reads = error, 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        self.reads += 1
        if self.reads > 40:
            raise self.error
        return pixels(index), index % 2


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "a.png"), TypeError("mistake")])
def test_what_a_dataset_raises_is_what_is_seen(error: Exception) -> None:
    data = Vanishing(error), [(pixels(i), i % 2) for i in range(4)]
    with pytest.raises(type(error), match=str(error.args[-1])):
        itrd.train(Plain(), data, **{**SHORT, "epochs": 9, "resident": "no", "workers": 0})
    with pytest.raises(TypeError, match="mistake"):
        itrd.evaluate(Plain(), Vanishing(TypeError("mistake")), image_size=12, val_fraction=0.5)


def test_python_datasets_and_functions(photos: str) -> None:
    data = [(pixels(i), i % 2) for i in range(12)], [(pixels(i), i % 2) for i in range(4)]
    result = itrd.train(Plain(), data, **SHORT)
    assert result.record["data"]["train"] == 12
    assert itrd.evaluate(result.student, data) == pytest.approx(result.last.test)
    result = itrd.train(Plain(), photos, augment=lambda image: 255 - image, image_size=12, **SHORT)
    assert result.record["data"]["augmentation"] == "the function <lambda>"
    digits = itrd.train(Plain(10), "digits", augment="autoaugment", train_subset=40, test_subset=20, **SHORT)
    assert digits.record["data"]["augmentation"] == "padding 4 and crop, AutoAugment"
    assert digits.record["protocol"] == "custom"


# --- without labels --------------------------------------------------------------------------------------


def test_of_images_that_a_network_has_not_seen_all_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, new = write_classes(tmp_path / "seen", each=10), write_classes(tmp_path / "new", each=5, seed=900)
    out = tmp_path / "run"
    trained = itrd.train("resnet8", str(seen), out=str(out), **SHORT)
    assert trained.record["data"]["test"] == 4  # a fifth was held out
    for folder, options, count in (
        (seen, [], 4),
        (new, [], 10),
        (new, ["--val_fraction", "0.2"], 2),
        (seen, ["--val_fraction", "0.1"], 2),
    ):
        assert main(["eval", "--model", str(out), "--data", str(folder), *options]) == 0
        assert f"{count} test images" in capsys.readouterr().out
    assert main(["eval", "--model", str(out), "--data", str(seen), "--val_fraction", "0.5"]) == 2
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    mine = TensorDataset(images, torch.arange(20) % 2)
    itrd.train("resnet8", mine, out=str(tmp_path / "objects"), **SHORT)
    for given, count in ((mine, 4), (TensorDataset(images.flip(0), torch.arange(20) % 2), 20)):
        assert len(get_test_data(load_network(str(tmp_path / "objects")), given).test) == count
    counted = itrd.evaluate(trained.student, {"test": mine}, confusion=True)["confusion"]
    assert int(counted.sum()) == 20


def test_images_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path / "c", ("all",), each=12)
    bare = str(tmp_path / "c" / "all")
    for method in ("kd", "itrd", "kd + 0.5*rkd"):
        student = Plain(width=3)
        start = weights(student)
        result = itrd.distill(Plain(), student, bare, method=method, ce_weight=0.0, **SHORT)
        assert not torch.equal(start, weights(student))
        assert result.last.test == {}
        assert not {"ce", "top1"} & set(result.last.train)
        assert result.best is result.last
    with pytest.raises(UserError, match=r"no labels, and the cross-entropy \(weight 0.1\) cannot do without"):
        itrd.distill(Plain(), Plain(), bare, method="kd", **SHORT)
    for method in ("dkd", "crd(K=4)"):
        with pytest.raises(UserError, match=rf"no labels, and {method[:3]} cannot do without"):
            itrd.distill(Plain(), Plain(), bare, method=method, ce_weight=0.0, **SHORT)
    with pytest.raises(UserError, match="no labels, and the cross-entropy"):
        itrd.train(Plain(), bare, **SHORT)
    with pytest.raises(UserError, match="has no labels to train the student alone"):
        itrd.distill(Plain(), Plain(), bare, method="kd", ce_weight=0.0, control=True, **SHORT)
    with pytest.raises(UserError, match="no labelled test images"):
        itrd.evaluate(Plain(), bare)


def test_unlabelled_training_and_labelled_test_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path, ("train",), each=12)
    write_classes(tmp_path / "val", each=4)
    result = itrd.distill(Plain(), Plain(width=3), str(tmp_path), method="kd", ce_weight=0.0, **SHORT)
    assert set(result.last.test) == {"top1", "top5", "loss"}
    teacher = tmp_path / "teacher"
    itrd.train(
        "resnet8", str(write_photos(tmp_path / "labelled")), out=str(teacher), **{**SHORT, "epochs": 1}
    )
    flags = ["--epochs", "1", "--batch_size", "8", "--tensorboard", "false", "--out", str(tmp_path / "run")]
    bare = str(tmp_path / "train")
    command = ["distill", "--teacher", str(teacher), "--student", "resnet8", "--data", bare]
    assert main([*command, "--method", "kd", "--ce_weight", "0", *flags]) == 0
    out = capsys.readouterr().out
    assert "no accuracy without labelled test images" in out
    assert "no labelled test images, so no accuracy" in out
    assert "top1" not in read_weights(tmp_path / "run" / "last.safetensors")[1]


# --- given logits ----------------------------------------------------------------------------------------


@torch.no_grad()
def logits_of_views(net: nn.Module, photos: str, views: bool) -> np.ndarray:
    """The teacher's logits of every training image, as it is or in every view."""
    from itrd.engine.place import place_split, training_view

    data = read_dataset(photos, Reading())
    source = place_split(data, data.train, training_view(data), torch.device("cpu"))
    every = torch.arange(len(source))
    if not views:
        return net(source.plain(every)).numpy()
    seen = [net(source.batch(every, torch.full_like(every, v))) for v in range(source.num_views)]
    return torch.stack(seen, dim=1).numpy()


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_logits_of_every_view_are_the_teacher(photos: str, tmp_path: Path, suffix: str) -> None:
    rows = logits_of_views(Plain(), photos, views=True)
    path = tmp_path / f"logits{suffix}"
    np.save(path, rows) if suffix == ".npy" else save_file({"logits": torch.from_numpy(rows)}, path)
    live = itrd.distill(Plain(), Plain(width=3), photos, method="kd", **SHORT)
    given = itrd.distill(None, Plain(width=3), photos, method="kd", teacher_logits=str(path), **SHORT)
    assert torch.allclose(weights(live.student), weights(given.student), atol=1e-6)
    assert given.record["teacher"]["source"] == str(path)
    assert given.record["protocol"] == "custom"


def test_logits_of_plain_images_serve_all_views(photos: str, tmp_path: Path) -> None:
    rows = logits_of_views(Plain(), photos, views=False)
    np.save(tmp_path / "logits.npy", rows)
    flags = ["--epochs", "1", "--batch_size", "8", "--tensorboard", "false", "--out", str(tmp_path / "run")]
    command = ["distill", "--teacher_logits", str(tmp_path / "logits.npy"), "--student", "resnet8"]
    assert main([*command, "--data", photos, "--method", "dkd", *flags]) == 0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    labels = np.repeat([0, 1], 10)
    assert record["teacher"]["agrees_with_labels"] == 100 * (rows.argmax(1) == labels).mean()
    assert json.loads((tmp_path / "run" / "inputs.json").read_text())["teacher"]


def test_logits_of_unlabelled_images(tmp_path: Path) -> None:
    write_classes(tmp_path, ("all",), each=12)
    np.save(tmp_path / "l.npy", np.random.default_rng(0).normal(size=(12, 7)).astype(np.float16))
    logits = str(tmp_path / "l.npy")
    result = itrd.distill(
        None, "resnet8", str(tmp_path / "all"), method="kd", ce_weight=0.0, teacher_logits=logits, **SHORT
    )
    assert result.student.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize(
    ("array", "method", "message"),
    [
        (np.zeros((20, 2), np.float32), "itrd", "reads embedding of the teacher, and .* holds logits"),
        (np.zeros((20, 2), np.float32), "none", "needs no teacher"),
        (np.zeros((19, 2), np.float32), "kd", "has 19 rows and .* 20 training images"),
        (np.zeros((20, 3), np.float32), "kd", "has logits of 3 classes and .* has 2"),
        (np.zeros((20, 5, 2), np.float32), "kd", "has logits of 5 views of each image, and .* has 18"),
        (np.full((20, 2), np.nan, np.float32), "kd", "a number that is not finite, in row 0"),
        (np.zeros((20, 2), np.int64), "kd", "logits are floating-point numbers"),
        (np.array([[{}]], dtype=object), "kd", "cannot read the logits"),
    ],
)
def test_wrong_logits(photos: str, tmp_path: Path, array: np.ndarray, method: str, message: str) -> None:
    np.save(tmp_path / "l.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        itrd.distill(None, Plain(), photos, method=method, teacher_logits=str(tmp_path / "l.npy"), **SHORT)


def test_wrong_use_of_logits(photos: str, tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.zeros((20, 2), np.float32))
    logits = {"teacher_logits": str(tmp_path / "l.npy")}
    with pytest.raises(UserError, match="either a teacher or teacher_logits"):
        itrd.distill(Plain(), Plain(), photos, method="kd", **logits, **SHORT)
    with pytest.raises(UserError, match="does not say which dataset"):
        itrd.distill(None, Plain(), method="kd", **logits, **SHORT)
    with pytest.raises(UserError, match="name a teacher with --teacher"):
        itrd.distill(None, Plain(), photos, method="kd", **SHORT)
    with pytest.raises(DataError, match=r"cannot read the logits in .*: No such file"):
        itrd.distill(None, Plain(), photos, method="kd", teacher_logits="nowhere.npy", **SHORT)
    with pytest.raises(DataError, match=r"neither .npy nor .safetensors"):
        itrd.distill(None, Plain(), photos, method="kd", teacher_logits="logits.pt", **SHORT)


def test_a_table_needs_a_limited_number_of_views(photos: str, tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    with pytest.raises(UserError, match="a limited number of views; add --augment crop"):
        itrd.distill(
            Plain(), Plain(), photos, method="kd", augment="resized_crop", teacher_table=table, **SHORT
        )
    live = itrd.distill(Plain(), Plain(width=3), photos, method="kd", **SHORT)
    for resident in ("no", "yes"):
        looked_up = itrd.distill(
            Plain(), Plain(width=3), photos, method="kd", teacher_table=table, resident=resident, **SHORT
        )
        assert torch.allclose(weights(live.student), weights(looked_up.student), atol=1e-6)


# --- signals ---------------------------------------------------------------------------------------------


def test_workers_outlive_a_signal_to_the_whole_group(photos: str, tmp_path: Path) -> None:
    """A scheduler's SIGTERM reaches the workers, too: the run still stops after a step, with its state saved."""
    command = [
        sys.executable,
        "-m",
        "itrd",
        "train",
        "--model",
        "resnet8",
        "--data",
        photos,
        "--workers",
        "2",
    ]
    command += ["--resident", "no", "--epochs", "1000", "--batch_size", "8", "--out", str(tmp_path / "run")]
    run = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGTERM)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 143, error
    assert "continue with --resume" in error
    assert (tmp_path / "run" / "checkpoint.pt").exists()
