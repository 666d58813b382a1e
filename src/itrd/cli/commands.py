"""The verbs that are not runs. Imports of anything heavy wait until a verb needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    precision: Literal["fp32", "tf32", "bf16"] = "fp32",
    normalisation: Literal["dataset", "imagenet"] | None = None,
    image_size: int | None = None,
    val_fraction: float | None = None,
    test_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    by_class: bool = False,
) -> None:
    """Measure a trained network's accuracy on the test set.

    Args:
        model: run folder, checkpoint, NAME:FILE, or a published teacher's name.
        data: dataset, or images as `itrd distill --data` takes them (default: what the file names).
        data_root: folder that holds the datasets.
        download: fetch the dataset first if it is not there.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32, or bf16 automatic mixed precision.
        normalisation: mean and deviation of the pixels: the dataset's own, or imagenet (default: what the file says).
        image_size: side of the square that images are brought to (default: as in training; 32 for the networks of
            `itrd models` whose file does not say).
        val_fraction: share of each class to hold out, where the data has no test images (default: as in training).
        test_split: folder or split to measure on (default: as in training; otherwise the first of val, validation,
            valid and test, among folders then eval and testing).
        image_column: column of a table that holds the images (default: as in training).
        label_column: column of a table that holds the labels (default: as in training).
        by_class: also list each class's accuracy, the worst first, and what its images are most often taken for.
    """
    from itrd.api import evaluate
    from itrd.engine.inputs import get_test_data
    from itrd.engine.metrics import accuracy_text
    from itrd.engine.networks import load_network

    network = load_network(model)
    dataset = get_test_data(
        network,
        data,
        root=data_root,
        download=download,
        normalisation=normalisation,
        image_size=image_size,
        val_fraction=val_fraction,
        test_split=test_split,
        image_column=image_column,
        label_column=label_column,
    )
    found = evaluate(network.net, dataset, device=device, precision=precision, confusion=by_class)
    print(
        f"{network.arch} ({network.source}) on {dataset.name}, {len(dataset.test)} test images: "
        f"{accuracy_text(found, dataset.num_classes)}, loss {found['loss']:.4f}"
    )
    if by_class:
        _show_classes(found["confusion"], dataset.class_names)
    renamed = [
        f"{a} ({b} here)" for a, b in zip(network.class_names, dataset.class_names, strict=False) if a != b
    ]
    if renamed:
        shown = renamed if by_class else renamed[:5] + ["..."] * (len(renamed) > 5)
        print(f"the network's file names classes otherwise: {', '.join(shown)}")


# The parser reads the names that are imported for types too, and torch would make --help slow.
def _show_classes(confusion: Any, names: Sequence[str]) -> None:
    """List the classes of a confusion matrix, a tensor of :func:`itrd.engine.evaluate.confusion`."""
    from rich.text import Text

    counts = confusion.sum(dim=1)
    there = counts.nonzero().flatten().tolist()
    right = 100 * confusion.diagonal() / counts
    wrong = confusion.clone().fill_diagonal_(0)
    table = text_table("class", "test images", "top-1", "most often taken for")
    for i in sorted(there, key=lambda i: (float(right[i]), i)):
        j = int(wrong[i].argmax())
        other = (
            f"{_class_name(names, j)} ({100 * int(wrong[i, j]) / int(counts[i]):.1f}%)" if wrong[i, j] else ""
        )
        row = (_class_name(names, i), f"{int(counts[i]):,}", f"{float(right[i]):.2f}%", other)
        table.add_row(*map(Text, row))  # names may look like markup
    show_table(table)
    print(f"mean of the {len(there)} classes' accuracies: {float(right[there].mean()):.2f}%")
    if len(there) < len(counts):
        absent = [_class_name(names, i) for i in range(len(counts)) if not counts[i]]
        print(f"without test images: {', '.join(absent)}")


def _class_name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def models() -> None:
    """List the networks: those of the benchmark, and the binary ones with their teacher."""
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


def datasets(
    data: str | None = None,
    download: str | None = None,
    data_root: str = "data",
    image_size: int | None = None,
    val_fraction: float = 0.2,
    test_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    statistics: bool = False,
) -> None:
    """List the datasets, download one, or describe what would be read of a folder or any other data.

    Args:
        data: name, folder, .parquet file or hf:ORG/NAME to describe.
        download: name of a dataset to fetch into the data folder.
        data_root: folder that holds the datasets.
        image_size: side of the square that images are brought to.
        val_fraction: share of each class that is held out where the data has no test images.
        test_split: folder or split to test on.
        image_column: column of a table that holds the images.
        label_column: column of a table that holds the labels.
        statistics: also measure mean and deviation of the training images.
    """
    if data is not None:
        from itrd.data.opening import Reading
        from itrd.data.survey import survey

        reading = Reading(
            image_size=image_size,
            val_fraction=val_fraction,
            test_split=test_split,
            image_column=image_column,
            label_column=label_column,
        )
        for line in survey(data, reading, root=data_root, statistics=statistics):
            print(line, flush=True)
        return
    from itrd.data import describe_dataset, download_dataset, list_datasets

    if download is not None:
        print(f"{download} is in {download_dataset(download, data_root)}")
        return
    table = text_table("name", "classes", "training images", "test images", "how to get it")
    for name in list_datasets():
        info = describe_dataset(name)
        table.add_row(name, str(info.classes), f"{info.train_size:,}", f"{info.test_size:,}", info.source)
    show_table(table)


def write_export(
    model: str,
    out: str,
    format: Literal["safetensors", "onnx", "torch_export", "packed"] = "safetensors",
    opset: int | None = None,
    size: int | None = None,
    normalise: bool = False,
    licence: str = "unknown",
    push: str | None = None,
    public: bool = False,
    data_root: str = "data",
) -> None:
    """Export a trained network: weights, ONNX, torch.export or packed bits, with a model card.

    Args:
        model: run folder (its last epoch), checkpoint (best.safetensors of a run folder, for one), NAME:FILE, or a
            name.
        out: folder to be written; one that holds the same network in another format gets one more file.
        format: safetensors (weights alone), onnx or torch_export (programs that do not need itrd), or packed (weights
            in bits, of a binary network).
        opset: operator set of ONNX (default: the exporter's own).
        size: height and width of the images in pixels (default: those of the dataset).
        normalise: make the normalisation part of the program, which then takes pixels in [0, 1].
        licence: licence of the weights, as the Hugging Face Hub names licences.
        push: also upload the folder to this repository of the Hugging Face Hub, ORG/NAME.
        public: let everybody see a repository that push creates (default: it is private).
        data_root: folder that holds the datasets; read where the run's record does not tell the normalisation.
    """
    from itrd.export import export_trained
    from itrd.export.hub import check_repository, push_export

    if push is not None:
        check_repository(push)  # before the work
    written = export_trained(
        model,
        out,
        format,
        size=size,
        normalise=normalise,
        opset=opset,
        licence=licence,
        data_root=data_root,
    )
    found = written.agreement
    print(
        f"{written.path}: {written.path.stat().st_size:,} bytes"
        + (f", largest difference of a logit {found.largest_difference:.2g}" if found else "")
        + (f", same class for {found.same_class} of {found.images} images" if found else "")
    )
    if push is not None:
        print(push_export(out, push, public=public))


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
