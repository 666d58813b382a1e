"""AB against sums over single neurons, and what its two stages train."""

from __future__ import annotations

import pytest
import torch

from itrd.engine.config import TrainConfig
from itrd.engine.stages import stages_of
from itrd.engine.task import DistillTask
from itrd.errors import UserError
from itrd.methods import Batch, create_method, create_objective
from itrd.methods.abound import boundary_loss
from itrd.models import create_model
from itrd.models.base import Outputs
from method_tools import first_stage_steps, main_steps, moved_by, setup_for, small_batch, small_task


def literal(maps_s: list[torch.Tensor], maps_t: list[torch.Tensor]) -> float:
    total, n = 0.0, len(maps_s)
    for i, (map_s, map_t) in enumerate(zip(maps_s, maps_t, strict=True)):
        neurons = 0.0
        for s, t in zip(map_s.flatten().tolist(), map_t.flatten().tolist(), strict=True):
            if t > 0 and s <= 1:
                neurons += (s - 1) ** 2
            if t <= 0 and s > -1:
                neurons += (s + 1) ** 2
        total += 2 ** (i - n + 1) * neurons / len(map_s) / 1000 * 3
    return total


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_value(batch: int) -> None:
    torch.manual_seed(batch)
    shapes = [(batch, 3, 4, 4), (batch, 5, 2, 2)]
    maps_s = [2 * torch.randn(shape, dtype=torch.float64) for shape in shapes]
    maps_t = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    maps_s[0][0, 0, 0, :2] = torch.tensor([1.0, -1.0])  # on the margins
    maps_t[0][0, 0, 1, :2] = 0.0
    method = create_method("abound")
    logits = torch.zeros(batch, 2)
    student, teacher = Outputs(logits, None, tuple(maps_s)), Outputs(logits, None, tuple(maps_t))
    method.setup(setup_for(student, teacher))
    labels = torch.zeros(batch, dtype=torch.long)
    terms = method(student, teacher, Batch(labels, labels), first_stage=True)
    assert terms["abound"].item() == pytest.approx(literal(maps_s, maps_t), rel=1e-12)
    assert method(student, teacher, Batch(labels, labels)) == {}


def test_large_entries_do_not_overflow() -> None:
    s = torch.full((16, 16, 8, 8), 1e18, requires_grad=True)
    loss = boundary_loss(s, -torch.ones(16, 16, 8, 8))
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()
    assert loss.item() == pytest.approx(1e36 * 16 * 64 * 3 / 1000, rel=1e-5)


@pytest.mark.parametrize(("track", "updates"), [("reference", 2), ("clean", 1)])
def test_the_clean_track_updates_batch_norms_once_where_no_map_is_read(track: str, updates: int) -> None:
    nets = create_model("wrn_16_1", 10), create_model("wrn_16_1", 10)
    task = DistillTask(*nets, create_objective("abound"), track)
    images = torch.randn(4, 3, 32, 32)
    task.setup(images, 10, torch.zeros(4, dtype=torch.long))
    first, main = stages_of(task, TrainConfig(model="wrn_16_1", epochs=1).resolved())
    *norms, _ = nets[0].get_bn_before_relu()

    def counts() -> set[int]:
        return {int(norm.num_batches_tracked) for norm in norms}

    first.begin()
    first.observe(images, None)
    assert counts() == {2}  # the maps before their activation are read here on both tracks
    main.begin()
    main.observe(images, None)
    assert counts() == {2 + updates}


def test_what_each_stage_trains() -> None:
    task = small_task("abound", "wrn_16_1", "wrn_16_2")
    stage_one = moved_by(task, lambda: first_stage_steps(task))
    assert {name.split(".")[1] for name in stage_one if name.startswith("student")} == {
        "conv1",
        "block1",
        "block2",
        "block3",
    }
    connectors = {name for name in task.state_dict() if "connectors" in name}
    assert connectors
    # A bias in front of a batch norm has no gradient but rounding; everything else moves.
    assert connectors - stage_one <= {name for name in connectors if name.endswith("conv.bias")}

    stage_two = moved_by(task, lambda: main_steps(task))
    assert not any("connectors" in name for name in stage_two)
    assert {name.split(".")[1] for name in stage_two} == {
        "conv1",
        "block1",
        "block2",
        "block3",
        "bn1",
        "fc",
    }
    assert not any(p.requires_grad for p in task.objective.parameters())
    assert not any(m.training for m in task.objective.methods[0].connectors.modules())
    # The published code's side effect: batch norms that make the maps see each batch twice.
    assert int(task.student.bn1.num_batches_tracked) == 4


def test_the_main_optimiser_is_the_same_before_and_after_the_first_stage() -> None:
    task = small_task("abound", "wrn_16_1", "wrn_16_2")
    before = [name for name, p in task.named_parameters() if p.requires_grad]
    first_stage_steps(task, 1)
    task.train()
    assert [name for name, p in task.named_parameters() if p.requires_grad] == before
    assert all(name.startswith("student.") for name in before)


def test_second_stage_is_plain_training() -> None:
    tasks = [small_task("abound(init_epochs=0)"), small_task("none")]
    assert not tasks[0].objective.first_stages()
    for task in tasks:
        task.train()
    losses = [task(*small_batch()).loss.item() for task in tasks]
    assert losses[0] == losses[1]


def test_unequal_numbers_of_maps() -> None:
    with pytest.raises(UserError, match="student has 3 and the teacher 4"):
        small_task("abound", "resnet8", "vgg8")


def test_a_student_without_feature_modules() -> None:
    maps = Outputs(torch.zeros(2, 2), None, (torch.zeros(2, 3, 4, 4),))
    method = create_method("abound")
    with pytest.raises(UserError, match="setup"):
        method.first_stage()
    method.setup(setup_for(maps, maps))
    with pytest.raises(UserError, match="Identity has no get_feat_modules"):
        method.first_stage()
