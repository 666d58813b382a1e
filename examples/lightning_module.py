"""Distil with Lightning: a benchmark network learns from another on scikit-learn's handwritten digits.

CRD keeps an embedding of every training image, so the batches bring the images' indices.

python examples/lightning_module.py
"""

from __future__ import annotations

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import itrd
from itrd.data import ImageDataset, Split
from itrd.integrations.lightning import Distillation


def loader(data: ImageDataset, split: Split, shuffle: bool) -> DataLoader:
    """Batches of normalised images, labels and indices."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
    images = (torch.from_numpy(split.images) / 255 - mean) / std
    labels = torch.from_numpy(split.labels)
    return DataLoader(
        TensorDataset(images, labels, torch.arange(len(labels))), batch_size=16, shuffle=shuffle
    )


def main() -> None:
    """Train a teacher with the package's own loop, then a student with Lightning's."""
    lightning.seed_everything(0, verbose=False)
    data = itrd.load_dataset("digits").subset(train=300, test=100)
    teacher = itrd.train("resnet14", data, epochs=3, batch_size=16).student

    module = Distillation(
        itrd.create_model("resnet8", num_classes=10),
        teacher,
        "kd + 0.8*crd(K=32)",
        train_labels=torch.from_numpy(data.train.labels),
    )
    trainer = lightning.Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(data, data.train, shuffle=True), loader(data, data.test, shuffle=False))
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    print(
        f"student {logged['val/top1']:.1f}%, loss {logged['train/loss']:.3f}, crd {logged['train/crd']:.3f}"
    )


if __name__ == "__main__":
    main()
