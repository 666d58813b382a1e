"""The Python surface with names and with objects of one's own."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import itrd
from itrd.engine.evaluate import evaluate
from itrd.engine.networks import load_network
from itrd.engine.place import place_test
from itrd.errors import UserError


class Own(nn.Module):
    """A classifier that knows nothing of this package."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("method", ["kd", "itrd", "kd + itrd(alpha=1.5)"])
def test_distill_any_modules(method: str, tiny: dict[str, Any]) -> None:
    teacher, student = Own(12), Own(6)
    before = [p.clone() for p in teacher.parameters()]
    start = student.head.weight.clone()
    result = itrd.distill(teacher, student, data="digits", method=method, **tiny)
    assert result.student is student
    assert len(result.history) == 2
    assert not torch.equal(start, student.head.weight)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert not teacher.training


def test_distill_with_names_and_a_method_object(teacher_folder: Path, tiny: dict[str, Any]) -> None:
    method = itrd.create_method("itrd", alpha=1.5)
    result = itrd.distill(str(teacher_folder), "resnet8", method=method, **tiny)
    assert result.record["data"]["name"] == "digits[train=60,test=40]"
    assert "alpha=1.5" in result.record["objective"]


def test_clean_track_updates_batch_norms_once(teacher_folder: Path, tiny: dict[str, Any]) -> None:
    counts = {}
    for track in ("reference", "clean"):
        result = itrd.distill(
            str(teacher_folder), "wrn_16_1", method="itrd", track=track, **{**tiny, "epochs": 1}
        )
        counts[track] = {
            name: int(m.num_batches_tracked)
            for name, m in result.student.named_modules()
            if isinstance(m, nn.BatchNorm2d)
        }
    doubled = {name for name in counts["clean"] if counts["reference"][name] == 2 * counts["clean"][name]}
    assert doubled == {"block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"}
    assert set(counts["clean"].values()) == {4}


def test_train_own_module_on_own_dataset(tiny: dict[str, Any]) -> None:
    data = itrd.load_dataset("digits").subset(train=50, test=30)
    net = Own(6)
    start = net.head.weight.clone()
    result = itrd.train(net, data, epochs=1)
    assert result.student is net
    assert not torch.equal(start, net.head.weight)
    assert result.record["data"]["name"] == "digits[train=50,test=30]"
    assert itrd.train("resnet8", data, epochs=1).record["data"] == result.record["data"]


@pytest.mark.parametrize("method", ["reviewkd", "abound", "crd", "itrd", "factor"])
def test_a_method_object_can_be_used_again(method: str, teacher_folder: Path, tiny: dict[str, Any]) -> None:
    settings = {"init_epochs": 1} if method in ("abound", "factor") else {}
    made = itrd.create_method(method, **settings)
    scores = [
        itrd.distill(str(teacher_folder), "resnet8", method=made, **{**tiny, "epochs": 1}).last.train["loss"]
        for _ in range(2)
    ]
    assert scores[0] == scores[1]


def test_a_student_may_have_more_outputs_where_none_are_compared(tiny: dict[str, Any]) -> None:
    itrd.distill(Own(4), Own(4, classes=12), data="digits", method="itrd", **{**tiny, "epochs": 1})


class Staged(nn.Module):
    """A network of the user's, whose maps are read with hooks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, 2, 1)
        self.second = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize(("kind", "method"), [(Own, "itrd"), (Staged, "attention")])
def test_no_hook_stays_on_a_users_module(
    kind: type[nn.Module], method: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student = kind(6), kind(4)
    used: set[str] = set()

    def noting(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        return lambda module, *given: (used.add(name), own(module, *given))[1]

    for name in ("register_forward_hook", "register_forward_pre_hook"):
        monkeypatch.setattr(nn.Module, name, noting(name, getattr(nn.Module, name)))
    itrd.distill(teacher, student, data="digits", method=method, **{**tiny, "epochs": 1})
    assert used == {"register_forward_pre_hook", *["register_forward_hook"] * (method == "attention")}
    assert not [
        m for net in (teacher, student) for m in net.modules() if m._forward_pre_hooks or m._forward_hooks
    ]


def test_a_state_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    class Extra(nn.ReLU):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 1}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    student = Staged(4)
    student.second = nn.Sequential(student.second, Extra())
    for settings in ({"out": str(tmp_path / "run")}, {"ema": 0.9}):
        with pytest.raises(
            UserError, match=r"student Staged cannot be saved: the extra state of second\.1 \(Extra\)"
        ):
            itrd.train(student, "digits", **settings, **tiny)
    itrd.train(student, "digits", **tiny)  # nothing is written


def test_a_method_that_cannot_be_copied_is_named(tiny: dict[str, Any]) -> None:
    method = Varying()
    method.lock = threading.Lock()
    with pytest.raises(
        UserError, match=r"1\*varying cannot be copied \(cannot pickle .*lock.*; give its class"
    ):
        itrd.distill(itrd.create_model("resnet8", 10), "resnet8", "digits", method, **tiny)


def test_torchs_newer_switches(tiny: dict[str, Any]) -> None:
    """Once they were used, torch's older ones cannot even be read."""
    code = (
        "import torch, itrd\n"
        "if hasattr(torch.backends.cuda.matmul, 'fp32_precision'):\n"
        "    torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "itrd.evaluate(itrd.create_model('resnet8', 10), 'digits', image_size=None)\n"
        "itrd.train('resnet8', 'digits', epochs=1, train_subset=40, test_subset=20)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Varying(itrd.methods.Method):
    """Has another set of terms from its second epoch on."""

    name, reads = "varying", frozenset({"logits"})
    epoch = 0

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def terms(self, student: Any, teacher: Any, batch: Any) -> dict[str, torch.Tensor]:
        loss = (student.logits - teacher.logits).square().mean()
        return {"first": loss} if self.epoch == 1 else {"second": loss}


def test_terms_that_vary_are_named(teacher_folder: Path, tiny: dict[str, Any]) -> None:
    message = (
        r"the same in every step, and 'varying.second' is new, 'varying.first' is missing; let the method"
    )
    with pytest.raises(UserError, match=message):
        itrd.distill(str(teacher_folder), "resnet8", "digits", Varying(), **{**tiny, "epochs": 2})


class Moody(Own):
    """Fails, in one way or another, where it is trained, or where it is not."""

    def __init__(self, fails: str, training: bool = True) -> None:
        super().__init__(4)
        self.fails, self.when = fails, training

    def forward(self, x: torch.Tensor) -> Any:
        logits = super().forward(x)
        if self.training != self.when:
            return logits
        if self.fails == "shapes":
            return logits, nn.functional.conv2d(x, torch.zeros(4, 3, 64, 64))
        return (logits, logits) if self.fails == "tuple" else self.head(None)


def test_networks_that_fail_are_named(tiny: dict[str, Any]) -> None:
    expected = {
        "tuple": "the student Moody: a classifier must return logits, .* returned tuple",
        "shapes": "the student Moody fails in train mode on a batch of 16x3x32x32: .* Kernel size",
        "none": "fails in train mode .*must be Tensor, not NoneType",
    }
    for fails, message in expected.items():
        with pytest.raises(UserError, match=message):
            itrd.distill(Own(4), Moody(fails), "digits", "itrd", **tiny)
        with pytest.raises(UserError, match=message):
            itrd.train(Moody(fails), "digits", **tiny)
    with pytest.raises(UserError, match="the teacher Moody: a classifier must return logits"):
        itrd.distill(Moody("tuple", training=False), Own(4), "digits", "kd", **tiny)
    with pytest.raises(UserError, match="the network Moody: a classifier must return logits"):
        itrd.evaluate(Moody("tuple", training=False), "digits")


def test_evaluate(tiny: dict[str, Any]) -> None:
    result = itrd.train("resnet8", "digits", **{**tiny, "test_subset": None})
    again = itrd.evaluate(result.student, "digits")
    assert again["top1"] == pytest.approx(result.last.test["top1"])


def test_confusion_counts_what_is_taken_for_what() -> None:
    data = itrd.load_dataset("digits").subset(test=40)
    said = torch.randint(0, 10, (40,), generator=torch.Generator().manual_seed(0))

    class Says(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(said[: len(x)], 10).float()

    found = itrd.evaluate(Says(), data, confusion=True)
    pairs = list(zip(data.test.labels.tolist(), said.tolist(), strict=True))
    assert found["confusion"].tolist() == [[pairs.count((i, j)) for j in range(10)] for i in range(10)]
    assert found["top1"] == pytest.approx(100 * sum(i == j for i, j in pairs) / 40)
    assert "confusion" not in itrd.evaluate(Says(), data)


@pytest.mark.parametrize("batch", [1, 3, 7, 40])
def test_equal_accuracies_are_equal_numbers(batch: int) -> None:
    data = itrd.load_dataset("digits").subset(test=40)
    images = place_test(data, torch.device("cpu"))
    labels = torch.tensor(data.test.labels)

    class Knows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = (images.plain(torch.arange(40))[:, None] == x).all(dim=(2, 3, 4)).int().argmax(dim=0)
            known = first < 23
            return nn.functional.one_hot(
                torch.where(known, labels[first], (labels[first] + 1) % 10), 10
            ).float()

    assert evaluate(Knows(), images, batch_size=batch)["top1"] == 100 * 23 / 40


class Frozen(Own):
    """With a batch norm that its user keeps in eval mode."""

    def __init__(self, classes: int) -> None:
        super().__init__(4, classes)
        self.norm = nn.BatchNorm2d(3)
        self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x))


def test_logits_that_are_not_finite_are_never_right() -> None:
    images = place_test(itrd.load_dataset("digits").subset(test=40), torch.device("cpu"))
    damaged = [i for i, label in enumerate(images.labels.tolist()) if label == 0]

    class Broken(nn.Module):
        """Right for every image, but that class 0 gives NaN."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = torch.full((len(x), 10), -torch.inf)
            logits[range(len(x)), images.labels] = 1.0
            logits[damaged] = torch.nan
            return logits

    assert damaged
    assert evaluate(Broken(), images)["top1"] == pytest.approx(100 * (1 - len(damaged) / 40))
    with pytest.raises(UserError, match=f"not finite for {len(damaged)} of 40 images"):
        evaluate(Broken(), images, finite=True)
    damaged.clear()
    assert evaluate(Broken(), images, finite=True)["top1"] == 100


def test_evaluation_leaves_modes_as_they_are() -> None:
    small, net = Frozen(5), Frozen(10)
    itrd.evaluate(net, "digits")
    with pytest.raises(
        UserError, match="logits of 5 classes, and a label of the images is 9; give it a class"
    ):
        itrd.evaluate(small, "digits")
    for each in (small, net):
        assert each.training
        assert not each.norm.training


def test_evaluate_refuses_what_it_does_not_know() -> None:
    net = itrd.create_model("resnet8", 10)
    for settings, message in (
        ({"precision": "fp16"}, "no precision 'fp16'; choose fp32, tf32 or bf16"),
        ({"augment": "crp"}, "crop"),
        ({"resident": "maybe"}, "resident must be 'auto' or 'yes' or 'no', got 'maybe'"),
        ({"image_size": "64"}, "image_size must be a whole number or none, got '64'"),
        ({"image_size": 4}, "image_size must be at least 8, got 4"),
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1, got 1.0"),
    ):
        with pytest.raises(UserError, match=message):
            itrd.evaluate(net, "digits", **settings)


def test_evaluate_by_name_or_path(teacher_folder: Path) -> None:
    data = itrd.load_dataset("digits").subset(test=40)
    expected = itrd.evaluate(load_network(str(teacher_folder)).net, data)
    assert itrd.evaluate(str(teacher_folder), data) == itrd.evaluate(teacher_folder, data) == expected
    with pytest.raises(UserError, match="has 10 classes and more has 12"):
        itrd.evaluate(teacher_folder, replace(data, name="more", num_classes=12))


def test_paths_are_taken_for_names(teacher_folder: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    folders = {"out": tmp_path / "run", "teacher_table": tmp_path / "table", "data_root": tmp_path}
    result = itrd.distill(teacher_folder, "resnet8", method="kd", **{**tiny, "epochs": 1}, **folders)
    assert (tmp_path / "run" / "result.json").is_file()
    assert result.record["teacher"]["source"] == str(teacher_folder / "last.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": itrd.methods.method_class("kd")}, r"the class KD; make one with KD\(\)"),
        ({"method": None}, "the method must be text .*, not NoneType"),
        ({"method": ["kd", "itrd"]}, "not list"),
        ({"method": {"kd": 1}}, "not dict"),
        ({"student": Own}, r"the student must be .* or path of one, not the class Own; make one with Own\("),
        ({"student": None}, "the student must be .*, not NoneType"),
        ({"teacher": Own(4).state_dict()}, "the teacher must be .*, not OrderedDict; load weights"),
    ],
)  # fmt: skip
def test_arguments_of_the_wrong_kind(arguments: dict[str, Any], message: str, tiny: dict[str, Any]) -> None:
    given = {"teacher": Own(4), "student": Own(4), "method": "kd", **arguments}
    with pytest.raises(UserError, match=message):
        itrd.distill(data="digits", **given, **tiny)
    with pytest.raises(UserError, match=message.replace(" or path of one", "")):
        itrd.Distiller(example=torch.zeros(2, 3, 32, 32), **given)


class Mine(itrd.methods.Method):
    """A method of one's own that returns what it is told to."""

    name, reads = "mine", frozenset({"logits"})

    def __init__(self, give: Callable[[torch.Tensor], Any], reads: Any = reads) -> None:
        super().__init__()
        self.give, self.reads = give, reads

    def terms(self, student: Any, teacher: Any, batch: Any) -> Any:
        return self.give((student.logits - teacher.logits).square())


@pytest.mark.parametrize(
    ("give", "reads", "message"),
    [
        (torch.mean, {"logits"}, r"method 'mine': terms\(\) must return a dict .* not Tensor"),
        (lambda x: {"mine": x}, {"logits"}, r"'mine' is Tensor of shape \(2, 10\); give its mean"),
        (lambda x: {"mine": x.mean().item()}, {"logits"}, "'mine' is float; give"),
        (
            lambda x: {"mine": x.mean().detach()},
            {"logits"},
            "no gradient reaches the student from what terms",
        ),
        (lambda x: {}, {"logits"}, "it is empty"),
        (torch.mean, {"logit"}, r"reads = \{'logit'\}; it must be a set of 'logits', 'embedding'"),
        (torch.mean, "logits", "reads = 'logits'; it must be a set"),
        (torch.mean, frozenset(), r"reads = frozenset\(\)"),
    ],
)
def test_mistakes_in_a_method_of_ones_own(give: Any, reads: Any, message: str) -> None:
    images = torch.zeros(2, 3, 32, 32)
    with pytest.raises(UserError, match=message):
        itrd.Distiller(Own(4), Own(4), Mine(give, reads), example=images)(images, torch.zeros(2).long())


def test_terms_are_looked_at_once() -> None:
    images, labels = torch.zeros(2, 3, 32, 32), torch.zeros(2).long()
    given = [True, False]
    method = Mine(lambda x: {"mine": x.mean(), "shown": x.detach().mean()} if given.pop(0) else {})
    distiller = itrd.Distiller(Own(4), Own(4), method, example=images)
    assert set(distiller(images, labels).terms) == {"loss", "ce", "mine", "mine.shown"}
    assert set(distiller(images, labels).terms) == {"loss", "ce"}
    with pytest.raises(UserError, match="method Nameless has no name"):
        itrd.Distiller(Own(4), Own(4), type("Nameless", (itrd.methods.Method,), {})(), example=images)
    with pytest.raises(UserError, match="and KD is no Method object"):
        itrd.methods.Objective([(1, itrd.methods.method_class("kd"))])


def test_networks_whose_weights_are_not_there(tiny: dict[str, Any]) -> None:
    meta, lazy = Own(6).to("meta"), nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    messages = (
        (meta, r"Own is on the meta device.*body.0.weight.*to_empty"),
        (lazy, r"lazy modules.*run one batch"),
    )
    for net, message in messages:
        for use in (
            lambda net: itrd.evaluate(net, "digits"),
            lambda net: itrd.train(net, "digits", **tiny),
            lambda net: itrd.distill(net, Own(4), data="digits", **tiny),
            lambda net: itrd.distill(Own(4), net, data="digits", **tiny),
            lambda net: itrd.Distiller(net, Own(4), "kd", example=torch.rand(2, 3, 32, 32)),
        ):
            with pytest.raises(UserError, match=message):
                use(net)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_of_another_type_than_the_images(kind: torch.dtype, tiny: dict[str, Any]) -> None:
    net = Own(6).to(kind)
    message = rf"weights are {kind} and the images torch.float32; .float\(\) makes"
    for use in (
        lambda: itrd.evaluate(net, "digits"),
        lambda: itrd.train(net, "digits", **tiny),
        lambda: itrd.distill(net, Own(4), data="digits", **tiny),
        lambda: itrd.distill(Own(4), net, data="digits", **tiny),
    ):
        with pytest.raises(UserError, match=message):
            use()
    with pytest.raises(UserError, match=rf"images {kind}; bring both to one type"):
        itrd.Distiller(Own(4), None, "none", example=torch.rand(2, 3, 32, 32).to(kind))


@pytest.mark.parametrize("method", ["none", "kd", "itrd"])
def test_a_frozen_student_is_refused(method: str, tiny: dict[str, Any]) -> None:
    student = Own(6).requires_grad_(False)
    with pytest.raises(
        UserError, match=r"no parameter of the student Own asks for a gradient.*requires_grad_"
    ):
        itrd.distill(Own(12), student, data="digits", method=method, **tiny)
    with pytest.raises(UserError, match="no parameter of the student Own asks for a gradient"):
        itrd.train(student, "digits", **tiny)


def test_a_result_is_no_network(tiny: dict[str, Any]) -> None:
    result = itrd.train(Own(4), "digits", **{**tiny, "epochs": 1})
    for call in (lambda: itrd.distill(result, Own(4), "digits"), lambda: itrd.evaluate(result, "digits")):
        with pytest.raises(UserError, match=r"not Result; the trained network is its \.student"):
            call()


def test_wrong_use_is_named(tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"the given teacher \(Own\) has 7 classes and digits"):
        itrd.distill(Own(4, classes=7), Own(4), data="digits", method="kd", **tiny)
    with pytest.raises(UserError, match="the student Own has 12 and the teacher 10; give the student"):
        itrd.distill(Own(4), Own(4, classes=12), data="digits", method="kd", **tiny)
    with pytest.raises(UserError, match="name the dataset"):
        itrd.distill(Own(4), Own(4), method="kd")
    with pytest.raises(UserError, match="unknown setting 'epoch'; did you mean"):
        itrd.distill(Own(4), Own(4), data="digits", method="kd", epoch=3)
    with pytest.raises(UserError, match="unknown setting 'lr'; did you mean 'learning_rate'"):
        itrd.train(Own(4), lr=0.1)
    same = Own(4)
    with pytest.raises(UserError, match="are the same module"):
        itrd.distill(same, same, data="digits", method="kd", **tiny)
    with pytest.raises(UserError, match="track must be 'reference' or 'clean', got 'referense'"):
        itrd.distill(Own(4), Own(4), data="digits", method="kd", track="referense")
    with pytest.raises(UserError, match="no linear layer"):
        itrd.distill(
            nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()), Own(4), data="digits", method="itrd", **tiny
        )


def test_importing_the_package_is_cheap() -> None:
    code = "import itrd, sys; itrd.list_models(); itrd.list_methods(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["MobileNetV2", "ShuffleV1", "ShuffleV2", "resnet8"])
def test_a_network_given_as_a_module_has_its_name(name: str, tiny: dict[str, Any]) -> None:
    """And so the learning rate of the protocol, which is another one for some networks."""
    settings = {**tiny, "epochs": 1, "train_subset": 20, "test_subset": 20}
    by_name = itrd.train(name, "digits", **settings).record["settings"]
    given = itrd.train(itrd.create_model(name, 10), "digits", **settings).record["settings"]
    assert given == by_name
    assert given["model"] == name


def test_settings_of_the_types_that_programs_have(tiny: dict[str, Any]) -> None:
    settings = {**tiny, "epochs": np.int64(2), "milestones": (1,), "device": torch.device("cpu")}
    record = itrd.train("resnet8", "digits", **settings).record
    assert (record["settings"]["epochs"], record["settings"]["milestones"]) == (2, [1])


def test_weights_that_are_no_numbers_have_no_accuracy() -> None:
    net = itrd.create_model("resnet8", 10)
    with torch.no_grad():
        net.fc.bias.fill_(math.nan)
    with pytest.raises(UserError, match="logits that are not finite for 797 of 797 images"):
        itrd.evaluate(net, "digits")
