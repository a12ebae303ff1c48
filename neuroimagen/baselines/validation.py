"""What both baselines report on the val split, and the mean features of each class."""

from typing import Any

import torch
from torch.nn import functional as F

from neuroimagen.batches.stream import eval_batches
from neuroimagen.pixel.validation import Draw, compare_pictures
from neuroimagen.run.run import Run


@torch.no_grad()
def validate(
    run: Run, config: Any, classifier: torch.nn.Module, draw: Draw | None, names: dict[int, str]
) -> dict[str, float]:
    """Accuracy of the EEG classifier on val and what compare_pictures says of `draw`. Collective: every rank."""
    classifier.eval()
    none = torch.zeros(0, dtype=torch.int64, device=run.device)
    guesses, labels = [none], [none]

    def classify(batch: dict[str, Any]) -> None:
        guesses.append(classifier(batch["eeg"], batch["subject"])[1].argmax(1))
        labels.append(batch["label"])

    likeness = compare_pictures(run, config, draw, "truth_and_drawn", classify)
    guess, label = run.gather(torch.cat(guesses)), run.gather(torch.cat(labels))
    run.class_table("val_classifier", guess, label, names)
    return {"accuracy": (guess == label).double().mean().item()} | likeness


@torch.no_grad()
def class_means(run: Run, classifier: torch.nn.Module, shards: str, n_classes: int) -> list[torch.Tensor]:
    """Mean features of each class over the train split (n_classes, n_features), zero for a class without trials, and
    which classes have some (n_classes,). Collective: every rank."""
    classifier.eval()
    sums: torch.Tensor | float = 0.0
    for batch in map(run.to_device, eval_batches(shards, "train", **run.share)):
        features = classifier(batch["eeg"], batch["subject"])[0].double()
        one_hot = F.one_hot(batch["label"], n_classes).double()
        sums = sums + one_hot.T @ torch.cat([features, torch.ones_like(features[:, :1])], 1)
    total = run.accelerator.reduce(sums, "sum")
    return [(total[:, :-1] / total[:, -1:].clamp(min=1)).float(), total[:, -1] > 0]
