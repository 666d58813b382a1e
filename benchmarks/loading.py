"""Images per second out of each kind of source, without any network: what a step has to wait for.

    python benchmarks/loading.py --side 32 --images 2000 --workers 0

Writes a folder of JPEG images of random shapes and colours, reads it as kept on the device and as read in every epoch,
and prints the median over epochs with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from itrd.data.opening import Reading, read_dataset
from itrd.data.plan import plan_epoch
from itrd.data.source import ImageSource
from itrd.engine.place import place_split, training_view


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("side", 32), ("images", 2000), ("batch", 64), ("epochs", 6), ("workers", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.images, options.side)
        for how in ({"augment": "crop"}, {"augment": "crop", "resident": "no"}, {"augment": "resized_crop"}):
            data = read_dataset(folder, Reading(val_fraction=0.02, **how))
            source = place_split(data, data.train, training_view(data), device, workers=options.workers)
            _warm_up, *rates = [rate(source, epoch, options.batch) for epoch in range(options.epochs)]
            where = "kept" if source.resident else f"read by {options.workers} workers"
            print(
                f"{options.side} px, {how['augment']}, {where}: {statistics.median(rates):,.0f} images/s "
                f"({min(rates):,.0f} to {max(rates):,.0f}, n = {len(rates)} epochs of {len(source)} images)",
                flush=True,
            )


if __name__ == "__main__":
    main()
