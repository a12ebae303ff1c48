"""What a finished contrastive run is asked: the trials of a split, and means of them, against the split's pictures."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from neuroimagen.batches.stream import Batcher
from neuroimagen.contrastive.encoder import ContrastiveEncoder
from neuroimagen.errors import load_trained
from neuroimagen.features.format import picture_digests, read_features
from neuroimagen.files import content_of
from neuroimagen.retrieval.ranks import Found, Gallery, deal, merged
from neuroimagen.run import inputs
from neuroimagen.run.collectives import decided_by_main, on_every_rank, spread
from neuroimagen.run.directory import open_run
from neuroimagen.shards.format import ShardSplit

CHUNK = 256  # trials read together, or all those of a picture that has more
PARTS = 16  # that processes share; no number depends on how many there are
# A query is one trial, the mean EEG of all trials of a person and picture, the mean of what is predicted of each of
# these, or of all people's of the picture; above K, for the curve, the mean EEG of so many of a person and picture.
KINDS = ("trial", "average", "subject", "picture")
K = 100


class Queries:
    """A finished run and a split of its shards. Collective: every rank."""

    vectors: dict[str, torch.Tensor]  # features file -> (pictures, D)
    picture: np.ndarray  # (trials,), number in the gallery
    subject: np.ndarray  # (trials,), number in `people`
    people: list[int]
    first: np.ndarray  # (pictures,), a trial of each
    seen_by: np.ndarray  # (pictures,), equal for those that the same people saw
    labels: np.ndarray  # (pictures,)
    names: list[str]  # (pictures,), of the classes
    averaged: int  # trials that each one of the shards is the mean of

    def __init__(self, config: Any, device: torch.device) -> None:
        """config: of evaluate.py. ValueError, in a sentence: a run that is not finished, other shards or features."""
        self.config, self.device, self.path = config, device, Path(config.run)
        decided_by_main(lambda: open_run(config.run, "contrastive"))
        self.given = content_of(self.path / "config.yaml")
        self.shards, text = config.shards or self.given["shards"], self.given.get("text_features")
        self.files = {Path(f).stem: f for f in config.features or [*self.given["features"], *[text] * bool(text)]}
        self.made_of = decided_by_main(self._inputs)
        with contextlib.redirect_stdout(None):  # the hub library prints where it loads from
            model = on_every_rank(lambda: load_trained(ContrastiveEncoder, self.path / "model"))
        self.model = model.to(device).eval()
        self.split = on_every_rank(lambda: ShardSplit(self.shards, config.split))
        vars(self).update(decided_by_main(self._look))
        counts = np.sort(np.unique([self.picture, self.subject], axis=1, return_counts=True)[1])  # of each pair
        self.most = int(counts[(len(counts) - 1) // 2])  # trials that half of the pairs have, or exceed
        self.ks = [2**i for i in range(1, self.most.bit_length()) if 2**i < self.most] + [self.most] * (self.most > 1)
        # Those of KINDS that are not the same as one before
        self.kinds = [0] + [1, 2] * bool(counts[-1] > 1) + [3] * (len(self.labels) < len(counts))
        compared = self.model.compared({name: x.to(device) for name, x in self.vectors.items()})
        self.galleries = {name: Gallery(self._joined(compared, name), self.labels) for name in self.targets}
        self.own = next(iter(self.targets))

    def _inputs(self) -> inputs.Inputs:
        """ValueError for a run that cannot be written to, or shards that it was not trained on."""
        if not os.access(self.path, os.W_OK):
            raise ValueError(f"{self.path} cannot be written, and scores go there: copy the run to a place of yours")
        found = {"shards": {"path": str(self.shards), "content": inputs.of_shards(self.shards)}}
        remedy = "give shards=DIR, those that it was trained on"
        inputs.check(inputs.read(self.path / "inputs.json"), found, str(self.path), remedy)
        return found | {"run": {"path": str(self.path), "content": inputs.of_model(self.path / "model")}}

    def _look(self) -> dict[str, Any]:
        """Which picture each trial shows, and to whom; the pictures' features."""
        infos = [self.split.info(i) for i in range(len(self.split))]
        if any(info.get("picture", "as recorded") != "as recorded" for info in infos):
            raise ValueError(f"{self.shards}: which picture was shown is not known, so none can be retrieved")
        digests = picture_digests(self.split)
        number = {digest: n for n, digest in enumerate(dict.fromkeys(digests))}
        if len(number) < 2:
            raise ValueError(f"{self.shards}: {len(number)} pictures in {self.config.split}: retrieval needs two")
        picture = np.array([number[digest] for digest in digests])
        first = np.unique(picture, return_index=True)[1]
        people, subject = np.unique([info["subject"] for info in infos], return_inverse=True)
        seen = np.zeros((len(first), len(people)), bool)
        seen[picture, subject] = True
        vectors = {}
        for name, told in self.model.targets.items():
            if name not in self.files:
                raise ValueError(f"features: no file is called {name}, towards which {self.path} was trained; add it")
            file = read_features(self.files[name])
            about = file.about | {"width": file.width}
            if other := [k for k in told if k not in ("n_pictures", "version", "place") and about.get(k) != told[k]]:
                what = f"{other[0]}: {about.get(other[0])} there, {told[other[0]]} in {self.path}"
                raise ValueError(f"{file.path} holds other features ({what}); give those the run was trained towards")
            vectors[name] = file.vectors[file.rows(list(number))]
        content = inputs.hashes({name: Path(self.files[name]) for name in vectors})
        self.made_of["features"] = {"path": "", "content": content}
        return {
            "vectors": vectors,
            "picture": picture,
            "subject": subject,
            "people": people.tolist(),
            "first": first,
            "seen_by": np.unique(seen, axis=0, return_inverse=True)[1].ravel(),
            "labels": np.array([infos[i]["label"] for i in first]),
            "names": [str(infos[i]["class_name"]) for i in first],
            "averaged": infos[0].get("averaged", 1),
        }

    @property
    def targets(self) -> dict[str, dict[str, float]]:
        """What is scored -> weights of the features in it: the run's own, which is all image features; then each."""
        image = [name for name, about in self.model.targets.items() if about.get("kind") != "text"]
        given = self.given.get("weights") or []
        weights = dict(zip(image, given if any(given) else [1.0] * len(image), strict=True))
        both = {"all": {name: w / sum(weights.values()) for name, w in weights.items() if w}}
        return (both if len(image) > 1 else {}) | {name: {name: 1.0} for name in self.model.targets}

    def _joined(self, compared: dict[str, torch.Tensor], target: str) -> torch.Tensor:
        """(n, ΣD), whose products are the weighted sums of cosines."""
        return torch.cat([w**0.5 * compared[name] for name, w in self.targets[target].items()], 1)

    def ask(self) -> tuple[Found, dict[str, Found]]:
        """Of all queries kind, trial (its first) and, of transductive=true, z; target -> what they find.

        Group of a query in `null` and `retrieved`: kind * people + person. Collective: every rank.
        """
        order = np.lexsort((self.subject, self.picture))
        cuts, ends = [0], np.flatnonzero(np.diff(self.picture[order], append=-1)) + 1
        cuts += [int(b) for a, b in zip([0, *ends], ends, strict=False) if b // CHUNK > a // CHUNK or b == len(order)]
        chunks = [order[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
        deals, batcher = deal(self.seen_by), Batcher(self.split, None)
        bar = tqdm(total=len(order), unit="trial", desc="retrieval", delay=2, disable=None)

        def part(first: int) -> list[Found]:
            found = []
            for trials in chunks[first::PARTS]:
                found.append(self._ask(trials, batcher, deals))
                bar.update(len(trials))
            return [merged(list(each)) for each in zip(*found, strict=True)]

        parts = spread(part, range(min(PARTS, len(chunks))))
        bar.close()
        about, *found = (merged(list(each)) for each in zip(*parts, strict=True))
        return about, dict(zip(self.targets, found, strict=True))

    def _questions(self, trials: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(kind, places in `trials`) of each query; `trials` are in order of picture and person."""
        for shown in np.split(np.arange(len(trials)), np.flatnonzero(np.diff(self.picture[trials])) + 1):
            for own in np.split(shown, np.flatnonzero(np.diff(self.subject[trials[shown]])) + 1):
                yield from ((0, own[i : i + 1]) for i in range(len(own)))
                yield from ((K + k, own[i : i + k]) for k in self.ks for i in range(0, len(own) - k + 1, k))
                yield from ((kind, own) for kind in (1, 2) if kind in self.kinds)
            if 3 in self.kinds:
                yield 3, shown

    @torch.no_grad()
    def _ask(self, trials: np.ndarray, batcher: Batcher, deals: np.ndarray) -> list[Found]:
        asked = list(self._questions(trials))
        kind, first = np.array([kind for kind, _ in asked]), trials[[rows[0] for _, rows in asked]]
        of_eeg, eeg = ~np.isin(kind, (2, 3)), batcher(trials)["eeg"]
        averaged = torch.stack([eeg[rows].mean(0) for kind, rows in asked if kind not in (2, 3)])
        subject = torch.tensor(self.people)[self.subject[first[of_eeg]]]
        predicted: dict[str, list[torch.Tensor]] = {name: [] for name in self.model.targets}
        for part in zip(averaged.split(self.config.batch_size), subject.split(self.config.batch_size), strict=True):
            for name, z in self.model(*(x.to(self.device) for x in part)).items():
                predicted[name].append(z)
        embeddings = {}
        for name, z in ((name, torch.cat(z)) for name, z in predicted.items()):
            if not z.isfinite().all():
                raise ValueError(f"{self.path / 'model'} predicts numbers that are not finite: train it again")
            each = z[kind[of_eeg] == 0]  # in the order of `trials`
            embeddings[name] = z.new_empty(len(kind), z.shape[1])
            embeddings[name][of_eeg] = z
            for i in np.flatnonzero(~of_eeg):
                embeddings[name][i] = each[asked[i][1]].double().mean(0)  # of equal ones exactly the same
        compared, people = self.model.compared(embeddings), len(self.people)
        group = np.where(kind > K, -1, kind * people + np.where(kind == 3, 0, self.subject[first]))
        truth, found = self.picture[first], []
        for target, gallery in self.galleries.items():
            found.append(gallery.search(self._joined(compared, target), truth, deals, group, len(KINDS) * people))
        z = self._joined(compared, self.own).cpu().numpy()[:, : None if self.config.transductive else 0]
        return [{"kind": kind, "trial": first, "z": z}, *found]
