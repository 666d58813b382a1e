"""Images per second out of each kind of source, without any network: what a step has to wait for.

    python benchmarks/loading.py --sides 32 256 --images 1000 300 --workers 0

For each side, writes a folder of JPEG images of random shapes and colours, reads it as kept on the device and as read
in every epoch, and prints the median over epochs with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from common import add_out, write
from PIL import Image

from itrd.data.opening import Reading, read_dataset
from itrd.data.plan import plan_epoch
from itrd.data.source import ImageSource
from itrd.engine.place import place_split, training_view

WAYS: dict[str, dict[str, Any]] = {
    "kept, crop": {"augment": "crop"},
    "read in every epoch, crop": {"augment": "crop", "resident": "no"},
    "read in every epoch, resized_crop": {"augment": "resized_crop"},
}


def write_images(root: Path, count: int, side: int) -> None:
    """Write JPEG images of two classes: smooth noise, which compresses as photographs do."""
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / ("a", "b")[number % 2]
        folder.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (max(2, side // 8),) * 2 + (3,), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


def rate(source: ImageSource, epoch: int, batch: int) -> float:
    """Images per second of one epoch, up to the normalised batch."""
    plan = plan_epoch(len(source), source.num_views, batch, seed=0, epoch=epoch)
    started = time.perf_counter()
    for drawn in source.draw(plan, 0):
        source.images(drawn)
    if source.device.type == "cuda":
        torch.cuda.synchronize()
    return len(source) / (time.perf_counter() - started)


def measured(folder: str, how: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Images per second of every epoch after one that warms up, and how many images an epoch has."""
    data = read_dataset(folder, Reading(val_fraction=0.02, **how))
    device = torch.device(options.device)
    source = place_split(data, data.train, training_view(data), device, workers=options.workers)
    _warm_up, *rates = [rate(source, epoch, options.batch) for epoch in range(options.epochs)]
    return {"images": len(source), "images_per_second": rates}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 256], help="of the images, in pixels")
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 300], help="one number a side")
    for name, default in (("batch", 64), ("epochs", 6), ("workers", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    add_out(parser)
    options = parser.parse_args()
    found = []
    for side, images in zip(options.sides, options.images, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), images, side)
            for how in WAYS:
                found.append({"side": side, "way": how, **measured(folder, WAYS[how], options)})
                rates = found[-1]["images_per_second"]
                print(
                    f"{side} px, {how}: {statistics.median(rates):,.0f} images/s ({min(rates):,.0f} to "
                    f"{max(rates):,.0f}, n = {len(rates)} epochs of {found[-1]['images']} images)",
                    flush=True,
                )
    write(options, torch.device(options.device), pillow=PIL.__version__, measured=found)


if __name__ == "__main__":
    main()
