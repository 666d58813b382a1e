"""The plan of an epoch: which image when, in which view."""

from __future__ import annotations

import pytest
import torch

from itrd.data import plan_epoch


def test_depends_on_seed_and_epoch_alone() -> None:
    first = plan_epoch(1000, 162, 64, seed=3, epoch=5)
    torch.manual_seed(99)
    torch.rand(10)
    plan_epoch(17, 162, 64, seed=3, epoch=4)
    again = plan_epoch(1000, 162, 128, seed=3, epoch=5)
    assert torch.equal(first.order, again.order)
    assert torch.equal(first.views, again.views)
    for other in (plan_epoch(1000, 162, 64, seed=3, epoch=6), plan_epoch(1000, 162, 64, seed=4, epoch=5)):
        assert not torch.equal(first.order, other.order)
        assert not torch.equal(first.views, other.views)


def test_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    plan_epoch(100, 162, 64, seed=0, epoch=0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_never_changes() -> None:
    """A published run can be repeated only as long as its plan is the same."""
    plan = plan_epoch(50_000, 162, 64, seed=1, epoch=1)
    assert plan.order[:5].tolist() == [49897, 28978, 19802, 10264, 2846]
    assert plan.views[:5].tolist() == [36, 39, 157, 78, 45]


def test_every_image_once_and_every_view_alike() -> None:
    plan = plan_epoch(50_000, 162, 64, seed=0, epoch=0)
    assert torch.equal(plan.order.sort().values, torch.arange(50_000))
    assert plan.order.dtype == plan.views.dtype == torch.int64
    counts = torch.bincount(plan.views, minlength=162).double()
    assert len(counts) == 162
    expected = 50_000 / 162
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 110 < chi_square < 222  # 161 degrees of freedom: the middle 99.8 %
    # An image's view does not depend on its number: the mean view of each tenth is near the middle.
    tenths = plan.views[plan.order.argsort()].double().view(10, -1).mean(1)
    assert (tenths - 80.5).abs().max() < 3


@pytest.mark.parametrize(("n", "size", "last"), [(10, 4, 2), (8, 4, 4), (3, 4, 3), (1, 1, 1)])
def test_batches(n: int, size: int, last: int) -> None:
    plan = plan_epoch(n, 9, size, seed=0, epoch=0).to("cpu")
    batches = list(plan)
    assert len(batches) == len(plan)
    assert len(batches[-1][0]) == len(batches[-1][1]) == last
    assert torch.equal(torch.cat([indices for indices, _ in batches]), plan.order)
    assert torch.equal(torch.cat([views for _, views in batches]), plan.views)
    assert len(list(plan)) == len(plan)  # a plan can be gone through again


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(17, 8, (8, 9)), (16, 8, (8, 8)), (18, 8, (8, 8, 2)), (3, 1, (1, 1, 1)), (1, 8, (1,)), (9, 8, (9,))],
)
def test_a_single_image_joins_the_batch_before(n: int, batch_size: int, sizes: tuple[int, ...]) -> None:
    assert plan_epoch(n, 162, batch_size, seed=0, epoch=1).sizes == sizes


def test_refuses_what_is_not_positive() -> None:
    for numbers in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1)):
        with pytest.raises(ValueError, match="positive"):
            plan_epoch(*numbers, seed=0, epoch=0)
