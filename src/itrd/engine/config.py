"""Typed settings of a run. No torch here: the command line is built from these classes.

Defaults are the CIFAR-100 protocol that the published tables share (240 epochs, batch 64, SGD).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from itrd.errors import UserError
from itrd.typecheck import check_types

if TYPE_CHECKING:
    from typing_extensions import Self

PROTOCOL_DATA = "cifar100"
PROTOCOL_EPOCHS = 240
PROTOCOL_MILESTONES = (150, 180, 210)

# Networks that the protocol trains at 0.01 instead of 0.05.
SLOW_LEARNERS = ("MobileNetV2", "ShuffleV1", "ShuffleV2")

# What a name of a network of another library begins with, before the colon (:mod:`itrd.engine.hubs`).
LIBRARIES = ("timm", "torchvision", "hf")

# Settings that say where and how a run executes, not what it computes; a resumed run may change them. Of on_nonfinite
# and compile the record says by itself whether they made a difference (skipped_steps, compile).
INCIDENTAL = frozenset(
    {"teacher_table", "fill_table", "out", "resume", "device", "deterministic", "on_nonfinite", "capture"}
    | {"tensorboard", "data_root", "download", "progress", "profile", "control", "seeds", "compile"}
    | {"resident", "workers", "strict"}
)

# Settings that are younger than the first records. Left out of a run's identity while they are at their default, so
# that the records and run folders from before them stay what they are.
_YOUNGER = frozenset(
    {"schedule", "warmup_epochs", "normalisation", "teacher_taps", "student_taps"}
    | {"teacher_size", "teacher_mean", "teacher_std"}
    | {"accumulate", "ema", "label_smoothing", "max_grad_norm", "sync_batch_norm"}
    | {"image_size", "augment", "flip", "val_fraction", "test_split", "image_column", "label_column"}
    | {"teacher_logits"}
)


@dataclass(kw_only=True)
class RunConfig:
    """What training a teacher and distilling a student have in common.

    Args:
        data: dataset: cifar100, cifar10 or digits; or a folder of images, a folder or file of Parquet, a folder that
            the datasets library saved, or hf:ORG/NAME of the Hugging Face hub (default: what the teacher was trained
            on; without one cifar100).
        data_root: folder that holds the datasets.
        download: fetch the dataset first if it is not there.
        train_subset: train on this many images, the same number of each class (default: all).
        test_subset: test on this many images, the same number of each class (default: all).
        image_size: side of the square that images are brought to (default: chosen from the images' sizes, at most 224;
            a named dataset keeps its own).
        augment: how training images are varied: crop (pad, crop, mirror), resized_crop (a random part of a photograph),
            randaugment, trivialaugment or autoaugment on top of it, or none; auto is crop up to 64 pixels, and
            resized_crop above.
        flip: mirror training images at random (default: yes, but for digits).
        val_fraction: share of each class that is held out for the test where the data has no test images.
        test_split: folder or split to test on (default: the first of val, validation, valid and test that is there;
            among folders then eval and testing).
        image_column: column of a table that holds the images (default: found by type and name).
        label_column: column of a table that holds the labels (default: found by type and name).
        resident: decode all images once and keep them on the device (yes), read them in every epoch (no), or keep
            what needs no more than 2 GiB and is augmented by crops (auto).
        workers: processes that read images which are not kept (default: none on a CPU, up to 8 beside a GPU).
        strict: stop at an image that cannot be decoded, instead of leaving it out.
        epochs: passes over the training set.
        normalisation: mean and deviation of the pixels that images are normalised with: the dataset's own, or imagenet.
        batch_size: images per step, of all processes together; the last, smaller batch of an epoch is kept.
        accumulate: number of micro-batches that a batch is computed in, one after another, to save memory.
        learning_rate: initial rate (default: 0.05; 0.01 for MobileNetV2, ShuffleV1 and ShuffleV2).
        schedule: step, which multiplies the rate by lr_decay at milestones; or cosine, which takes it down to zero.
        warmup_epochs: epochs over which the rate first rises in equal steps, up to the initial rate in the last.
        milestones: epochs after which the rate is multiplied by lr_decay (default: 5/8, 6/8 and 7/8 of the
            epochs, which for 240 are the protocol's [150,180,210]).
        lr_decay: factor applied at each milestone.
        momentum: SGD momentum.
        weight_decay: L2 penalty on every parameter.
        nesterov: Nesterov momentum.
        label_smoothing: part of the labels' probability that the cross-entropy spreads evenly over all classes.
        max_grad_norm: scale a step's gradients down to this norm where theirs is larger (default: never).
        ema: decay of a moving average of the student's weights, evaluated and saved beside them (default: none).
        seed: seed of weights, data order and augmentation.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32; tf32, which on recent GPUs rounds the factors of products to 10 bits; or bf16 automatic mixed
            precision.
        deterministic: equal bits from run to run on the same machine, also on a GPU, at the price of speed.
        on_nonfinite: what a loss or gradient that is not finite does: stop the run, or skip the step and count it.
        compile: compile student, teacher and loss with torch.compile.
        sync_batch_norm: with several processes on GPUs, compute the student's batch norms over the whole batch.
        capture: on a GPU, record the training step once as a CUDA graph and replay it.
        channels_last: keep images and weights in channels-last order, which is faster on most hardware.
        out: run folder (default: runs/ followed by a name made from the settings).
        resume: continue the run that this folder holds.
        tensorboard: write TensorBoard events into the run folder.
        progress: show a live progress display.
        profile: instead of the run, record 20 steps of it, print where the time goes, and write this trace file.
    """

    data: str | None = None
    data_root: str = "data"
    download: bool = False
    train_subset: int | None = None
    test_subset: int | None = None
    normalisation: Literal["dataset", "imagenet"] = "dataset"
    image_size: int | None = None
    augment: Literal[
        "auto", "none", "crop", "resized_crop", "randaugment", "trivialaugment", "autoaugment"
    ] = "auto"
    flip: bool | None = None
    val_fraction: float = 0.2
    test_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    resident: Literal["auto", "yes", "no"] = "auto"
    workers: int | None = None
    strict: bool = False
    epochs: int = PROTOCOL_EPOCHS
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float | None = None
    schedule: Literal["step", "cosine"] = "step"
    warmup_epochs: int = 0
    milestones: list[int] | None = None
    lr_decay: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    label_smoothing: float = 0.0
    max_grad_norm: float | None = None
    ema: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    deterministic: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    compile: bool = False
    sync_batch_norm: bool = False
    capture: bool = True
    channels_last: bool = True
    out: str | None = None
    resume: bool = False
    tensorboard: bool = True
    progress: bool = True
    profile: str | None = None

    def __post_init__(self) -> None:
        check_types(type(self).__name__, get_type_hints(type(self)), dataclasses.asdict(self))
        if self.image_size is not None and self.image_size < 8:
            raise UserError(f"image_size must be at least 8, got {self.image_size}")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"val_fraction must be between 0 and 1, got {self.val_fraction}")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers must not be negative, got {self.workers}")
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise UserError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 < self.lr_decay <= 1:
            raise UserError(f"lr_decay must be between 0 and 1, got {self.lr_decay}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        if self.weight_decay < 0:
            raise UserError(f"weight_decay must not be negative, got {self.weight_decay}")
        if self.resume and self.out == "":
            raise UserError("resume needs out, the folder of the run to be continued")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise UserError(f"max_grad_norm must be positive, got {self.max_grad_norm}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"ema, the decay of the average, must be between 0 and 1, got {self.ema}")
        if 2 * self.accumulate > max(self.batch_size, 2):
            raise UserError(
                f"accumulate {self.accumulate} leaves fewer than 2 images of a batch of {self.batch_size} to each "
                "micro-batch; choose a smaller one"
            )
        if self.nesterov and not self.momentum > 0:
            raise UserError("nesterov needs a momentum above 0")
        if self.milestones is not None and sorted(set(self.milestones)) != list(self.milestones):
            raise UserError(f"milestones must increase, got {self.milestones}")
        if self.milestones is not None and self.schedule != "step":
            raise UserError(f"the {self.schedule} schedule has no milestones; leave them out, or choose step")
        if not 0 <= self.warmup_epochs < max(self.epochs, 1):
            raise UserError(
                f"warmup_epochs must be between 0 and epochs - 1, got {self.warmup_epochs} of {self.epochs}"
            )

    @property
    def trained_model(self) -> str:
        """Name of the network that this run trains."""
        raise NotImplementedError

    @property
    def initial_weights(self) -> str | None:
        """Where the name of the network to be trained says that its first weights come from; None for fresh ones."""
        prefix, _, rest = self.trained_model.partition(":")
        weights = rest.partition("@")[2] if prefix in LIBRARIES else rest
        return weights or None

    def resolved(self) -> Self:
        """Return a copy in which every default that depends on other settings is written out."""
        rate = self.learning_rate
        if rate is None:
            rate = 0.01 if self.trained_model.partition(":")[0] in SLOW_LEARNERS else 0.05
        milestones = self.milestones
        if milestones is None and self.schedule == "step":
            scaled = (round(self.epochs * m / PROTOCOL_EPOCHS) for m in PROTOCOL_MILESTONES)
            milestones = sorted({m for m in scaled if m >= 1})
        return dataclasses.replace(
            self, data=self.data or PROTOCOL_DATA, learning_rate=rate, milestones=milestones
        )

    def identity(self) -> dict[str, Any]:
        """Every setting that decides the result; two runs of equal identity are the same run."""
        values = dataclasses.asdict(self)
        absent = {
            f.name for f in dataclasses.fields(self) if f.name in _YOUNGER and values[f.name] == f.default
        }
        return {key: value for key, value in values.items() if key not in INCIDENTAL | absent}

    def run_name(self) -> str:
        """Name of the default run folder."""
        raise NotImplementedError

    def protocol(self) -> str:
        """Label the run: ``protocol`` for the published CIFAR-100 recipe, else ``custom``.

        A precision other than the published fp32 is part of the label: ``protocol, bf16``. So are the clean track,
        logits of somebody else's teacher, a teacher that is shown other images than the student, and a network that
        starts from weights of a file. What a run did is looked at in :func:`itrd.engine.record.label_of`.
        """
        mine = self.resolved()
        defaults: dict[str, Any] = {
            f.name: f.default for f in dataclasses.fields(RunConfig) if f.name in _SCHEDULE
        }
        published = dataclasses.replace(mine, **defaults, data=PROTOCOL_DATA).resolved()
        if mine != published:
            return "custom"
        deviations: list[str] = [self.precision] if self.precision != "fp32" else []
        if getattr(self, "track", "reference") != "reference":
            deviations.append("clean track")
        if getattr(self, "teacher_logits", None) is not None:
            deviations.append("given logits")
        if any(getattr(self, f"teacher_{what}", None) is not None for what in ("size", "mean", "std")):
            deviations.append("teacher's own images")
        if self.initial_weights is not None:
            deviations.append("pretrained")
        return ", ".join(["protocol", *deviations])


# What the published schedule fixes; anything else here makes a run another track.
_SCHEDULE = (
    *("train_subset", "test_subset", "epochs", "batch_size", "learning_rate", "milestones", "lr_decay"),
    *("momentum", "weight_decay", "nesterov", "schedule", "warmup_epochs", "normalisation"),
    *("accumulate", "label_smoothing", "max_grad_norm", "sync_batch_norm"),
    *("image_size", "augment", "flip"),
)


@dataclass(kw_only=True)
class TrainConfig(RunConfig):
    """Train one network on labels alone.

    Args:
        model: name of the network (`itrd models` lists them), with fresh weights; NAME:FILE or NAME:RUN_FOLDER to
            start from trained ones. Or timm:NAME, torchvision:NAME, hf:ORG/NAME, with fresh weights unless @pretrained
            or @FILE follows.
    """

    model: str

    @property
    def trained_model(self) -> str:
        """The network."""
        return self.model

    def run_name(self) -> str:
        """``data-model-seedN``."""
        return f"{_tidy(str(self.data))}-{_tidy_network(self.model)}-seed{self.seed}"


@dataclass(kw_only=True)
class DistillConfig(RunConfig):
    """Train a student with the help of a frozen teacher.

    Args:
        teacher: run folder or checkpoint of the teacher (.pth or .safetensors), NAME:FILE where the file does not tell
            the architecture, or the name of a network whose weights are in the zoo, whose published checkpoint lies
            under save/models, or which `itrd train --model NAME` has trained. Or a library's pretrained network:
            timm:NAME, torchvision:NAME, hf:ORG/NAME, each with @FILE for other weights.
        student: name of the network to train (`itrd models` lists them), with fresh weights; NAME:FILE or
            NAME:RUN_FOLDER to start from trained ones. Or timm:NAME, torchvision:NAME, hf:ORG/NAME, with fresh weights
            unless @pretrained or @FILE follows.
        method: what to add to the cross-entropy: a method (`itrd methods` lists them), with settings as in
            itrd(alpha=1.5), or a weighted sum such as kd + 0.8*itrd or 0.1*ce + 0.9*kd.
        ce_weight: weight of the cross-entropy (default: the method's published weight; 1 in sums).
        teacher_table: folder for tables of teacher outputs: where the method reads only logits and embedding, each
            (image, view) is then computed once and looked up ever after, also by later runs of any method
            and seed (default: run the teacher at every step).
        fill_table: before the first epoch, compute what the table still lacks of all views of all images.
        teacher_logits: file with the teacher's logits of the training images, .npy or .safetensors, of shape (images,
            classes) or (images, views, classes), in place of a teacher; for methods that read nothing else of it.
        track: reference reproduces the published code's side effects on batch norms; clean avoids them.
        teacher_taps: modules of the teacher whose outputs are its feature maps, shallow to deep, as in [layer3,layer4];
            embedding=PATH names the module whose output is the embedding (default: a benchmark network's own
            maps, otherwise chosen automatically and printed).
        student_taps: the same of the student; equally many.
        teacher_size: height and width of the images that the teacher expects; the student's are resized for it
            (default: what the teacher's library says, otherwise the student's).
        teacher_mean: mean of each channel, of pixels in 0..1, that the teacher's images are normalised with
            (default: what the teacher's library says, otherwise the student's).
        teacher_std: the deviation that belongs to teacher_mean.
        control: also train the student alone, with the same seeds, initial weights, data order and epochs, and
            report the difference.
        seeds: number of runs, with the seeds from seed on.
    """

    teacher: str = ""
    student: str
    method: str = "itrd"
    ce_weight: float | None = None
    track: Literal["reference", "clean"] = "reference"
    teacher_table: str | None = None
    fill_table: bool = False
    teacher_logits: str | None = None
    teacher_taps: list[str] | None = None
    student_taps: list[str] | None = None
    teacher_size: int | None = None
    teacher_mean: list[float] | None = None
    teacher_std: list[float] | None = None
    control: bool = False
    seeds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher and self.teacher_logits is not None:
            raise UserError("give either a teacher or teacher_logits, which stand in its place")
        if self.teacher_table is not None and self.teacher_logits is not None:
            raise UserError("teacher_logits are a table already; leave teacher_table out")
        for name in ("teacher_taps", "student_taps"):
            taps = getattr(self, name)
            if taps is not None and (not taps or "" in taps or len(set(taps)) < len(taps)):
                raise UserError(
                    f"{name} must be a list of different modules, as in [layer3,layer4], got {taps}"
                )
        if self.teacher_size is not None and self.teacher_size < 1:
            raise UserError(f"teacher_size must be at least 1, got {self.teacher_size}")
        if any(std <= 0 for std in self.teacher_std or ()):
            raise UserError(f"teacher_std must be positive, got {self.teacher_std}")
        if self.ce_weight is not None and self.ce_weight < 0:
            raise UserError(f"ce_weight must not be negative, got {self.ce_weight}")
        if self.fill_table and self.teacher_table is None:
            raise UserError("fill_table needs teacher_table, the folder for the table")
        if self.seeds < 1:
            raise UserError(f"seeds must be at least 1, got {self.seeds}")
        if self.profile is not None and (self.control or self.seeds > 1):
            raise UserError("profile records one run; leave out control and seeds")
        if self.profile is not None and self.teacher_logits is not None:
            raise UserError(
                "profile trains on a part of the images, and teacher_logits are of all; give a teacher"
            )

    @property
    def trained_model(self) -> str:
        """The student."""
        return self.student

    def run_name(self) -> str:
        """``data-teacher-student-method-seedN``."""
        given = _tidy(str(self.data)), _tidy_network(self.teacher or str(self.teacher_logits))
        return "-".join([*given, _tidy_network(self.student), _tidy(self.method), f"seed{self.seed}"])


def _tidy(text: str) -> str:
    text = text.rstrip("/").rpartition("/")[2] if "/" in text else text
    return "".join(c if c.isalnum() or c in "_.=" else "_" for c in text).strip("_")


def _tidy_network(name: str) -> str:
    """Name the network, and behind it the file that its weights are from."""
    prefix, _, rest = name.partition(":")
    if prefix in LIBRARIES:
        network, _, weights = rest.partition("@")
        return "_".join(map(_tidy, filter(None, (f"{prefix}:{network}", weights))))
    return "_".join(map(_tidy, filter(None, (prefix, rest))))
