"""What EEG is taught to predict: features of the picture that each trial shows, of several networks side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from neuroimagen.batches.order import EpochOrder, Order, RepeatedOrder
from neuroimagen.features.format import Features, picture_digests, read_features
from neuroimagen.run.collectives import decided_by_main
from neuroimagen.run.seeds import seed_from
from neuroimagen.shards.format import ShardSplit


def read_targets(images: Sequence[str], text: str) -> dict[str, Features]:
    """The features files by their names without folder and ending. ValueError for one of the other kind."""
    found = {}
    for path, field, kind in [*((path, "features", "image") for path in images), (text, "text_features", "text")]:
        if path:
            file = found[Path(path).stem] = read_features(path)
            if (said := file.about.get("kind")) != kind:
                raise ValueError(f"{field}={path} holds features of kind {said}, where {kind} is asked for")
    return found


class Targets:
    """The features of all pictures of train and val, and which of them each trial shows."""

    def __init__(self, files: dict[str, Features], shards: str, held_out_classes: int, seed: int) -> None:
        """ValueError for a picture that a file has no features of. Collective: every rank."""

        def look() -> tuple[dict[str, np.ndarray], list[torch.Tensor]]:
            digests: dict[bytes, int] = {}
            found = {}
            for name in ("train", "val"):
                split = ShardSplit(shards, name)
                seen = [digests.setdefault(digest, len(digests)) for digest in picture_digests(split)]
                infos = [split.info(i) for i in range(len(split))]
                found[name] = np.array([(n, i["label"], i["subject"]) for n, i in zip(seen, infos, strict=True)])
            return found, [file.rows(list(digests)) for file in files.values()]

        found, rows = decided_by_main(look)
        (self.pictures, labels, _), (val, val_labels, _) = found["train"].T, found["val"].T
        both = np.intersect1d(labels, val_labels)
        if held_out_classes and held_out_classes > min(len(both), len(np.unique(labels)) - 2):
            raise ValueError(
                f"held_out_classes={held_out_classes}: train and val share {len(both)} classes: hold out fewer"
            )
        out = np.random.default_rng(seed_from(seed, "held out")).permutation(both)[:held_out_classes]
        self.train = np.flatnonzero(~np.isin(labels, out))  # the trials that are trained on
        self.new = ~np.isin(val_labels, labels[self.train])  # whether a val trial is of a class that these do not show
        self.alike = np.unique(found["train"][:, [0, 2]], axis=0, return_inverse=True)[1].ravel()
        vectors = [file.vectors[row] for file, row in zip(files.values(), rows, strict=True)]
        self.vectors = torch.cat(vectors, 1)  # (pictures, ΣD)
        shown = np.bincount(self.pictures[self.train], minlength=len(self.vectors))
        self.shown = torch.from_numpy(shown)  # in how many trials that are trained on, each picture
        chosen = self.new if held_out_classes else np.ones_like(self.new)
        self.gallery, place = np.unique(val[chosen], return_inverse=True)  # pictures among which val is to be found
        self.truth = np.full(len(val), -1)  # of each val trial, in the gallery; -1: of no concern
        self.truth[chosen] = place.ravel()

    def order(self, seed: int, k: int) -> Order:
        """Of the train trials, each with k - 1 others of the same picture and person."""
        order = EpochOrder(self.train, seed)
        return RepeatedOrder(order, self.alike, k, seed) if k > 1 else order
