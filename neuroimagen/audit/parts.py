"""What the audit computes, part by part: each takes the study and gives what JSON can hold.

Decoders are linear and in closed form (neuroimagen/linear.py) and learn from train alone; ridge's penalty is chosen on
val. A part raises Untold where the files do not allow it.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import gammaln

from neuroimagen.audit.statistics import (
    accuracy,
    averaged,
    beaten,
    by_stretches,
    correlations,
    described,
    numbered,
    paired,
    permuted,
    same,
    weights,
)
from neuroimagen.audit.trials import VARIANTS, Source, Trials, Untold, coarse_picture
from neuroimagen.doctor.picture_hash import near_pairs
from neuroimagen.linear import fit_lda, fit_ridge
from neuroimagen.pictures import see
from neuroimagen.scores.run_files import ReconstructRun

Result = dict[str, Any]
FOLDS = 5  # in which blocks or runs are held out in turn
PIECES = 10  # contiguous, of a stretch: every other one teaches the clock
DRAWS = 20  # of trials to average, in the curve of repetitions


def decode(x: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray, n_classes: int) -> np.ndarray:
    """Decision scores (len(test), n_classes) of an LDA; -inf for a class that train does not have."""
    if len(np.unique(labels[train])) < 2:
        raise Untold("there are fewer than two classes to train on")
    lda = fit_lda(x[train], labels[train])
    found, scores = lda.decision_function(x[test]), np.full((len(test), n_classes), -np.inf)
    scores[:, lda.classes_] = found if found.ndim == 2 else np.stack([-found, found], 1)
    return scores


def centred(values: np.ndarray, groups: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Rows (n, d) less the mean of the train rows of their group; of all, where a group has none."""
    sums, counts = np.zeros((groups.max() + 1, values.shape[1])), np.bincount(groups[train], minlength=groups.max() + 1)
    np.add.at(sums, groups[train], values[train])
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], values[train].mean(0))
    return values - means[groups]


class Parts:
    """The parts of one study's audit. Features, pictures and ridge's answers are made when a part first asks."""

    def __init__(self, source: Source, run: ReconstructRun | None = None) -> None:
        self.source, self.run = source, run
        self.t: Trials = source.trials
        self.train, self.val, self.test = (self.t.where(split) for split in ("train", "val", "test"))
        # Zero-shot, as in THINGS-EEG2: no class of test was learnt, so pictures are told apart among all of them.
        self.zero_shot = not set(self.t.label[self.test]) & set(self.t.label[self.train])

    def table(self, quick: bool) -> dict[str, Callable[[], Result]]:
        """Name -> what computes it, in the order in which they are shown."""
        found: dict[str, Callable[[], Result]] = {
            "real": self.real,
            "shuffled": self.shuffled,
            "surrogate": lambda: self.real("surrogate"),
            "before": lambda: self.real("before"),
            "people": self.people,
            "within": self.within,
            "floor": self.floor,
            "overlap": self.overlap,
            "repetitions": self.repetitions,
        }
        if not quick:
            found |= {name: functools.partial(self.real, name) for name in VARIANTS if name != "surrogate"}
            found |= {"response": self.response, "blocks": self.blocks, "relabelled": self.relabelled}
            found |= {"nonsense": self.nonsense, "trials": self.trials, "clock": self.clock}
            found |= {"training": self.training, "gallery": self.gallery}
        return found

    def _accuracy(self, scores: np.ndarray, test: np.ndarray) -> Result:
        t = self.t
        return accuracy(scores, t.label[test], t.unit[test], t.person[test], t.stratum[test])

    def _learnable(self) -> None:
        if self.zero_shot:
            raise Untold("no class of test is in train, so no decoder can name one (zero-shot)")

    # ---- the class ----
    def real(self, variant: str = "real") -> Result:
        """Accuracy of the class on the study's own split, from one variant of the EEG."""
        self._learnable()
        x = self.source.features(variant)
        return self._accuracy(decode(x, self.t.label, self.train, self.test, self.t.n_classes), self.test)

    def shuffled(self) -> Result:
        """Labels shuffled within each person (and block) before training: what test gets then."""
        self._learnable()
        labels = self.source.labels("shuffled")
        return self._accuracy(
            decode(self.source.features(), labels, self.train, self.test, self.t.n_classes), self.test
        )

    def relabelled(self) -> Result:
        """Labels permuted between the blocks of each person, in train and test: drift names these as well."""
        self._learnable()
        if not self.t.timed:
            raise Untold("the files do not tell blocks")
        t, labels = self.t, self.source.labels("blocks")
        scores = decode(self.source.features(), labels, self.train, self.test, t.n_classes)
        unit = numbered(list(zip(t.person.tolist(), t.unit.tolist(), labels.tolist(), strict=True)))
        return accuracy(scores, labels[self.test], unit[self.test], t.person[self.test], t.stratum[self.test])

    def nonsense(self) -> Result:
        """The pictures of each class cut at random in two: which half a new picture is of cannot be told."""
        self._learnable()
        labels, t = self.source.labels("nonsense"), self.t
        scores = decode(self.source.features(), labels, self.train, self.test, 2 * t.n_classes)
        return accuracy(scores, labels[self.test], t.unit[self.test], t.person[self.test], labels[self.test] // 2)

    def trials(self) -> Result:
        """The deliberate wrong split: random trials, so that test pictures were trained on."""
        self._learnable()
        t, rng = self.t, np.random.default_rng(self.source.config.seed)
        place = np.empty(len(t.label))
        for label in np.unique(t.label):
            own = np.flatnonzero(t.label == label)
            place[own] = rng.permutation(len(own)) / len(own)
        train, test = np.flatnonzero(place < 0.8), np.flatnonzero(place >= 0.9)
        return self._accuracy(decode(self.source.features(), t.label, train, test, t.n_classes), test)

    def people(self) -> Result:
        """Each person in turn left out of training; each person's features standardised by their own, without labels."""
        self._learnable()
        t, x = self.t, self.source.features().astype(np.float64)
        if t.person.max() == 0:
            raise Untold("there is one person, so nobody can be held out")
        for person in range(t.person.max() + 1):
            own = t.person == person
            spread = x[own].std(0)
            x[own] = (x[own] - x[own].mean(0)) / np.where(spread > 0, spread, 1)
        tests, scores = [], []
        for person in np.unique(t.person[self.test]):
            tests.append(self.test[t.person[self.test] == person])
            scores.append(decode(x, t.label, self.train[t.person[self.train] != person], tests[-1], t.n_classes))
        test, found = np.concatenate(tests), np.concatenate(scores)
        if t.randomised:
            return self._accuracy(found, test) | {"unit": "picture"}
        return by_stretches(found, t.label[test], t.person[test]) | {"unit": "stretch"}

    def blocks(self) -> Result:
        """Whole blocks or runs of randomised order held out in turn; their pictures too, where the split is by image."""
        self._learnable()
        t = self.t
        if not t.randomised:
            why = "every block holds one class" if t.timed else "the files do not tell blocks"
            raise Untold(f"{why}, so no block of several classes can be held out")
        fold = np.empty(len(t.label), int)
        for person in range(t.person.max() + 1):  # neighbouring blocks go together
            own = t.person == person
            fold[own] = np.searchsorted(np.unique(t.stretch[own]), t.stretch[own])
            fold[own] = fold[own] * FOLDS // (fold[own].max() + 1) if fold[own].max() >= FOLDS else fold[own]
        by_run = t.split_by == "run"
        every = np.arange(len(t.label))
        train, test = (every, every) if by_run else (self.train, self.test)
        tests, scores = [], []
        for number in np.unique(fold[test]):
            tests.append(test[fold[test] == number])
            own = train[fold[train] != number]
            scores.append(decode(self.source.features(), t.label, own, tests[-1], t.n_classes))
        return self._accuracy(np.concatenate(scores), np.concatenate(tests))

    def response(self) -> Result:
        """As long a window when there is a response, against the one before there can be: which tells more?"""
        self._learnable()
        t, found = self.t, {}
        for name in ("before", "response"):
            scores = decode(self.source.features(name), t.label, self.train, self.test, t.n_classes)
            means, first = averaged(scores, t.unit[self.test])
            label = t.label[self.test][first]
            found[name] = (means.argmax(1) == label) * weights(label, t.n_classes)[label] * len(label)
        difference = found["response"] - found["before"]
        values = {name: float(right.mean()) for name, right in found.items()}
        return values | {"value": float(difference.mean()), "p": paired(difference), "n": len(difference)}

    def clock(self) -> Result:
        """When in its stretch was a trial? From every other contiguous piece of the stretches to those between."""
        t = self.t
        if not t.timed:
            raise Untold("the files do not tell when trials were")
        x, time = self.source.features().astype(np.float64), np.zeros(len(t.label))
        piece = np.zeros(len(t.label), int)
        for stretch in range(t.stretch.max() + 1):
            own = np.flatnonzero(t.stretch == stretch)
            order = np.argsort(np.argsort(t.onset[own]))
            time[own], piece[own] = order / len(own), order * PIECES // len(own)
        every = np.arange(len(time))
        x, time = centred(x, t.stretch, every), centred(time[:, None], t.stretch, every)[:, 0]
        guess = np.zeros(len(time))
        for side in (0, 1):
            train, test = every[piece % 2 == side], every[piece % 2 != side]
            fit = fit_ridge(x[train[::2]], time[train[::2], None], x[train[1::2]], time[train[1::2], None])
            guess[test] = fit.predict(x[test]).ravel()
            guess[test] -= guess[test].mean()
        size = np.linalg.norm(guess) * np.linalg.norm(time)
        # By stretches: drift of a stretch is one observation, whichever way it goes.
        each = np.bincount(t.stretch, guess * time / size if size else 0 * time)
        return {"value": float(each.sum()), "p": paired(each), "n": len(each)}

    # ---- the picture ----
    @functools.cached_property
    def _colours(self) -> np.ndarray:
        """(n, 192) the coarse picture of each trial."""
        if not self.t.known:
            raise Untold("the files do not say which picture was shown, only its class")
        return self.source.pictures[0][numbered(self.t.image)]

    def _ridge(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        fit = fit_ridge(x[self.train], y[self.train], x[self.val], y[self.val])
        return np.asarray(fit.predict(x[self.test]))

    @functools.cached_property
    def _guesses(self) -> np.ndarray:
        """(n_test, 192) the coarse picture by ridge, of each test trial."""
        y = self._colours
        return self._ridge(self.source.features(), y)

    @functools.cached_property
    def _within(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Two-way identification (pictures, pictures) among test pictures of one class; their classes; a trial of each.

        What tells class, person or block apart is taken out first: each person's mean of each class from the EEG, each
        class's mean from the pictures. Classes of one picture are left out.
        """
        t, y = self.t, self._colours
        if self.t.split_by != "image":
            raise Untold("pictures of test are in train too (the split is by run)")
        cell = t.person if self.zero_shot else t.person * t.n_classes + t.label
        kind = np.zeros(len(t.label), int) if self.zero_shot else t.label
        y = centred(y, kind, self.train)
        guesses, first = averaged(self._ridge(centred(self.source.features(), cell, self.train), y), t.unit[self.test])
        trial = self.test[first]
        several = np.bincount(kind[trial], minlength=kind.max() + 1)[kind[trial]] > 1
        trial, guesses = trial[several], guesses[several]
        return beaten(guesses, y[trial], kind[trial]), kind[trial], trial

    def within(self) -> Result:
        """Which of two test pictures of one class was it?"""
        table, kinds, trial = self._within
        if not len(trial):
            raise Untold("no class has two test pictures")
        n = np.arange(len(trial))
        return described(permuted(table / len(n), n, kinds), table[n, n], [])

    def floor(self) -> Result:
        """Pixel correlation of the 8 x 8 picture by ridge, mean over the trials of a picture; and of the run's maps."""
        y, t = self._colours, self.t
        likeness, first = averaged(correlations(self._guesses, y[self.test]), t.unit[self.test])
        columns = likeness[:, first]
        n = np.arange(len(first))
        result = described(permuted(columns / len(n), n, t.stratum[self.test][first]), columns[n, n], [])
        return result | self._maps()

    def _maps(self) -> Result:
        """The run's saliency maps on the same trials: their pixel correlation, and the difference by pictures."""
        if self.run is None:
            return {}
        keys = [self.source.study.trial(self.source.indices[i][1]).key for i in self.test]
        there = np.array([self.run.map(key).is_file() for key in keys])
        if not there.any():
            return {"maps_why": f"{self.run.path} has no map of these trials"}
        maps = [
            coarse_picture(see(self.run.map(k).read_bytes()).image)
            for k, known in zip(keys, there, strict=True)
            if known
        ]
        truth, unit = self._colours[self.test][there], self.t.unit[self.test][there]
        both = np.stack([same(np.stack(maps), truth), same(self._guesses[there], truth)], 1)
        means, _ = averaged(both, unit)
        return {
            "maps": float(means[:, 0].mean()),
            "ridge": float(means[:, 1].mean()),
            "p_maps": paired(means[:, 0] - means[:, 1]),
            "p_ridge": paired(means[:, 1] - means[:, 0]),
            "n_maps": len(means),
        }

    def overlap(self) -> Result:
        """Each test picture's nearest training picture; identification of those that have none so near."""
        y, t = self._colours, self.t
        number = numbered(t.image)
        ours, theirs = np.unique(number[self.test]), np.unique(number[self.train])
        colours, grey = self.source.pictures
        near = correlations(colours[ours], colours[theirs])
        pairs = near_pairs(list(grey[ours]), list(grey[theirs]))
        shared = set(ours.tolist()) & set(theirs.tolist())
        result: Result = {
            "nearest": float(near.max(1).mean()),
            "shared": len(shared),
            "twins": len({i for i, *_ in pairs}),
            "n_pictures": len(ours),
        }
        table, kinds, trial = self._within
        similar = near.max(1)[np.searchsorted(ours, number[trial])]
        n, far = np.arange(len(trial)), similar <= np.median(similar)
        tested = permuted(table[far] / far.sum(), n[far], kinds[far])
        quarters = np.array_split(np.argsort(similar), 4)
        curve = [[float(similar[q].mean()), float(table[q, q].mean())] for q in quarters if len(q)]
        return result | described(tested, table[n, n][far], []) | {"curve": curve}

    # ---- curves ----
    def repetitions(self) -> Result:
        """Accuracy against the number of trials of a picture that are averaged; pictures that have so many."""
        self._learnable()
        t, rng = self.t, np.random.default_rng(0)
        scores = decode(self.source.features(), t.label, self.train, self.test, t.n_classes)
        unit, label = t.unit[self.test], t.label[self.test]
        members = [np.flatnonzero(unit == u) for u in np.unique(unit)]
        sizes, most = [1], max(map(len, members))
        while sizes[-1] < most:
            sizes.append(min(2 * sizes[-1], most))
        curve = []
        for size in sizes:
            enough = [own for own in members if len(own) >= size]
            of = np.array([label[own[0]] for own in enough])
            right = [
                scores[rng.permuted(np.tile(own, (DRAWS, 1)), axis=1)[:, :size]].mean(1).argmax(1) == label[own[0]]
                for own in enough
            ]
            value = (np.mean(right, axis=1) * weights(of, t.n_classes)[of]).sum()
            curve.append([size, float(value), len(enough)])
        return {"curve": curve}

    def training(self) -> Result:
        """Accuracy against the number of train trials of each person, each half of the next."""
        self._learnable()
        t, rng, curve = self.t, np.random.default_rng(0), []
        order = rng.permutation(self.train)
        own = [order[t.person[order] == person] for person in np.unique(t.person)]
        most = max(map(len, own))
        while most >= 2 * len(np.unique(t.label[self.train])):
            some = np.concatenate([o[:most] for o in own])
            scores = decode(self.source.features(), t.label, some, self.test, t.n_classes)
            curve.append([most, self._accuracy(scores, self.test)["value"]])
            most //= 2
        return {"curve": curve[::-1]}

    def gallery(self) -> Result:
        """How often the picture shown is the likeliest of so many test pictures, itself and others at random."""
        guesses, first = averaged(self._guesses, self.t.unit[self.test])
        truth = self._colours[self.test][first]
        n = len(truth)
        worse = np.floor(np.diag(beaten(guesses, truth, np.zeros(n, int))) * (n - 1) + 1e-9)
        sizes = [size for size in (2, 5, 10, 20, 50, 100, 200, 500, 1000) if size < n] + [n]
        return {"curve": [[size, float(np.mean(best_of(worse, n - 1, size - 1))), 1 / size] for size in sizes]}


def best_of(worse: np.ndarray, others: int, drawn: int) -> np.ndarray:
    """Probability that `drawn` of the `others`, without putting back, are all among the `worse` (n,) ones."""

    def log_ways(of: np.ndarray | int) -> Any:
        return gammaln(np.asarray(of) + 1.0) - gammaln(np.maximum(np.asarray(of) - drawn, 0) + 1.0)

    return np.where(worse >= drawn, np.exp(log_ways(worse) - log_ways(others)), 0.0)
