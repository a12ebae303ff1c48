"""What the rows of a reconstruct run are given, chunk by chunk: maps and embeddings decoded from the trial itself or,
for the controls and the linear rows, from what stands in its place (`Row.of` in rows.py).

Whatever is fitted, averaged or drawn here is a function of (config, shards, trial), never of the number of processes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuroimagen.batches.stream import Batcher
from neuroimagen.features.format import picture_digests, read_features
from neuroimagen.linear import fit_ridge, window_means
from neuroimagen.reconstruction.controls import TRIALS_AT_ONCE, ClassCaptions, Gallery, train_split
from neuroimagen.reconstruction.draw import Decoded, decode, saliency_maps
from neuroimagen.reconstruction.reconstructor import Reconstructor
from neuroimagen.rows import OTHER, ROWS, SEMANTICS
from neuroimagen.run.collectives import decided_by_main, spread
from neuroimagen.run.seeds import seed_from
from neuroimagen.shards.format import ShardSplit
from neuroimagen.studies.controls import random_phases

SIDE = 8  # px of the picture that ridge regression predicts; what EEG tells of place and colour is coarse


def stand_ins(split: ShardSplit, row: str, keys: Iterable[str], seed: int) -> dict[str, int]:
    """Key -> place in the split of the trial that is decoded in its stead, a function of (seed, key): for "map of
    class" one of the same class that shows another picture, for "surrogate" another one of the same subject.

    ValueError for a trial that has none.
    """
    batcher, found = Batcher(split, image_size=None), {}
    labels, bad = batcher.read_labels()
    for sentence in bad.values():
        raise ValueError(f"{sentence}: row {row} needs all of {split.name}; make the shards again or leave it out")
    pictures, place = np.unique(batcher.image, return_inverse=True)[1], {key: i for i, key in enumerate(split.keys)}
    same, apart = (labels, pictures) if row == "map of class" else (batcher.subject, np.arange(len(split)))
    for key in keys:
        i = place[key]
        others = np.flatnonzero((same == same[i]) & (apart != apart[i]))
        if not len(others):
            name = {about["label"]: about["name"] for about in split.manifest.classes}.get(int(labels[i]))
            what = f"{name} has one picture" if row == "map of class" else f"subject {same[i]} has one trial"
            raise ValueError(f"{split.folder}: {what} in {split.name}, so row {row} has none to take: leave it out")
        found[key] = int(others[seed_from(seed, row, key) % len(others)])
    return found


def parts_of(split: ShardSplit) -> list[np.ndarray]:
    """All trials of a split, always cut in the same way."""
    return np.split(np.arange(len(split)), range(TRIALS_AT_ONCE, len(split), TRIALS_AT_ONCE))


class RidgeDecoders:
    """Ridge regression (linear.py) from window means of the EEG to the picture, at SIDE x SIDE px, and to the embedding
    of the label caption, the target of Eq. 7; penalties chosen on val.

    K captions span K - 1 dimensions: their coordinates there are regressed on, with all distances kept, in place of
    77 x 768 numbers. All processes read; the first fits and tells the others. Collective: every rank.
    """

    def __init__(self, train: ShardSplit, val: ShardSplit, captions: ClassCaptions) -> None:
        self.sfreq = train.manifest.sfreq
        (x, pictures, labels), (val_x, val_pictures, val_labels) = map(self._read, (train, val))
        rows, val_rows = ([captions.place[label] for label in of.tolist()] for of in (labels, val_labels))
        share = np.bincount(rows, minlength=len(captions.embeddings)) / len(rows)
        self.mean = torch.einsum("k,kld->ld", torch.from_numpy(share).float(), captions.embeddings)
        self.offsets = captions.embeddings - self.mean  # (K, L, D_s), from the mean of the train captions, as M_s

        def fit() -> tuple[Any, Any, np.ndarray, float]:
            flat = self.offsets.flatten(1).double()
            squares, vectors = np.linalg.eigh((flat @ flat.T).numpy())
            kept = squares > 1e-9 * squares.max()  # the mean takes a dimension away
            lengths, vectors = np.sqrt(squares[kept]), vectors[:, kept]
            short = vectors * lengths  # the captions' coordinates
            meaning = fit_ridge(x, short[rows], val_x, short[val_rows])
            rms = float(np.sqrt(share @ np.square(short).sum(1)))
            return fit_ridge(x, pictures, val_x, val_pictures), meaning, vectors / lengths, rms

        self.picture, self.meaning, self.back, self.rms = decided_by_main(fit)

    def _read(self, split: ShardSplit) -> list[np.ndarray]:
        """Window means (n, d), pictures (n, 3 x SIDE x SIDE) in [0, 1] and labels (n,) of a split."""
        batcher = Batcher(split, SIDE)

        def read(part: np.ndarray) -> tuple[np.ndarray, ...]:
            batch = batcher(part)
            pictures = batch["image"].add(1).div(2).flatten(1)
            return window_means(batch["eeg"].numpy(), self.sfreq), pictures.numpy(), batch["label"].numpy()

        return [np.concatenate(column) for column in zip(*spread(read, parts_of(split)), strict=True)]

    def __call__(self, eeg: Tensor, rescale_embeddings: bool = False) -> Decoded:
        """EEG (B, C, T), standardised -> maps and embeddings, on the CPU; rescale_embeddings: as in `decode`."""
        x = window_means(eeg.numpy(), self.sfreq)
        maps = torch.from_numpy(self.picture.predict(x)).float().clamp(0, 1).unflatten(1, (3, SIDE, SIDE))
        short = self.meaning.predict(x)
        if rescale_embeddings:
            short *= self.rms / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)
        offset = torch.einsum("bk,kld->bld", torch.from_numpy(short @ self.back.T).float(), self.offsets)
        return Decoded(maps, {"label": self.mean + offset})


class Given:
    """What the rows of a run are given. Made before anything is written, as it refuses what the shards cannot give.

    decoders: of decoders.py; config: of trainers/reconstruct.py
    """

    gallery: Gallery | None = None
    mean_map: Tensor  # (3, h, w)
    ridge: RidgeDecoders

    def __init__(self, rows: Sequence[str], split: ShardSplit, decoders: Any, f: Reconstructor, config: Any) -> None:
        """ValueError for a row that needs trials which these shards have not."""
        self.decoders, self.device, self.config = decoders, f.device, config
        self.batcher, of = Batcher(split, image_size=None), {ROWS[row].of for row in rows}
        some, keys = [row for row in ("map of class", "surrogate") if row in rows], split.keys[: config.limit]
        self.stand_ins = {ROWS[row].of: stand_ins(split, row, keys, config.seed) for row in some}
        told = "ridge" in of or any(ROWS[row].semantics not in (None, *SEMANTICS) for row in rows)
        self.captions = ClassCaptions(f, split.manifest.classes, config.seed) if told else None
        self.true: Tensor | None = None  # (n, D), of each trial of the split
        if any(ROWS[row].image == "true" for row in rows) and f.image_prompt:
            file = read_features(config.image_features)
            f.image_prompt.fitting({file.path.name: file.about | {"width": file.width}}, f"image_features={file.path}")
            self.true = file.vectors[file.rows(picture_digests(split))]
        names = ["train"] * bool(of & {"train", "ridge"}) + ["val"] * ("ridge" in of)
        self.splits = {name: ShardSplit(config.shards, name) for name in names}  # beside the one that is drawn
        if decoders.retrieval:
            self.splits["train"] = train_split(config.shards, config.samples)

    def prepare(self, rows: Iterable[str], size: int, rank: int, world: int) -> None:
        """What is made of all of train for `rows`; size: of a picture, px. Collective: every rank."""
        of = {ROWS[row].of for row in rows}
        if "retrieval" in rows:
            m_s = self.decoders.m_s[self.decoders.retrieval]
            self.gallery = Gallery(m_s, self.splits["train"], size, self.device, rank, world)
        if "train" in of:
            batcher = Batcher(self.splits["train"], image_size=None)

            def maps(part: np.ndarray) -> Tensor:
                batch = batcher(part)
                given = batch["eeg"].to(self.device), batch["key"], self.decoders, self.config.seed, batch["subject"]
                drawn = saliency_maps(*given)
                return drawn.double().sum(0).cpu()

            sums = torch.stack(spread(maps, parts_of(self.splits["train"])))
            self.mean_map = (sums.sum(0) / len(self.splits["train"])).float()
        if "ridge" in of and self.captions:
            self.ridge = RidgeDecoders(self.splits["train"], self.splits["val"], self.captions)

    def __call__(self, batch: dict[str, Any], rows: Sequence[str]) -> dict[str, Decoded]:
        """A batch of the split -> {`Row.of`: what is decoded from it}, for the trial itself and as `rows` need."""
        seed, rescale = self.config.seed, self.config.rescale_embeddings

        def told(eeg: Tensor, keys: Sequence[str], subject: Tensor) -> Decoded:
            return decode(eeg.to(self.device), keys, self.decoders, seed, rescale, subject)

        keys, of = batch["key"], {ROWS[row].of for row in rows}
        found = {"trial": told(batch["eeg"], keys, batch["subject"])}
        own = found["trial"].embeddings
        if self.captions:
            own |= self.captions(batch["label"].tolist(), keys, self.config.samples)
        if any(ROWS[row].image == "decoded" for row in rows):
            own["decoded"] = self.decoders.features(*(batch[name].to(self.device) for name in ("eeg", "subject")))
        if self.true is not None:
            own["true"] = self.true[batch["index"]]
        if self.captions and "class" in rows:
            own["class"] = self.captions.nearest(own["label"], self.decoders.m_s["label"].mean)
        for place in of & set(self.stand_ins):
            other = self.batcher(np.array([self.stand_ins[place][key] for key in keys]))
            if place == OTHER:
                found[place] = told(other["eeg"], other["key"], other["subject"])  # its very map
            else:
                rngs = [np.random.default_rng(seed_from(seed, "phases", key)) for key in keys]
                eeg = [random_phases(x.numpy(), rng) for x, rng in zip(other["eeg"], rngs, strict=True)]
                found[place] = told(torch.from_numpy(np.stack(eeg)), keys, other["subject"])
        if "train" in of:
            found["train"] = Decoded(self.mean_map.expand(len(keys), -1, -1, -1), {})
        if "ridge" in of:
            found["ridge"] = self.ridge(batch["eeg"], rescale)
        return found
