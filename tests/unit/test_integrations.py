"""The same loss in other people's loops."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import itrd
from itrd.engine.task import DistillTask
from itrd.errors import CheckpointError, UserError
from itrd.extras import require
from itrd.integrations.lightning import Distillation
from itrd.integrations.transformers import OBJECTIVE, DistillMixin
from itrd.methods import Batch, create_objective
from itrd.models.adapt import Adapted

CLASSES = 4
IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % CLASSES


class Net(nn.Module):
    """A classifier that knows nothing of this package."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, width, 3, stride=2)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def distiller(method: Any = "itrd", **settings: Any) -> itrd.Distiller:
    teacher, student = Net(12, seed=1), Net(6)
    torch.manual_seed(2)
    return itrd.Distiller(student, teacher, method, example=IMAGES[:4], **settings)


class Published(Net):
    """A classifier of the benchmark scripts' calling convention."""

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False) -> Any:
        maps = self.norm(self.conv(x)).relu()
        embedding = maps.mean((2, 3))
        logits = self.head(embedding)
        return ([x, maps, embedding], logits) if is_feat else logits


class Wide(Net):
    """A classifier that computes in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


# --- anyone's loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize(
    ("kind", "method"),
    [(Net, "kd"), (Net, "itrd"), (Net, "none"), (Published, "itrd"), (Published, "attention")],
)
def test_a_copy_trains_its_own_student(again: Any, kind: type[Net], method: str) -> None:
    teacher = Adapted(kind(6, seed=1), mean=[0.5] * 3, std=[0.25] * 3, net_mean=[0.4] * 3)
    first = itrd.Distiller(kind(6), teacher, method, example=IMAGES[:4]).train()
    second = again(first)
    loss = second(IMAGES, LABELS).loss
    loss.backward()
    assert all(p.grad is None for p in first.parameters())
    assert all(p.grad is not None for p in second.student.parameters())
    counts = [int(d.student.norm.num_batches_tracked) for d in (first, second)]
    assert counts == [0, 1]
    assert torch.equal(loss, first(IMAGES, LABELS).loss)
    assert second.task.teacher is None or second.task.teacher is not teacher


@pytest.mark.parametrize("method", ["kd", "itrd", "0.5*ce + pkt + 2*rkd"])
def test_it_is_the_loss_of_the_engine(method: str) -> None:
    ours = distiller(method).train()
    task = DistillTask(Net(6), Net(12, seed=1), create_objective(method))
    torch.manual_seed(2)
    task.setup(IMAGES[:4], CLASSES, LABELS)
    task.train()
    batch = Batch(LABELS[:8], torch.arange(8))
    expected = task(IMAGES[:8], batch)
    found = ours(IMAGES[:8], LABELS[:8])
    assert torch.equal(found.loss, expected.loss)
    assert found.terms.keys() == expected.terms.keys()
    assert torch.equal(found.logits, expected.logits)
    for each in (found, expected):
        each.loss.backward()
    for mine, theirs in zip(ours.parameters(), task.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_teacher_is_frozen_and_follows() -> None:
    made = distiller("itrd").train()
    teacher = made.task.teacher
    assert teacher is not None
    assert not teacher.training
    assert made.student.training
    assert not any(p.requires_grad for p in teacher.parameters())
    inside = {id(p) for p in made.parameters()}
    assert not inside & {id(p) for p in teacher.parameters()}
    assert {key.split(".")[1] for key in made.state_dict()} <= {"student", "objective"}
    made.double()
    assert made(IMAGES[:4].double(), LABELS[:4]).loss.dtype == torch.float64
    assert teacher.head.weight.dtype == torch.float64


@pytest.mark.parametrize("method", ["kd", "itrd", "hint", "vid", "crd(K=6)", "ofd"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_other_types(method: str, late: bool, kind: torch.dtype) -> None:
    """The method's own modules are of the student's type, but of no less than float32."""
    nets = [itrd.create_model(name, CLASSES) for name in ("resnet8", "resnet8x4")]
    images = torch.rand(8, 3, 32, 32)
    if not late:
        nets, images = [net.to(kind) for net in nets], images.to(kind)
    labels = torch.arange(8) % CLASSES
    made = itrd.Distiller(*nets, method, example=images[:4], train_labels=labels)
    if late:
        made, images = made.to(kind), images.to(kind)
    assert {p.dtype for p in made.student.parameters()} == {kind}
    own = torch.promote_types(kind, torch.float32)
    assert {p.dtype for p in made.objective.parameters()} <= {own}
    output = made.train()(images, labels, torch.arange(8))
    assert output.loss.dtype == own
    assert output.loss.isfinite()
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.objective.parameters())
    made.eval()(images, labels, torch.arange(8))


def test_half_precision_leaves_the_methods_own_weights_as_they_are() -> None:
    made = distiller("itrd")
    before = [p.clone() for p in made.objective.parameters()]
    made.bfloat16()
    assert all(torch.equal(a, b) for a, b in zip(before, made.objective.parameters(), strict=True))
    made.double()
    assert all(p.dtype == torch.float64 for p in made.objective.parameters())


def test_a_teacher_of_another_type_than_the_students() -> None:
    made = itrd.Distiller(Net(6), Wide(12).double(), "itrd", example=IMAGES[:4])
    assert made(IMAGES, LABELS).loss.dtype == torch.float32


def test_methods_own_modules_are_trained() -> None:
    made = distiller("crd(K=6)", train_labels=LABELS)
    own = list(made.objective.parameters())
    assert own
    before = [p.clone() for p in own]
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    made.train()(IMAGES, LABELS, torch.arange(16)).loss.backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(own, before, strict=True))


def test_teacher_by_name_and_student_alone(teacher_folder: Path) -> None:
    images = torch.rand(4, 3, 32, 32)
    student = itrd.create_model("resnet8", 10)
    made = itrd.Distiller(student, str(teacher_folder), "kd", example=images)
    assert made.task.teacher is not None
    alone = itrd.Distiller(student, None, "none", example=images)
    labels = torch.arange(4)
    expected = F.cross_entropy(student(images), labels)
    assert alone(images, labels).loss == expected


@pytest.mark.parametrize("method", ["kd", "itrd", "none"])
def test_labels_of_other_forms_for_methods_that_do_not_look_at_them(method: str) -> None:
    """Cross-entropy takes probabilities, leaves out the label -100, and takes bytes."""
    made = distiller(method).eval()
    plain = made(IMAGES, LABELS).loss
    for same in (F.one_hot(LABELS, CLASSES).float(), LABELS.byte()):
        assert made(IMAGES, same).loss.item() == pytest.approx(plain.item(), rel=1e-6)
    some = LABELS.clone()
    some[3] = -100
    assert made(IMAGES, some).loss.isfinite()


@pytest.mark.parametrize("labels", [F.one_hot(LABELS, CLASSES).float(), torch.full((16,), -100)])
def test_labels_that_a_method_looks_at_are_classes(labels: Tensor) -> None:
    with pytest.raises(UserError, match=r"needs one class an image|there is a label -100"):
        distiller("dkd")(IMAGES, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (F.one_hot(LABELS, CLASSES + 1).float(), r"\(16, 4\), not \(16, 5\)|needs one class an image"),
        (LABELS.int(), r"not torch.int32 of shape \(16,\); convert them with .long"),
        (LABELS[:8], r"of shape \(16,\), not torch.int64 of shape \(8,\)"),
        (torch.full((16,), -1), "from 0 to 3, and there is a label -1"),
        (LABELS + 1, "from 0 to 3, and there is a label 4"),
    ],
)
@pytest.mark.parametrize("method", ["kd", "dkd", "none"])
def test_labels_of_another_form(method: str, labels: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        distiller(method)(IMAGES, labels)


def test_warm_up_reaches_the_method() -> None:
    nets = itrd.create_model("resnet8", CLASSES), itrd.create_model("resnet8", CLASSES)
    made = itrd.Distiller(*nets, "reviewkd", example=torch.rand(2, 3, 32, 32))
    made.start_epoch(6, 30)
    assert made.objective.methods[0].warmup == pytest.approx(5 / 20)


@pytest.mark.parametrize("method", ["abound", "factor", "fsp"])
def test_first_stages_are_refused(method: str) -> None:
    nets = itrd.create_model("resnet8", CLASSES), itrd.create_model("resnet8", CLASSES)
    with pytest.raises(UserError, match=f"'{method}' trains parts .* use itrd.distill"):
        itrd.Distiller(*nets, method, example=torch.rand(2, 3, 32, 32))


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="give train_labels"):
        distiller("kd + 0.8*crd")
    with pytest.raises(UserError, match="must bring the samples' indices"):
        distiller("crd(K=6)", train_labels=LABELS)(IMAGES, LABELS)
    net = Net(4)
    with pytest.raises(UserError, match="same module or share"):
        itrd.Distiller(net, net, "kd", example=IMAGES[:2])
    with pytest.raises(UserError, match="needs a teacher"):
        itrd.Distiller(net, None, "kd", example=IMAGES[:2])
    wide = Net(4)
    wide.head = nn.Linear(4, CLASSES + 1)
    for pair, counts in (((net, wide), "4 and the teacher 5"), ((wide, net), "5 and the teacher 4")):
        pair[0].requires_grad_()  # as a teacher it was frozen
        with pytest.raises(UserError, match=f"the student Net has {counts}"):
            itrd.Distiller(*pair, "kd", example=IMAGES[:2])
    with pytest.raises(UserError, match=r"needs no_such_library.*pip install 'itrd\[hub\]'"):
        require("no_such_library", extra="hub")


@pytest.mark.parametrize(
    ("library", "module"), [("lightning", "lightning"), ("transformers", "transformers")]
)
def test_missing_library_names_the_extra(library: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"itrd.integrations.{module}")
    with pytest.raises(UserError, match=rf"pip install 'itrd\[{library}\]'"):
        importlib.import_module(f"itrd.integrations.{module}")


@pytest.mark.parametrize(("library", "used"), [("lightning", "LightningModule"), ("transformers", "Trainer")])
def test_broken_library_is_one_sentence(library: str, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name == used:
                raise ModuleNotFoundError("see above") from RuntimeError(
                    "operator nms does not exist\nat all"
                )
            raise AttributeError(name)

    monkeypatch.setitem(sys.modules, library, Broken(library))
    monkeypatch.delitem(sys.modules, f"itrd.integrations.{library}")
    with pytest.raises(ImportError, match=r"\(operator nms does not exist\); install .*--upgrade") as raised:
        importlib.import_module(f"itrd.integrations.{library}")
    assert isinstance(raised.value, UserError)


# --- Lightning ---------------------------------------------------------------------------------------------


def loader(shuffle: bool = False) -> DataLoader:
    return DataLoader(TensorDataset(IMAGES, LABELS, torch.arange(16)), batch_size=8, shuffle=shuffle)


def trainer(folder: Path, epochs: int = 2, **settings: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, **{**quiet, **settings}
    )


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_lightning_trains_student_and_modules(tmp_path: Path) -> None:
    teacher, student = Net(12, seed=1), Net(6)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    start = student.head.weight.clone()
    module = Distillation(student, teacher, "kd + crd(K=6)", train_labels=LABELS)
    fitted = trainer(tmp_path)
    fitted.fit(module, loader(shuffle=True), loader())
    assert not torch.equal(student.head.weight, start)
    assert not teacher.training
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key])
    logged = fitted.callback_metrics
    assert {"train/loss", "train/ce", "train/kd", "train/crd", "train/top1", "val/loss", "val/top1"} <= set(
        logged
    )
    weighted = logged["train/ce"] + logged["train/kd"] + 0.8 * logged["train/crd"]
    assert logged["train/loss"] == pytest.approx(weighted.item(), rel=1e-5)
    with torch.no_grad():
        top1 = 100 * (student.eval()(IMAGES).argmax(1) == LABELS).float().mean()
    assert logged["val/top1"] == pytest.approx(top1.item())
    assert module.student is student
    trained = {id(p) for group in fitted.optimizers[0].param_groups for p in group["params"]}
    assert {id(p) for p in module.distiller.objective.parameters()} <= trained
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert not any(value.shape == teacher.head.weight.shape for value in saved.values())
    assert any("objective" in key for key in saved)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class Seeded(lightning.Callback):
    """Negatives are drawn from the global generator, which Lightning does not restore."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        torch.manual_seed(trainer.global_step)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_lightning_resumes_with_the_methods_modules(tmp_path: Path) -> None:
    def module(seed: int) -> Distillation:
        teacher, student = Net(12, seed=1), Net(6, seed)
        settings: dict[str, Any] = {"train_labels": LABELS, "example": IMAGES[:4], "optimizer": sgd}
        return Distillation(student, teacher, "itrd + crd(K=6)", **settings)

    whole, first, second = module(0), module(0), module(9)
    trainer(tmp_path / "w", 2, callbacks=[Seeded()]).fit(whole, loader())
    half = trainer(tmp_path / "f", 1, callbacks=[Seeded()])
    half.fit(first, loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path / "s", 2, callbacks=[Seeded()]).fit(second, loader(), ckpt_path=tmp_path / "half.ckpt")
    expected = whole.state_dict()
    for key, value in second.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_lightning_looks_at_the_first_batch_without_a_trace(tmp_path: Path) -> None:
    weights = []
    for example in (None, IMAGES[:4]):
        student = Net(6)
        module = Distillation(student, Net(12, seed=1), "kd", example=example, optimizer=sgd)
        torch.manual_seed(4)
        trainer(tmp_path, 1, enable_checkpointing=False).fit(module, loader(shuffle=True))
        weights.append(student.head.weight)
    assert torch.equal(*weights)


def test_lightning_default_schedule(tmp_path: Path) -> None:
    module = Distillation(Net(6), Net(12, seed=1), "kd", example=IMAGES[:4])
    seeded = Seeded()
    trainer(tmp_path, 8, limit_train_batches=1, enable_checkpointing=False, callbacks=[seeded]).fit(
        module, loader()
    )
    assert seeded.rates == pytest.approx([0.05] * 5 + [5e-3, 5e-4, 5e-5])


def test_lightning_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="max_epochs"):
        trainer(tmp_path, -1, max_steps=2).fit(Distillation(Net(6), Net(12), "kd"), loader())
    with pytest.raises(UserError, match="not built yet"):
        Distillation(Net(6), Net(12), "kd")(IMAGES)
    module = Distillation(Net(6), Net(12), "crd(K=6)", example=IMAGES[:4], train_labels=LABELS)
    monkeypatch.setattr(lightning.Trainer, "world_size", 2)
    with pytest.raises(UserError, match="use devices=1"):
        trainer(tmp_path).fit(module, loader())


# --- transformers ------------------------------------------------------------------------------------------


class Loop:
    """What the mix-in asks of a Trainer, without the rest: batches of 8 in order, checkpoints every epoch."""

    def __init__(self, model: nn.Module, args: Any, train_dataset: Any, **_: Any) -> None:
        self.model, self.args, self.train_dataset, self.model_init = model, args, train_dataset, None
        self.optimizer: Any = None
        self.label_names: list[str] = []
        self.accelerator = SimpleNamespace(autocast=lambda: autocast())
        self.callbacks: list[Any] = []
        self.logged: list[dict[str, float]] = []

    def data_collator(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        if self.optimizer is None:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.logged.append(logs)

    def train(self, resume_from_checkpoint: Any = None) -> None:
        self.create_optimizer()
        state = SimpleNamespace(
            epoch=0.0, global_step=0, num_train_epochs=self.args.epochs, is_world_process_zero=True
        )
        if resume_from_checkpoint:
            saved = torch.load(Path(resume_from_checkpoint) / "loop.pt")
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            state.epoch = saved["epoch"]
        for epoch in range(int(state.epoch), self.args.epochs):
            torch.manual_seed(epoch)
            for callback in self.callbacks:
                callback.on_epoch_begin(self.args, state, None, model=self.model)
            self.model.train()
            for start in (0, 8):
                samples = [self.train_dataset[i] for i in range(start, start + 8)]
                loss = self.compute_loss(self.model, self.data_collator(samples), num_items_in_batch=8)  # type: ignore[attr-defined]
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                state.global_step += 1
            state.epoch = epoch + 1.0
            self.log({"loss": loss.item()}, start_time=0.0)
            folder = Path(self.args.output_dir) / f"checkpoint-{state.global_step}"
            folder.mkdir(parents=True)
            states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save({**states, "epoch": state.epoch}, folder / "loop.pt")
            for callback in self.callbacks:
                callback.on_save(self.args, state, None)


def autocast() -> AbstractContextManager[None]:
    return nullcontext()


class Distilling(DistillMixin, Loop):
    pass


SAMPLES = [{"pixel_values": IMAGES[i], "labels": LABELS[i], "indices": torch.tensor(i)} for i in range(16)]
MEMORY = {"train_labels": LABELS}


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(
        "itrd.integrations.transformers.find_spec", lambda name: name
    )  # as if there were accelerate
    return SimpleNamespace(
        epochs=2, output_dir=str(tmp_path), device="cpu", world_size=1, n_gpu=0, weight_decay=0.1
    )


def distilling(arguments: Any, method: str = "itrd + crd(K=6)", **settings: Any) -> Distilling:
    torch.manual_seed(5)
    student, teacher = Net(6), Net(12, seed=1)
    return Distilling(
        model=student, teacher=teacher, method=method, distillation=MEMORY, args=arguments,
        **{"train_dataset": SAMPLES, **settings},
    )  # fmt: skip


def test_mixin_distils_and_logs(arguments: Any) -> None:
    loop = distilling(arguments)
    start = loop.model.head.weight.clone()
    loop.train()
    assert not torch.equal(loop.model.head.weight, start)
    assert set(loop.logged[0]) == {"loss", "term/ce", "term/itrd.corr", "term/itrd.mutual", "term/crd"}
    assert loop.distiller is not None
    student, own = loop.optimizer.param_groups
    assert {id(p) for p in own["params"]} == {id(p) for p in loop.distiller.objective.parameters()}
    assert own["weight_decay"] == 0.1
    assert {id(p) for p in student["params"]} == {id(p) for p in loop.model.parameters()}
    # A mean over the batch, which the Trainer must divide where it accumulates gradients.
    assert loop.model_accepts_loss_kwargs is False
    assert loop.loss_is_scaled_for_ga is False


def test_mixin_loss_is_that_of_the_distiller(arguments: Any) -> None:
    loop = distilling(arguments, "kd")
    expected = distiller("kd").train()
    batch = loop.data_collator(SAMPLES[:8])
    loop.model.train()
    assert loop.compute_loss(loop.model, batch) == expected(IMAGES[:8], LABELS[:8]).loss
    loop.model.eval()
    loss, outputs = loop.compute_loss(loop.model, batch, return_outputs=True)
    with torch.no_grad():
        logits = loop.model(IMAGES[:8])
    assert loss == F.cross_entropy(logits, LABELS[:8])  # without the teacher
    assert list(outputs) == ["loss", "logits"]
    assert torch.equal(outputs["logits"], logits)


def test_mixin_resumes_with_the_methods_modules(arguments: Any, tmp_path: Path) -> None:
    whole = distilling(arguments)
    whole.train()
    arguments.output_dir = str(tmp_path / "again")
    resumed = distilling(arguments)
    resumed.train(str(tmp_path / "checkpoint-2"))
    assert (tmp_path / "checkpoint-2" / OBJECTIVE).is_file()
    assert whole.distiller is not None
    assert resumed.distiller is not None
    expected = whole.distiller.state_dict()
    for key, value in resumed.distiller.state_dict().items():
        assert torch.equal(value, expected[key]), key
    other = distilling(arguments, "rkd + crd(K=6, feat_dim=5)")
    with pytest.raises(CheckpointError, match="another method"):
        other.train(str(tmp_path / "checkpoint-2"))


def test_mixin_refusals(arguments: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = distilling(
        arguments, train_dataset=[{k: s[k] for k in ("pixel_values", "labels")} for s in SAMPLES]
    )
    with pytest.raises(UserError, match="must bring the samples' indices"):
        loop.train()
    given = distilling(arguments)
    given.optimizer = torch.optim.SGD(given.model.parameters(), lr=0.1)
    with pytest.raises(UserError, match="optimizer does not know"):
        given.train()
    arguments.n_gpu = 2
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        distilling(arguments)
    monkeypatch.setattr("itrd.integrations.transformers.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs accelerate"):
        distilling(arguments)


@pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="transformers.Trainer needs accelerate"
)
def test_the_real_trainer(tmp_path: Path) -> None:
    from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

    from itrd.integrations.transformers import DistillTrainer

    def vit(width: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1}
        shape = {"image_size": 8, "patch_size": 4, "num_labels": CLASSES}
        return ViTForImageClassification(ViTConfig(**sizes, **shape, num_attention_heads=2))

    def fit(folder: Path, resume: str | None = None, **more: Any) -> DistillTrainer:
        arguments = TrainingArguments(
            str(folder), num_train_epochs=2, per_device_train_batch_size=4, save_strategy="epoch", report_to="none",
            use_cpu=True, remove_unused_columns=False, disable_tqdm=True, logging_steps=1, **more,
        )  # fmt: skip
        made = DistillTrainer(
            model=vit(8, 0), teacher=vit(16, 1), method="itrd + crd(K=6)", distillation=MEMORY, args=arguments,
            train_dataset=SAMPLES, eval_dataset=SAMPLES,
        )  # fmt: skip
        made.train(resume)
        return made

    quiet: dict[str, Any] = {
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    plain = DistillTrainer(
        model=Net(6), teacher=Net(12), method="kd", args=TrainingArguments(str(tmp_path), max_steps=2, **quiet),
        train_dataset=SAMPLES, eval_dataset=SAMPLES,
    )  # fmt: skip
    plain.train()
    assert plain.evaluate()["eval_loss"] > 0
    whole = fit(tmp_path / "whole", gradient_accumulation_steps=2)
    assert {"term/crd", "term/ce"} <= set(whole.state.log_history[0])
    assert whole.evaluate()["eval_loss"] > 0
    (first, _) = sorted(
        (tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    assert (first / OBJECTIVE).is_file()
    resumed = fit(tmp_path / "again", str(first), gradient_accumulation_steps=2)
    assert resumed.state.global_step == whole.state.global_step
    assert resumed.distiller is not None
