"""What EEG is taught to predict: the features of the picture that each trial shows, of several networks side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroimagen.features.format import Features, picture_digests, read_features
from neuroimagen.run.collectives import decided_by_main
from neuroimagen.shards.format import ShardSplit


def read_targets(images: Sequence[str], text: str) -> dict[str, Features]:
    """The features files by their names without folder and ending. ValueError for one of the other kind."""
    found = {}
    for path, kind in [*((path, "image") for path in images), *((path, "text") for path in [text] if path)]:
        file = found[Path(path).stem] = read_features(path)
        if (said := file.about.get("kind")) != kind:
            field = {"image": "features", "text": "text_features"}
            raise ValueError(f"{path} holds {said} features: give it as {field.get(str(said))}, not as {field[kind]}")
    return found


class Targets:
    """The features of all pictures of train and val, and which picture and subject each of their trials has."""

    def __init__(self, files: dict[str, Features], shards: str) -> None:
        """ValueError for a picture that a file has no features of. Collective: every rank."""

        def look() -> tuple[dict[str, np.ndarray], list[torch.Tensor], np.ndarray, bool]:
            digests: dict[bytes, int] = {}
            pictures, labels, subjects = {}, {}, np.zeros(0, np.int64)
            for split in (ShardSplit(shards, name) for name in ("train", "val")):
                numbers = [digests.setdefault(digest, len(digests)) for digest in picture_digests(split)]
                pictures[split.name] = np.array(numbers, np.int64)
                infos = [split.info(i) for i in range(len(split))]
                labels[split.name] = {info["label"] for info in infos}
                if split.name == "train":
                    subjects = np.array([info["subject"] for info in infos], np.int64)
            rows = [file.rows(list(digests)) for file in files.values()]
            return pictures, rows, subjects, labels["train"].isdisjoint(labels["val"])

        self.pictures, rows, self.subjects, self.new_classes = decided_by_main(look)
        vectors = [file.vectors[row] for file, row in zip(files.values(), rows, strict=True)]
        self.vectors = torch.cat(vectors, 1)  # (pictures, ΣD)
        self.shown = np.bincount(self.pictures["train"], minlength=len(self.vectors))  # by how many train trials
        self.val = torch.from_numpy(np.unique(self.pictures["val"]))

    def to(self, device: torch.device, mean: torch.Tensor, std: torch.Tensor) -> "Targets":
        ...
