"""The score book of one run: from what was measured of each picture to every number that scores.json holds.

What the numbers are: metrics.yaml, docs/scores.md. A row that no table shows is measured like the others: "truth",
the ground-truth pictures as if they were reconstructions (the ceilings).
"""

import csv
import io
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import softmax

from neuroimagen.rows import CEILING, FLOOR, ROWS, VALIDITY
from neuroimagen.run.collectives import spread
from neuroimagen.scores import metrics as numbers
from neuroimagen.scores.classifiers import Classifier
from neuroimagen.scores.definitions import BEST, CONTROL_OF, METRICS, chosen, describe, of_kind
from neuroimagen.scores.intervals import FEWEST, Estimate, bootstrap_means
from neuroimagen.scores.measure import Arrays, Measured, load_judges, measure
from neuroimagen.scores.metrics import success_by_rank
from neuroimagen.scores.run_files import VERSION, ReconstructRun
from neuroimagen.scores.similarity import SSIM_SETTINGS, frechet_distance, kernel_distance
from neuroimagen.studies.classes import UNEVEN

ONE_PICTURE = "not available: all trials show one and the same picture; reconstruct a test set with more"
RANKS = ("two-way", "top1", "top5", "n-way")  # kinds of metrics: by the rank of the picture seen


class ScoreBook:
    """Every number of one run, by one classifier and the networks at hand."""

    def __init__(self, run: ReconstructRun, classifier: Classifier, config: Any) -> None:
        """config: of evaluate.py. ValueError, before any work: an N, a metric or distractors that make no sense."""
        self.run, self.classifier, self.config = run, classifier, config
        self.wanted = chosen(config.metrics)
        self.unavailable: dict[str, str] = {}
        self.groups = run.groups()
        trials = run.trials
        self.labels = np.array([trial["label"] for trial in trials])
        _, self.place, counts = np.unique(self.labels, return_inverse=True, return_counts=True)  # among the classes
        images = np.array([trial["image"] for trial in trials])
        # Within one class diversity is no virtue, and within one picture nothing can be dealt out.
        self.wide = {group: mask for group, mask in self.groups.items() if not group.startswith("class ")}
        self.deals = {
            group: numbers.deal(int(mask.sum()), run.samples)
            for group, mask in self.wide.items()
            if len(set(images[mask])) > 1
        }
        # The study's classes, those of its test trials, and where the classifier has them.
        names = {trial["label"]: (trial.get("wnid", ""), trial["class_name"]) for trial in trials}
        self.class_names = {label: names[label][1] for label in sorted(names)}
        found = {label: classifier.find(*names[label]) for label in sorted(names)}
        unknown = [self.class_names[label] for label, index in found.items() if index is None]
        self.known: np.ndarray | None = None if unknown else np.array(list(found.values()), dtype=np.int64)
        remedy = "give one that does, for a lab's own classes one by `neuroimagen probe`"
        if unknown:
            said = f"the classifier does not know {len(unknown)} of the data set's classes (first: {unknown[0]})"
            if config.distractors == "study":
                raise ValueError(f"distractors=study, but {said}; {remedy}, or distractors=classifier")
            self.unavailable["acc_label"] = f"not available: {said}; {remedy}"
        self.judged = len(found) if config.distractors == "study" else len(classifier.classes)
        self.n_way = numbers.check_n_way(self.judged, config.n_way, config.top_k)
        self.by_class = success_by_rank(self.judged, self.n_way, config.top_k)
        if not 1 <= config.inception_splits <= len(trials):
            splits = f"inception_splits={config.inception_splits}"
            raise ValueError(f"{splits} must be 1 to the number of trials, {len(trials)}")
        if "all" not in self.deals:
            self.unavailable |= dict.fromkeys(("shuffled", *CONTROL_OF, *of_kind(*RANKS)), ONE_PICTURE)
        if len(found) != 2 and "auc" in config.metrics:
            self.unavailable["auc"] = f"not available: AUC is of two classes, and these trials are of {len(found)}"
        elif len(found) == 2 and unknown:
            self.unavailable["auc"] = self.unavailable["acc_label"]
        asked = "gap" in config.metrics or any(row in VALIDITY for row in run.rows)
        self.told = asked and {FLOOR, CEILING} <= {*run.rows}
        if "gap" in config.metrics and not self.told:
            self.unavailable["gap"] = f"not available: it needs the rows {FLOOR} and {CEILING}; draw them"
        self.headline = "acc_balanced" if counts.max() > UNEVEN * counts.min() else "acc"
        with Image.open(run.truth(trials[0]["key"])) as picture:
            side = min(picture.size)
        where = classifier.device, config.weights, config.download
        self.judges, self.pairs, missing = load_judges(self.wants, *where, side)
        self.unavailable |= missing

    def wants(self, *names: str) -> bool:
        return any(name in self.wanted and name not in self.unavailable for name in names)

    def measure(self) -> None:
        """All that needs the pictures. Collective: every rank."""
        run, samples = self.run, range(self.run.samples)
        keys = [trial["key"] for trial in run.trials]
        keep, compare = (
            list(dict.fromkeys(metric.layer for name, metric in of_kind(*kinds).items() if self.wants(name)))
            for kinds in (("class", "is", "fid", "kid"), (*RANKS, "distance"))
        )
        self.measured: Measured = measure(
            {row: [[run.image(row, key, sample) for sample in samples] for key in keys] for row in run.rows},
            [run.truth(key) for key in keys],
            {name: (mine := np.flatnonzero(self.wide[name]), mine[dealt]) for name, dealt in self.deals.items()},
            [self.classifier.outputs, *self.judges],
            keep,
            compare,
            self.pairs,
            self.config.batch_size,
            self.classifier.device,
        )
        first: dict[int, str] = {}  # two files of equal pixels are one picture
        shown = zip(self.measured.numbers["truth"][:, 0].tolist(), run.trials, strict=True)
        self.images = np.array([first.setdefault(number, trial["image"]) for number, trial in shown])
        self.units = self.images if run.pictures_known else run.units()
        if self.deals and self.measured.gallery <= 5:
            few = f"not available: {self.measured.gallery} different ground-truth pictures, top-5 needs more"
            self.unavailable |= dict.fromkeys(of_kind("top5"), few)
        if self.measured.gallery < 4:
            few = f"not available: {self.measured.gallery} different ground-truth pictures, a distance of sets needs 4"
            self.unavailable |= {name: few for name in of_kind("fid", "kid") if self.wants(name)}
        # The truth of ACC, for the classifier or among the study's classes
        self.seen = self.among(self.measured.of("probabilities", "truth")).argmax(1)
        self.values = {row: self._values(row) for row in self.measured.numbers}

    def among(self, probabilities: np.ndarray) -> np.ndarray:
        """(n, K) -> (n, classes that are judged among)"""
        return probabilities[:, self.known] if self.config.distractors == "study" else probabilities

    def _tables(self) -> Arrays:
        """metric -> what a picture gets by the rank of its truth: of each metric that counts ranks."""
        tables, m = {"class": self.by_class}, self.measured.gallery
        if m > 1:
            tables |= {f"top{k}": (np.arange(m) < k).astype(float) for k in (1, 5)}
            tables |= {"two-way": success_by_rank(m, 2, 1), "n-way": success_by_rank(m, min(self.config.n_way, m), 1)}
        return {name: tables[metric.kind] for name, metric in of_kind(*tables).items() if self.wants(name)}

    def _values(self, row: str) -> Arrays:
        """metric -> (n, samples) of one row, for all metrics of single pictures."""
        shape = self.measured.numbers[row].shape
        tables = self._tables()
        probabilities = self.among(self.measured.of("probabilities", row))

        def ranked(truth: np.ndarray) -> np.ndarray:
            return numbers.ranks_of(probabilities, truth.repeat(shape[1])[:, None]).reshape(shape)

        found = {"acc": tables["acc"][ranked(self.seen)]}
        if "acc_label" in tables:
            assert self.known is not None
            right = self.place if self.config.distractors == "study" else self.known[self.place]
            found["acc_label"] = tables["acc_label"][ranked(right)]
        found |= {k: values for k in of_kind("pair", "distance") if (values := self._paired(k, row)) is not None}
        for name, metric in of_kind(*RANKS).items():
            if name in tables and f"rank {metric.layer}" in self.measured.pairs:
                found[name] = tables[name][self.measured.compared(f"rank {metric.layer}", row)]
        return {name: found[name].astype(np.float64) for name in self.wanted if name in found and self.wants(name)}

    def _paired(self, name: str, row: str, deal: str | None = None) -> np.ndarray | None:
        """A metric of two pictures, as `Measured.compared`; None: not measured."""
        apart = METRICS[name].kind == "distance"
        layer = f"own {METRICS[name].layer}" if apart else name
        if layer not in self.measured.pairs:
            return None
        found = self.measured.compared(layer, row, deal).astype(np.float64)
        return 1 - found if apart else found

    def _means(self, group: str, best: bool = False) -> dict[tuple[str, str], Estimate]:
        """(row, metric) -> mean over a group's trials, of all their samples or of each one's best."""
        mask, rows = self.groups[group], self.run.rows
        columns = [(row, name) for row in rows for name in self.values[row] if name in BEST or not best]
        values = [self.values[row][name][mask] for row, name in columns]
        if best:
            values = [
                found.max(1, keepdims=True) if METRICS[name].better == "higher" else found.min(1, keepdims=True)
                for found, (_, name) in zip(values, columns, strict=True)
            ]
        units = self.units[mask].repeat(values[0].shape[1])
        shares = [METRICS[name].scale == 100 for _, name in columns]
        estimates = bootstrap_means(np.stack([found.ravel() for found in values], 1), units, shares)
        return dict(zip(columns, estimates, strict=True))

    def _inside(self, row: str, group: str) -> tuple[np.ndarray, ...]:
        """Which pictures of a row are in a group, a mask; of these the units, and the numbers of the truths."""
        samples, mask = self.measured.numbers[row].shape[1], self.wide[group]
        truths = self.measured.numbers["truth"][mask, 0]
        return mask.repeat(samples), self.units[mask].repeat(samples), truths.repeat(samples)

    def _sets(self, place: tuple[str, str]) -> dict[str, Estimate]:
        """Of a row and group the metrics of a whole set of pictures, but for KID."""
        (row, group), found = place, {}
        samples, mask = self.measured.numbers[row].shape[1], self.wide[group]
        inside, units, truths = self._inside(row, group)
        probabilities = self.measured.of("probabilities", row)[inside]
        for name, metric in of_kind("is").items():
            if self.wants(name) and len(units) >= self.config.inception_splits:
                theirs = self.measured.of(metric.layer, row)[inside]
                theirs = softmax(theirs.astype(np.float64), 1) if metric.layer == "logits" else theirs
                found[name] = numbers.inception_estimate(theirs, units, self.config.inception_splits)
        own = np.unique(truths)  # different ground-truth pictures
        for name, metric in of_kind("fid").items():
            if self.wants(name) and len(own) >= 4:
                theirs = self.measured.outputs[metric.layer][own]
                distance = frechet_distance(self.measured.of(metric.layer, row)[inside], theirs)
                found[name] = Estimate(distance, None, None, len(set(units)))
        labels = self.labels[mask].repeat(samples)
        if self.wants("acc_balanced"):
            values = self.values[row]["acc"][mask].ravel()
            found["acc_balanced"] = numbers.balanced_estimate(values, labels, units)
        if self.told and (fraction := self._attained(row, group)):
            found["gap"] = fraction
        if self.wants("auc") and self.known is not None and len(self.known) == 2 and len(set(labels)) == 2:
            logs = np.log(np.maximum(probabilities[:, self.known].astype(np.float64), 1e-300))  # they may be 1e-40
            found["auc"] = numbers.auc_estimate(logs[:, 1] - logs[:, 0], labels == self.labels.max(), units)
        if group not in self.deals:
            return found
        if self.wants("shuffled"):
            seen = self.among(self.measured.outputs["probabilities"][truths]).argmax(1)
            classes, which = np.unique(seen, return_inverse=True)  # only these can be dealt out
            success = self.by_class[numbers.ranks_of(self.among(probabilities), classes)]
            found["shuffled"] = numbers.shuffled_estimate(success, which, units)
        for name in of_kind("pair", "distance"):
            if (dealt := self._paired(name, row, group)) is not None and self.wants(f"{name}_gain"):
                whose, better = self.deals[group][:, :samples], METRICS[name].better or ""
                both = numbers.dealt_estimates(self.values[row][name][mask], dealt, whose, self.units[mask], better)
                found[f"{name}_other"], found[f"{name}_gain"] = both
        return found

    def _attained(self, row: str, group: str) -> Estimate | None:
        """Fraction of the attainable gap; None where that cannot be told."""

        def fraction(means: np.ndarray) -> np.ndarray:
            own, floor, ceiling = means.T
            return np.stack([(own - floor) / np.maximum(ceiling - floor, 1e-12), ceiling - floor], 1)

        mask = self.wide[group]
        columns = np.stack([self.values[which]["acc"][mask].mean(1) for which in (row, FLOOR, CEILING)], 1)
        found, gap = bootstrap_means(columns, self.units[mask], of=fraction)
        return found if gap.low is not None and gap.low > 0 else None

    def _beside(self) -> dict[str, dict[str, Any]]:
        """Of each row that is to be set beside another (rows.py): by how much that one's metrics of single pictures are
        above its own, picture by picture."""
        found = {}
        for row in self.run.rows:
            other = ROWS[row].beside if row in ROWS else ""
            if other in self.run.rows:
                both = [(name, self.values[other][name] - own) for name, own in self.values[row].items()]
                units = self.units.repeat(self.run.samples)
                means = bootstrap_means(np.stack([gain.ravel() for _, gain in both], 1), units)
                found[row] = {name: mean._asdict() for (name, _), mean in zip(both, means, strict=True)}
        return found

    def _kernel(self, place: tuple[str, str]) -> dict[str, Estimate]:
        """KID of a row and group. Collective: every rank; of a large set it is longer than all other metrics."""
        inside, units, truths = self._inside(*place)
        own, which = np.unique(truths, return_inverse=True)
        found = {}
        for name, metric in of_kind("kid").items():
            if self.wants(name) and len(own) >= 4:
                ours = self.measured.of(metric.layer, place[0])[inside]
                theirs = self.measured.outputs[metric.layer][own]
                found[name] = Estimate(kernel_distance(ours, theirs, which), None, None, len(set(units)))
        return found

    def scores(self) -> dict[str, Any]:
        """What scores.json holds, but for the command's config and what it was made of. Collective: every rank."""
        run, rows, about = self.run, self.run.rows, self.run.about
        found: dict[str, dict[str, dict[str, Any]]] = {row: {group: {} for group in self.groups} for row in rows}
        best: dict[str, dict[str, dict[str, Any]]] = {row: {"all": {}} for row in rows} if run.samples > 1 else {}
        for group, estimates in zip(self.groups, spread(self._means, list(self.groups)), strict=True):
            for (row, name), estimate in estimates.items():
                found[row][group][name] = estimate._asdict()
        for (row, name), estimate in (self._means("all", best=True) if best else {}).items():
            best[row]["all"][name] = estimate._asdict()
        ceilings = {name: float(value.mean()) for name, value in self.values["truth"].items()}
        places = [("truth", "all"), *((row, group) for group in self.wide for row in rows)]
        for (row, group), sets in zip(places, spread(self._sets, places), strict=True):
            sets |= self._kernel((row, group))
            if row == "truth":
                ceilings |= {name: estimate.value for name, estimate in sets.items()}
            else:
                found[row][group] |= {name: estimate._asdict() for name, estimate in sets.items()}
        if self.told and not any("gap" in found[row]["all"] for row in rows):
            what = f"of the accuracies of {CEILING} and {FLOOR} the interval of the difference is not above 0"
            self.unavailable["gap"] = f"cannot be told: {what}, or there are fewer than {FEWEST} pictures"
        measured = [name for name in self.wanted if any(name in found[row]["all"] for row in rows)]
        seen = self.measured.of("probabilities", "truth").argmax(1)
        truth: dict[str, Any] = {"is": ceilings["is"]} if "is" in ceilings else {}
        if "all" in self.deals:
            alike = numbers.best_guess(self.seen, self.by_class)
            balanced = numbers.best_guess(self.seen, self.by_class, 1 / np.bincount(self.place)[self.place])
            truth["guessing"] = {
                "acc": bootstrap_means(alike[:, None], self.units, [True])[0]._asdict(),
                "acc_balanced": numbers.balanced_estimate(balanced, self.labels, self.units)._asdict(),
            }
        if self.known is not None:
            truth["named_rightly"] = float((seen == self.known[self.place]).mean())
        return {
            "format": "neuroimagen-scores",
            "version": VERSION,
            "simulated": bool(about.get("simulated")),
            **{name: about["manifest"][name] for name in ["mark"] if name in about.get("manifest", {})},
            "dataset": about.get("manifest", {}).get("dataset"),
            "captions_source": about.get("captions_source"),
            "trials": len(run.trials),
            "pictures": len(set(self.images)),
            "subjects": len({trial["subject"] for trial in run.trials}),
            "samples": run.samples,
            "classifier": self.classifier.describe,
            "classes": len(self.classifier.classes),
            "distractors": self.config.distractors,
            "n_way": self.n_way,
            "n_way_asked": self.config.n_way,
            "top_k": self.config.top_k,
            "chance": self.config.top_k / self.n_way,
            "headline": self.headline,
            "gallery": self.measured.gallery,
            "ssim_settings": SSIM_SETTINGS + "; ssim: mean of the colour channels, ssim_grey: luma",
            "inception_splits": self.config.inception_splits,
            "interval": f"95 % percentile bootstrap over {run.unit}, 2000 resamples, levels widened for few (all 0 or "
            "all 1: Clopper-Pearson; sets of pictures, such as IS and shuffled, and what is gained over such: a "
            f"jackknife over the same), none below {FEWEST}; n counts them",
            "truth": truth,
            "metrics": self._described(measured, ceilings),
            "unavailable": {name: self.unavailable[name] for name in self.wanted if name in self.unavailable},
            "rows": found,
            "best_of_n": best,
            **({"beside": beside} if (beside := self._beside()) else {}),
            "confusion": {} if self.known is None else {row: self._confusion(row) for row in rows},
        }

    def _described(self, measured: list[str], ceilings: dict[str, float]) -> dict[str, dict[str, Any]]:
        """Of each metric its definition, chance, and what the ground-truth pictures get."""
        samples, gallery, dealt = self.run.samples, self.measured.gallery, "the exact mean over all shuffles"
        if "all" in self.deals and (k := self.deals["all"].shape[2]) < len(self.run.trials) - 1:
            dealt = f"{k} seeded shuffles of each sample, the error of so few is part of the interval"
        facts = {
            "n_way": self.n_way,
            "top_k": self.config.top_k,
            "n_classes": self.judged,
            "distractors": self.config.distractors,
            "gallery": gallery,
            "gallery_way": min(self.config.n_way, gallery),
            "splits": self.config.inception_splits,
            "n_pictures": len(self.run.trials) * samples,
            "dealt": dealt,
        }
        found = {}
        for name in measured:
            said = found[name] = describe(name, **facts) | {"ceiling": ceilings.get(name)}
            if (table := self._tables().get(name)) is not None:
                best = numbers.chance_best_of(table, samples) if samples > 1 else None
                said |= {"chance": float(table.mean()), "chance_best_of_n": best}
        return found

    def _confusion(self, row: str) -> dict[str, Any]:
        """Class of the trial x the most probable class among the study's, over trials and samples."""
        assert self.known is not None
        guess = self.measured.of("probabilities", row)[:, self.known].argmax(1)
        place, n = self.place.repeat(self.run.samples), len(self.class_names)
        counts = np.bincount(place * n + guess, minlength=n**2).reshape(n, n)
        return {"classes": list(self.class_names.values()), "counts": counts.tolist()}

    def pictures_csv(self) -> str:
        """picture_scores.csv, a line a picture; seen, guess: in truth and picture. Collective: every rank."""
        per_picture = [name for name in self.wanted if any(name in self.values[row] for row in self.run.rows)]
        about = ("key", "sample", "subject", "label", "class_name", "image")
        names = self.among(np.array([self.classifier.classes], dtype=object))[0]

        def lines(row: str) -> str:
            text = io.StringIO()
            table = csv.writer(text, lineterminator="\n")
            guesses = self.among(self.measured.of("probabilities", row)).argmax(1).reshape(-1, self.run.samples)
            for t, trial in enumerate(self.run.trials):
                for sample in range(self.run.samples):
                    line = [row, *((trial | {"sample": sample})[name] for name in about)]
                    values = (self.values[row].get(name) for name in per_picture)
                    measured = ["" if v is None else f"{v[t, sample]:.7g}" for v in values]
                    table.writerow([*line, names[self.seen[t]], names[guesses[t, sample]], *measured])
            return text.getvalue()

        return ",".join(["row", *about, "seen", "guess", *per_picture]) + "\n" + "".join(spread(lines, self.run.rows))
