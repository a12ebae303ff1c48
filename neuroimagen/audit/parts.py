"""What the audit computes, part by part: each takes the study and gives what JSON can hold.

Decoders are linear and in closed form (neuroimagen/linear.py) and learn from train alone; ridge's penalty is chosen on
val. A part raises Untold with a sentence where the files do not allow it.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from neuroimagen.audit import statistics as stats
from neuroimagen.audit.trials import Source, Trials, Untold, coarse_picture
from neuroimagen.audit.verdicts import VARIANTS
from neuroimagen.doctor.picture_hash import near_pairs
from neuroimagen.linear import fit_lda, fit_ridge
from neuroimagen.pictures import see
from neuroimagen.scores.run_files import ReconstructRun

Result = dict[str, Any]
FOLDS = 5  # in which blocks or runs are held out in turn
PIECES = 10  # contiguous, of a stretch: every other one teaches the clock
DRAWS = 20  # of trials to average, in the curve of repetitions
UNKNOWN = "the files do not say which picture was shown, only its class"
QUICK = ("real", "before", "shuffled", "surrogate", "people", "within", "floor", "overlap", "repetitions")


def decode(x: np.ndarray, t: Trials, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Decision scores (len(test), n_classes) of an LDA; -inf for a class that train does not have."""
    if t.zero_shot:
        raise Untold("no class of test is in train, so no decoder can name one (zero-shot)")
    if len(np.unique(t.label[train])) < 2:
        raise Untold("there are fewer than two classes to train on")
    if len(train) <= len(np.unique(t.label[train])):
        raise Untold(f"there are {len(train)} trials to train on, no more than classes")
    lda = fit_lda(x[train], t.label[train])
    found, scores = lda.decision_function(x[test]), np.full((len(test), t.n_classes), -np.inf)
    scores[:, lda.classes_] = found if found.ndim == 2 else np.stack([-found, found], 1)
    return scores


def judged(scores: np.ndarray, t: Trials, test: np.ndarray, stratum: np.ndarray | None = None) -> Result:
    strata = t.stratum if stratum is None else stratum
    return stats.accuracy(scores, t.label[test], t.unit[test], t.person[test], strata[test])


def centred(values: np.ndarray, groups: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Rows (n, d) less the mean of the train rows of their group; of all, where a group has none."""
    means = np.tile(values[train].mean(0), (groups.max() + 1, 1))
    means[np.unique(groups[train])] = stats.averaged(values[train], groups[train])[0]
    return np.asarray(values - means[groups])


class Parts:
    """The parts of one study's audit. Features, pictures and ridge's answers are made when a part first asks."""

    def __init__(self, source: Source, run: ReconstructRun | None = None) -> None:
        self.source, self.run, self.t = source, run, source.trials

    def table(self, quick: bool) -> dict[str, Callable[[], Result]]:
        """Name -> what computes it, in the order in which they are shown."""
        variants = {name: functools.partial(self.variant, name) for name in ("before", *VARIANTS["linear"])}
        found: dict[str, Callable[[], Result]] = {"real": self.real, **variants, "people": self.people}
        found |= {"within": self.within, "floor": self.floor, "overlap": self.overlap, "blocks held out": self.blocks}
        found |= {"response": self.response, "clock": self.clock, "training": self.training, "gallery": self.gallery}
        found |= {"repetitions": self.repetitions}
        return {name: compute for name, compute in found.items() if name in QUICK or not quick}

    # ---- the class ----
    @functools.cached_property
    def _scores(self) -> np.ndarray:
        return decode(self.source.real, self.t, self.t.train, self.t.test)

    @functools.cached_property
    def _copies(self) -> np.ndarray:
        """(n,) numbers that are equal where the EEG is, value for value."""
        return stats.numbered(row.tobytes() for row in self.source.real)

    def real(self) -> Result:
        """Accuracy of the class on the study's own split."""
        return judged(self._scores, self.t, self.t.test)

    def variant(self, name: str) -> Result:
        """The same of other EEG, labels or splits."""
        x, t = self.source.varied(name)
        # Which half of its class a picture was put in: among the pictures of that class.
        return judged(decode(x, t, t.train, t.test), t, t.test, t.label // 2 if name == "nonsense" else None)

    def people(self) -> Result:
        """Each person in turn left out of training; features standardised within each person, without labels."""
        t, x = self.t, self.source.real.astype(np.float64)
        if t.person.max() == 0:
            raise Untold("there is one person, so nobody can be held out")
        copies = self._copies.tolist()
        if twice := len({*zip(copies, t.person.tolist(), strict=True)}) - len(set(copies)):
            raise Untold(f"{twice} trials hold the very EEG of another person: is it one, under two numbers?")
        for own in stats.members(t.person):
            spread = x[own].std(0)
            x[own] = (x[own] - x[own].mean(0)) / np.where(spread > 0, spread, 1)
        scores, test = self._in_turn(x, t.person, t.train, t.test)
        return judged(scores, t, test) if t.randomised else stats.by_stretches(scores, t.label[test], t.person[test])

    def _in_turn(self, x: np.ndarray, fold: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[Any, np.ndarray]:
        """Scores of the test trials of each fold by a decoder of the train trials of the others; and which trials."""
        tests = [test[own] for own in stats.members(fold[test])]
        scores = [decode(x, self.t, train[fold[train] != fold[own[0]]], own) for own in tests]
        return np.concatenate(scores), np.concatenate(tests)

    def blocks(self) -> Result:
        """Whole blocks or runs of random order held out in turn; their pictures too, where the split is by image."""
        t, every = self.t, np.arange(len(self.t.label))
        if not t.randomised:
            why = "classes came in blocks" if t.timed else "the files do not tell blocks"
            raise Untold(f"{why}, so no block of several classes can be held out")
        fold = np.zeros_like(every)
        for own in stats.members(t.person):
            place = np.unique(t.stretch[own], return_inverse=True)[1]  # neighbouring blocks go together
            fold[own] = place * FOLDS // max(FOLDS, place.max() + 1)
        if fold.max() == 0:
            raise Untold("there is one block of each person, so none can be held out")
        train, test = (every, every) if t.split_by == "run" else (t.train, t.test)
        scores, test = self._in_turn(self.source.real, fold, train, test)
        return judged(scores, t, test)

    def response(self) -> Result:
        """As long a window when there is a response, against the one before there can be: which tells more?"""
        found = {}
        for name in ("before", "response"):
            x, t = self.source.varied(name)
            found[name] = stats.gained(decode(x, t, t.train, t.test), t.label[t.test], t.unit[t.test])[1]
        difference = found["response"] - found["before"]
        values = {name: float(right.mean()) for name, right in found.items()}
        return values | {"value": float(difference.mean()), "p": stats.paired(difference), "n": len(difference)}

    def clock(self) -> Result:
        """When in its stretch was a trial? From every other contiguous piece of a stretch to those between.

        Drift has another direction in each stretch, so each has a decoder of its own; a piece is one observation.
        """
        t = self.t
        if not t.timed:
            raise Untold("the files do not tell when trials were")
        stretches = [own for own in stats.members(t.clock) if len(own) >= 4 * PIECES]
        if not stretches:
            raise Untold(f"no stretch has {4 * PIECES} trials, by which to tell the time in it")
        found = []
        for own in (own[np.argsort(t.onset[own], kind="stable")] for own in stretches):
            x, place, guess = self.source.real[own], np.arange(len(own)), np.zeros(len(own))
            time, piece = place / len(own) - 0.5, place * PIECES // len(own)
            for train, test in itertools.permutations(stats.members(piece % 2)):
                fit, val = train[::2], train[1::2]
                guess[test] = fit_ridge(x[fit], time[fit, None], x[val], time[val, None]).predict(x[test]).ravel()
                guess[test] -= guess[test].mean()
            found.append((guess, time, np.bincount(piece, guess * time)))
        guesses, times, each = map(np.concatenate, zip(*found, strict=True))
        size = float(np.linalg.norm(guesses) * np.linalg.norm(times)) or 1.0
        return {"value": sum(each.tolist()) / size, "p": stats.paired(each), "n": len(each), "unit": "stretch"}

    # ---- the picture ----
    @functools.cached_property
    def _colours(self) -> np.ndarray:
        """(n, 192) the coarse picture of each trial."""
        if not self.t.known:
            raise Untold(UNKNOWN)
        return self.source.pictures[0][self.t.image]

    def _ridge(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        t = self.t
        return np.asarray(fit_ridge(x[t.train], y[t.train], x[t.val], y[t.val]).predict(x[t.test]))

    @functools.cached_property
    def _guesses(self) -> np.ndarray:
        """(n_test, 192) the coarse picture by ridge, of each test trial."""
        return self._ridge(self.source.real, self._colours)

    @functools.cached_property
    def _residuals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each test trial the picture by ridge (n_test, 192), the picture, and the class to tell it apart within.

        What tells class, person or block apart is taken out first: each person's mean of each class from the EEG, each
        class's mean from the pictures.
        """
        t, y = self.t, self._colours
        if t.split_by != "image":
            raise Untold("the split is not by image: pictures of test are in train too")
        kind = np.zeros(len(t.label), int) if t.zero_shot else t.label
        x, y = centred(self.source.real, t.person * t.n_classes + kind, t.train), centred(y, kind, t.train)
        return self._ridge(x, y), y[t.test], kind[t.test]

    def _identified(self, own: np.ndarray) -> tuple[Result, np.ndarray, np.ndarray]:
        guesses, truths, kinds = (values[own] for values in self._residuals)
        test = self.t.test[own]
        result, shares, trial = stats.identified(guesses, truths, self.t.unit[test], self.t.person[test], kinds)
        return result, shares, test[trial]

    def within(self) -> Result:
        """Which of two test pictures of one class was it?"""
        return self._identified(np.arange(len(self.t.test)))[0]

    def floor(self) -> Result:
        """Pixel correlation of the 8 x 8 picture by ridge, mean over the trials of a picture; and of the run's maps."""
        t, y = self.t, self._colours[self.t.test]
        _, first, unit = np.unique(t.unit[t.test], return_index=True, return_inverse=True)
        likeness, n = stats.correlations(self._guesses, y[first]), np.arange(len(first))
        each, columns = likeness[np.arange(len(unit)), unit], stats.averaged(likeness, unit)[0]
        people = [float(each[own].mean()) for own in stats.members(t.person[t.test])]
        tested = stats.permuted(columns / len(n), n, t.stratum[t.test][first])
        result = stats.described(tested, np.diag(columns), people)
        if self.run is None:
            return result
        # A control has other pictures by these keys.
        shown = {trial["key"]: trial["image"] for trial in self.run.trials}
        trials = [self.source.study.trial(self.source.indices[i]) for i in t.test]
        maps = [self.run.map(trial.key) for trial in trials]
        same = [shown.get(trial.key) == trial.image for trial in trials]
        own = np.array([i for i, path in enumerate(maps) if same[i] and path.is_file()], int)
        if not len(own):
            return result | {"maps_why": f"{self.run.path} has no map of these trials"}
        coarse = np.stack([coarse_picture(see(maps[i].read_bytes()).image) for i in own])
        pairs = np.stack([np.diag(stats.correlations(coarse, y[own])), each[own]], 1)
        both = stats.averaged(pairs, unit[own])[0]
        values = {"maps": float(both[:, 0].mean()), "ridge": float(both[:, 1].mean()), "n_maps": len(both)}
        return result | values | {"p_maps": stats.paired(both @ [1, -1]), "p_ridge": stats.paired(both @ [-1, 1])}

    def overlap(self) -> Result:
        """Each test picture's nearest training picture; identification of those that have none so near."""
        t, test = self.t, self.t.test
        copies = int(np.isin(self._copies[test], self._copies[t.train]).sum())
        if not t.known:
            return {"why": UNKNOWN, "copies": copies}
        colours, grey = self.source.pictures
        ours, theirs = np.unique(t.image[test]), np.unique(t.image[t.train])
        nearest = np.zeros(t.image.max() + 1)
        nearest[ours] = stats.correlations(colours[ours], colours[theirs]).max(1)
        twins = len({i for i, *_ in near_pairs(list(grey[ours]), list(grey[theirs]))})
        shared = len(set(ours.tolist()) & set(theirs.tolist()))
        known: Result = {"shared": shared, "twins": twins, "n_pictures": len(ours), "copies": copies}
        known["nearest"] = nearest[ours].mean()
        try:
            _, shares, trial = self._identified(np.arange(len(test)))
        except Untold as error:
            return known | {"why": str(error)}
        quarters = np.array_split(np.argsort(nearest[t.image[trial]]), 4)
        curve = [[nearest[t.image[trial]][q].mean(), shares[q].mean()] for q in quarters if len(q)]
        far = np.flatnonzero(nearest[t.image[test]] <= np.median(nearest[ours]))
        return known | self._identified(far)[0] | {"curve": curve}

    # ---- curves ----
    def repetitions(self) -> Result:
        """Accuracy against the number of trials of a picture that are averaged, of the pictures that have so many."""
        rng, unit, label = np.random.default_rng(0), self.t.unit[self.t.test], self.t.label[self.t.test]
        scores, members, curve = self._scores, stats.members(unit), []
        most = max(map(len, members))
        for size in sorted({*(2**k for k in range(most.bit_length())), most}):
            enough = [own for own in members if len(own) >= size]
            drawn = [rng.permuted(np.tile(own, (DRAWS, 1)), axis=1)[:, :size] for own in enough]
            right = [np.mean(scores[d].mean(1).argmax(1) == label[d[0, 0]]) for d in drawn]
            by_class, _ = stats.averaged(np.array(right), label[[own[0] for own in enough]])
            curve.append([size, float(by_class.mean()), len(enough)])
        return {"curve": curve}

    def training(self) -> Result:
        """Accuracy against the number of train trials of each person, each half of the next."""
        t, curve = self.t, []
        order = np.random.default_rng(0).permutation(t.train)
        own = [order[rows] for rows in stats.members(t.person[order])]
        most = max(map(len, own))
        while most >= 2 * len(np.unique(t.label[t.train])):
            scores = decode(self.source.real, t, np.concatenate([o[:most] for o in own]), t.test)
            curve.append([most, judged(scores, t, t.test)["value"]])
            most //= 2
        return {"curve": curve[::-1]}

    def gallery(self) -> Result:
        """How often the picture shown is the likeliest of so many test pictures, itself and others at random."""
        guesses, first = stats.averaged(self._guesses, self.t.unit[self.t.test])
        truth, n = self._colours[self.t.test][first], len(first)
        worse = np.floor(np.diag(stats.beaten(guesses, truth, np.zeros(n, int))) * (n - 1) + 1e-9)
        sizes = [size for size in (2, 5, 10, 20, 50, 100, 200, 500, 1000) if size < n] + [n]
        # All others of the gallery are of the worse ones.
        found = [float(hypergeom.pmf(size - 1, n - 1, worse, size - 1).mean()) for size in sizes]
        return {"curve": [[size, share, 1 / size] for size, share in zip(sizes, found, strict=True)]}
