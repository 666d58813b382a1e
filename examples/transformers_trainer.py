"""Distil with transformers.Trainer: a small ViT learns from a larger one on scikit-learn's handwritten digits.

Needs transformers and accelerate.

python examples/transformers_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import EvalPrediction, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from itrd.integrations.transformers import DistillTrainer


def vit(width: int, layers: int) -> ViTForImageClassification:
    """A vision transformer for images of 8x8 with one channel, in patches of 2x2."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    shape = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
    return ViTForImageClassification(ViTConfig(**sizes, **shape, num_attention_heads=4))


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Percent of the images that are named rightly."""
    return {"top1": 100 * float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Train a teacher with the plain Trainer, then a student with the one that distils."""
    torch.manual_seed(0)
    pixels, targets = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    samples = [{"pixel_values": x, "labels": y} for x, y in zip(images, targets.tolist(), strict=True)]
    train, test = train_test_split(samples, random_state=0)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=15, learning_rate=2e-3, per_device_train_batch_size=64, report_to="none",
            save_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        common: dict[str, Any] = {
            "args": arguments, "train_dataset": train, "eval_dataset": test, "compute_metrics": accuracy
        }  # fmt: skip
        teacher = vit(width=64, layers=4)
        Trainer(model=teacher, **common).train()
        trainer = DistillTrainer(model=vit(width=32, layers=2), teacher=teacher, method="kd + itrd", **common)
        trainer.train()
        print(f"student {trainer.evaluate()['eval_top1']:.1f}%")


if __name__ == "__main__":
    main()
