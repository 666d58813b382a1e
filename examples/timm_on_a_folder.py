"""Distil a timm network into a tiny one on a folder of images, with the student alone as control.

Needs timm, torchvision and Pillow. With CIFAR-10 in ./data the folder holds photographs, else handwritten digits.

python examples/timm_on_a_folder.py --data cifar10 --train 5000 --epochs 10 --seeds 3
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

import itrd


def write_folder(root: Path, name: str, train: int, test: int) -> None:
    """Write a dataset as image files, ROOT/train/CLASS/N.png and ROOT/val/CLASS/N.png."""
    data = itrd.load_dataset(name).subset(train, test)
    for split, where in ((data.train, "train"), (data.test, "val")):
        for number, (pixels, label) in enumerate(zip(split.images, split.labels, strict=True)):
            folder = root / where / data.class_names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{number}.png")


def main() -> None:
    """Write the folder, train a teacher on it, then students with it and alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="digits", help="digits or cifar10")
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        write_folder(photos, arguments.data, arguments.train, arguments.train // 2)
        settings = {"learning_rate": 0.02, "augment": "crop", "image_size": 32}
        teacher = itrd.train("timm:resnet10t", str(photos), epochs=3 * arguments.epochs, **settings)
        print(f"teacher {teacher.last.test['top1']:.1f}%")
        result = itrd.distill(
            teacher.student,
            "timm:test_efficientnet",
            str(photos),
            "kd + itrd",
            control=True,
            seeds=arguments.seeds,
            epochs=arguments.epochs,
            **settings,
        )
        assert result.comparison is not None
        for run in ("alone", "distilled"):
            found = result.comparison[run]
            print(f"student {run} {found['mean']:.1f}% (n = {found['n']})")
        gap = result.comparison["difference"]
        if gap["low"] is not None:  # one seed has no interval
            print(
                f"difference {gap['difference']:+.1f}, 95% interval {gap['low']:+.1f} to {gap['high']:+.1f}"
            )


if __name__ == "__main__":
    main()
