"""The verbs that are not runs. Imports of anything heavy wait until a verb needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table


def quickstart(out: str = "quickstart", seeds: int = 3, epochs: int | None = None) -> None:
    """Distil on the handwritten digits that come with scikit-learn: teacher, student alone, KD, ITRD.

    Args:
        out: folder for the table, the picture and the runs; replaced if it holds an earlier quickstart.
        seeds: students per method.
        epochs: epochs of each student (default: the quickstart's own).
    """
    from itrd.quickstart import run_quickstart

    run_quickstart(Path(out), seeds=seeds, epochs=epochs)


def measure(
    model: str,
    data: str | None = None,
    data_root: str = "data",
    download: bool = False,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    normalisation: Literal["dataset", "imagenet"] | None = None,
) -> None:
    """Measure a trained network's accuracy on the test set.

    Args:
        model: run folder, checkpoint, NAME:FILE, or a published teacher's name.
        data: dataset (default: the one the file names).
        data_root: folder that holds the datasets.
        download: fetch the dataset first if it is not there.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, or bf16 automatic mixed precision.
        normalisation: mean and deviation of the pixels: the dataset's own, or imagenet (default: what the file says).
    """
    from itrd.api import evaluate
    from itrd.data import load_dataset
    from itrd.engine.networks import load_network
    from itrd.engine.run import check_classes, data_of

    network = load_network(model)
    dataset = load_dataset(data or data_of(network), data_root, download=download)
    check_classes(network, dataset)
    found = evaluate(
        network.net,
        dataset,
        device=device,
        precision=precision,
        normalisation=normalisation or network.normalisation,
    )
    print(
        f"{network.arch} ({network.source}) on {dataset.name}, {len(dataset.test)} test images: "
        f"top-1 {found['top1']:.2f}%, top-5 {found['top5']:.2f}%, loss {found['loss']:.4f}"
    )


def models() -> None:
    """List the benchmark networks."""
    import torch

    from itrd.models import create_model, list_models

    table = text_table("name", "parameters", "maps", "embedding")
    for name in list_models():
        net = create_model(name, num_classes=100).eval()
        with torch.no_grad():
            seen = net.observe(torch.zeros(1, 3, 32, 32))
        assert seen.embedding is not None
        shapes = ", ".join("x".join(map(str, m.shape[1:])) for m in seen.maps)
        count = sum(p.numel() for p in net.parameters())
        table.add_row(name, f"{count:,}", shapes, str(seen.embedding.shape[1]))
    show_table(table)


def methods(name: str | None = None) -> None:
    """List the distillation methods, or show everything about one.

    Args:
        name: the method to show: formula, settings, deviations, published accuracies, measured overhead.
    """
    from itrd.catalogue.text import about, listing

    print(listing() if name is None else about(name))


def recipes(method: str | None = None, teacher: str | None = None, student: str | None = None) -> None:
    """List the losses behind the published accuracies on CIFAR-100; paste one into `itrd distill --method`.

    Args:
        method: only this method's.
        teacher: only pairs with this teacher.
        student: only pairs with this student.
    """
    from itrd.recipes.text import listing

    print(listing(method, teacher, student))


def datasets(download: str | None = None, data_root: str = "data") -> None:
    """List the datasets, or download one.

    Args:
        download: name of a dataset to fetch into the data folder.
        data_root: folder that holds the datasets.
    """
    from itrd.data import describe_dataset, download_dataset, list_datasets

    if download is not None:
        print(f"{download} is in {download_dataset(download, data_root)}")
        return
    table = text_table("name", "classes", "training images", "test images", "how to get it")
    for name in list_datasets():
        info = describe_dataset(name)
        table.add_row(name, str(info.classes), f"{info.train_size:,}", f"{info.test_size:,}", info.source)
    show_table(table)


def text_table(*columns: str) -> Table:
    """Begin a table with these columns."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show_table(table: Table) -> None:
    """Print a table; in full where there is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width
        console = Console(highlight=False, width=200)
    console.print(table)
