"""What the examination of a study means: what is wrong, what a reviewer would ask, what is fine."""

import dataclasses
import re
from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import numpy as np

from neuroimagen.doctor.examination import CLIPPED_LEAST, CLIPPED_SHARE, Examination
from neuroimagen.doctor.picture_hash import NEAR_BITS, NEAR_CORRELATION, near_pairs
from neuroimagen.doctor.published_sets import PUBLISHED, published
from neuroimagen.pictures import described
from neuroimagen.shards.tars import OFFSET, people_apart
from neuroimagen.studies.classes import CLASSES, UNEVEN
from neuroimagen.studies.epochs_files import said
from neuroimagen.studies.study import some

LARGE = 20  # times the customary standard deviation: no brain, and hardly an eye blink, does that
LINES = (50, 60)  # Hz, mains
LINE_RATIO, LINE_SHARE = 2.0, 0.01  # of the neighbouring bins' power, and of a channel's, that is worth a question
USUAL = 0.1, 1000.0  # uV, standard deviation of EEG
OVERLAPS = 0.05  # s; trials of one recording that share EEG further apart are windows that overlap
LEAK, LABELS, UNITS, SIGNAL = range(4)  # how bad a finding is, worst first
WHITE = 0.3  # EEG falls as f^-1 to f^-2 (Donoghue et al. 2020); f^-0.3 and flatter is not what EEG looks like


@dataclasses.dataclass
class Finding:
    """One sentence, and the keys of all trials it is about."""

    text: str
    trials: list[str] = dataclasses.field(default_factory=list)
    rank: int = SIGNAL

    def short(self, most: int = 3) -> str:
        if not self.trials:
            return self.text
        more = f" and {len(self.trials) - most} more" if len(self.trials) > most else ""
        return f"{self.text}: {', '.join(self.trials[:most])}{more}"


class Findings:
    """The verdict on an examination. `where`: what was examined, for sentences about trials."""

    def __init__(self, found: Examination, where: str) -> None:
        self.found, self.study, self.where = found, found.study, where
        leak = re.compile("is in both|the same picture|the same data")
        self.faults = [Finding(said, [], LEAK if leak.search(said) else LABELS) for said in found.study.fault.found]
        self.questions: list[Finding] = []
        self.fine: list[str] = []
        self.subject = np.array(found.subject, int)
        self.label = np.array(found.label, int)
        self.split = np.array(found.split, "U8")
        self.spread = found.spread[: len(found)]
        self.names = {c["label"]: str(c["name"]) for c in self.study.classes}
        self.counts = self._counts()
        self.lines: dict[int, dict[int, float | None]] = {}  # subject -> Hz -> power / neighbours
        self.slopes: dict[int, float | None] = {}
        self.bands: dict[int, tuple[float, float]] = {}
        if len(found):
            self._pictures()
            self._channels()
            self._units()
            self._large()
            self._same_eeg()
            self._spectra()
            self._balance()
            self._order()
            self._amplitude_tells()
        self._known()
        self._recorded()
        for listed in (self.faults, self.questions):
            listed.sort(key=lambda finding: finding.rank)

    def ask(self, text: str, trials: list[int] | None = None, rank: int = SIGNAL) -> None:
        self.questions.append(Finding(text, [self.found.names[i] for i in trials or []], rank))

    def wrong(self, text: str, trials: list[int] | None = None, rank: int = SIGNAL) -> None:
        self.faults.append(Finding(f"{self.where}: {text}", [self.found.names[i] for i in trials or []], rank))

    def channel(self, number: int) -> str:
        names = self.study.channels
        return f"{number} ({names[number]})" if names else str(number)

    def _counts(self) -> list[tuple[str, str, str]]:
        """(what, here, published)"""
        found, known = self.found, published(self.study.dataset)
        here = {
            "trials": len(self.study),
            "images": len(found.pictures) + len(found.bad_pictures),
            "classes": len(self.study.classes),
            "subjects": len(found.subjects),
            "channels": self.study.n_chans,
        }
        said = known.facts if known else {}
        return [(what, f"{n:,}", " or ".join(f"{p:,}" for p in said.get(what, ()))) for what, n in here.items()]

    def _pictures(self) -> None:
        pictures = self.found.pictures
        by_digest: dict[str, list[str]] = defaultdict(list)
        sides: dict[str, dict[str, str]] = defaultdict(dict)  # split -> digest -> the first image that has it
        for image, picture in pictures.items():
            by_digest[picture.digest].append(image)
            for split in picture.splits:
                sides[split].setdefault(picture.digest, image)
        same = across = near = 0
        for images in by_digest.values():
            if len(images) > 1:
                named = [f"{image} ({'/'.join(sorted(pictures[image].splits))})" for image in images]
                splits = {split for image in images for split in pictures[image].splits}
                if len(splits) > 1 and self.study.split_by == "image":
                    across += 1
                    self.wrong(f"{_and(named)} are the same picture, byte for byte: leave one out", rank=LEAK)
                else:
                    same += 1
        for one, other in combinations(sides, 2):
            a, b = list(sides[one].values()), list(sides[other].values())
            for i, j, r in near_pairs([pictures[k].look for k in a], [pictures[k].look for k in b]):
                if pictures[a[i]].digest != pictures[b[j]].digest:
                    near += 1
                    self.ask(
                        f"{a[i]} ({one}) and {b[j]} ({other}) look like copies of one picture (correlation {r:.3f})",
                        rank=LEAK,
                    )
        shared = [image for image, picture in pictures.items() if len(picture.splits) > 1]
        if shared and self.study.split_by == "image":
            said = "\n".join(self.found.study.fault.found)  # readers say so themselves
            for image in shared:
                if f"image {image} is in both" in said:
                    continue
                sides_of = " and ".join(sorted(pictures[image].splits))
                self.wrong(f"image {image} is in {sides_of}: use a split by image", rank=LEAK)
        elif shared:
            self.ask(
                f"{len(shared)} of {len(pictures)} pictures are in more than one split (it is by run): a decoder may "
                "know the test pictures; say so",
                rank=LEAK,
            )
        elif self.study.split_by == "image":
            self.fine.append(f"split by image: none of {len(pictures)} pictures is in two splits, for any subject")
        else:
            self.fine.append(f"none of {len(pictures)} pictures is in two splits")
        for said, question in described({image: picture.done for image, picture in pictures.items()}):
            self.ask(f"{said}: {question}") if question else self.fine.append(said)
        if not self.found.bad_pictures:
            self.fine.append(f"every picture that was found was decoded whole ({len(pictures)})")
        if not across and not near:
            self.fine.append(
                "no picture has a copy in another split, by content (SHA-256) or by look (pHash within "
                f"{NEAR_BITS} of 63 bits and correlation {NEAR_CORRELATION} or more)"
            )
        if same:
            self.ask(f"{same} pictures are there under several names in one split, or in a split by run, byte for byte")
        if self.found.orphans:
            some = ", ".join(str(path) for path in self.found.orphans[:3])
            more = f" and {len(self.found.orphans) - 3} more" if len(self.found.orphans) > 3 else ""
            self.ask(f"{len(self.found.orphans)} orphan images, which no readable trial shows: {some}{more}")
        elif self.study.picture_folders:
            self.fine.append("every picture in the folders is shown in some trial")

    def _channels(self) -> None:
        of = Counter(self.found.subject)
        words = {
            "nan": "holds NaN or infinity",
            "flat": "is flat",
            "clipped": f"is clipped ({100 * CLIPPED_SHARE:g} % of its samples and {CLIPPED_LEAST} are its extreme)",
        }
        for kind, word in words.items():
            by_subject: dict[int, dict[int, list[int]]] = defaultdict(dict)
            for (subject, channel), trials in self.found.channels[kind].items():
                by_subject[subject][channel] = trials
            for subject, channels in by_subject.items():
                trials = sorted(set().union(*channels.values()))
                worst = sorted(channels, key=lambda channel: -len(channels[channel]))
                uneven = any(len(own) < len(trials) for own in channels.values())
                listed = ", ".join(self.channel(c) + f" (in {len(channels[c])})" * uneven for c in worst[:8])
                more = f" and {len(channels) - 8} more" if len(channels) > 8 else ""
                self.wrong(
                    f"channel {listed}{more} of subject {subject} {word} in {len(trials)} of {of[subject]} trials",
                    trials,
                )
            if not by_subject:
                self.fine.append(f"no channel of any trial {word}")

    def _units(self) -> None:
        """Amplitudes that no person has, people that are too far apart, and what shards of this study would refuse."""
        of = Counter(self.found.subject)
        for (subject, _), (why, trials) in sorted(self.found.refused.items()):
            self.wrong(
                f"{len(trials)} of {of[subject]} trials of subject {subject} cannot be packed: {why}", trials, UNITS
            )
        moves = np.where(self.spread > 0, self.spread, np.nan)
        sizes: dict[int, float] = {}
        for subject in self.found.subjects:
            own = moves[self.subject == subject]
            if np.isfinite(own).any():
                sizes[subject] = float(np.nanmedian(own))
            offset = float(np.median(self.found.offset[: len(self.found)][self.subject == subject]))
            if offset > OFFSET and not any(subject == refused for refused, _ in self.found.refused):
                self.ask(
                    f"the EEG of subject {subject} stands on an offset of {offset:.3g} times its signal: take it away "
                    "by baseline= or band=",
                    rank=UNITS,
                )
        if apart := people_apart(sizes):
            self.wrong(apart, rank=UNITS)
        odd = {s: size for s, size in sizes.items() if self.study.units == "uV" and not USUAL[0] <= size <= USUAL[1]}
        if odd:
            some = _and([f"{size:.3g} uV of subject {subject}" for subject, size in odd.items()])
            self.ask(
                f"amplitudes of {some} (median of the standard deviations of channels in trials), where EEG has "
                f"{USUAL[0]:g} to {USUAL[1]:,.0f} uV: does the file name its units, and are they right?",
                rank=UNITS,
            )

    def _large(self) -> None:
        """Channels, then single trials, that are LARGE times what is usual for the subject."""
        n = 0
        for subject in self.found.subjects:
            rows = np.flatnonzero(self.subject == subject)
            spread = self.spread[rows]
            if not np.isfinite(spread).any():
                continue
            usual = np.nanmedian(spread[np.isfinite(spread).any(axis=1)], axis=0)
            middle = np.nanmedian(usual)
            for channel in np.flatnonzero(usual > LARGE * middle).tolist() if middle > 0 else []:
                n += 1
                self.ask(
                    f"channel {self.channel(channel)} of subject {subject} is very large: {usual[channel]:.3g}, where "
                    f"the subject's channels have {middle:.3g} {self.study.units}"
                )
            with np.errstate(invalid="ignore"):
                trials = rows[(spread > LARGE * np.where(usual > 0, usual, np.inf)).any(axis=1)]
            if len(trials):
                n += 1
                self.ask(
                    f"{len(trials)} trials of subject {subject} have a channel over {LARGE} times its usual amplitude",
                    trials.tolist(),
                )
        if not n:
            self.fine.append(f"no channel is {LARGE} times as large as is usual for its subject")

    def _same_eeg(self) -> None:
        """One line for each two recordings that share EEG, on the same or two sides of a split."""
        groups: dict[tuple[Any, ...], list[tuple[int, int]]] = defaultdict(list)
        for (a, b), shift in sorted(self.found.same_eeg.items()):
            recordings = self.found.recording[a], self.found.recording[b]
            overlap = recordings[0] == recordings[1] and abs(shift) > OVERLAPS * self.study.sfreq
            if not overlap or self.split[a] != self.split[b]:
                groups[overlap, recordings, (str(self.split[a]), str(self.split[b]))].append((a, b))
        for (overlap, (one, other), sides), pairs in groups.items():
            n = len({a for a, _ in pairs})
            trials = list(dict.fromkeys(trial for pair in pairs for trial in pair))
            across = f" and in two splits, {sides[0]} and {sides[1]}" if sides[0] != sides[1] else ""
            both = one if one == other else f"{one} and {other}"
            if overlap:
                self.ask(f"windows of {n} trials of {one} overlap{across}: leave a gap between splits", trials, LEAK)
            else:
                what = "two trials hold" if len(pairs) == 1 else f"{n} trials and {len(trials) - n} others hold"
                rank = LEAK if across else LABELS
                self.wrong(f"{what} the same EEG{across} ({both}): leave one of the two out", trials, rank)
        if not groups:
            self.fine.append("no two trials hold the same EEG, be it rounded, scaled or shifted")

    def _spectra(self) -> None:
        f, faint = self.found.frequencies, False
        for subject in self.found.subjects:
            density = self.spectrum(subject)
            if density is None:
                continue
            self.lines[subject] = {line: line_ratio(f, density, line) for line in LINES}
            self.bands[subject] = band_of(f, density)
            self.slopes[subject] = slope(f, density)
            for line, ratio in self.lines[subject].items():
                own = self.found.channel_spectra[subject]
                share = own[:, np.abs(f - line) <= 2 * f[1]].sum(axis=1) / np.maximum(own[:, 1:].sum(axis=1), 1e-300)
                if ratio is not None and ratio > LINE_RATIO and share.max() > LINE_SHARE:
                    faint = True
                    worst = ", ".join(self.channel(c) for c in np.argsort(-share)[:3])
                    self.ask(
                        f"subject {subject} has line noise at {line} Hz: {ratio:.1f} times the power of neighbouring "
                        f"frequencies, up to {100 * share.max():.2g} % of a channel's (most in channel {worst}): was a "
                        "notch filter meant to be applied?"
                    )
            falls = self.slopes[subject]
            if falls is not None and falls > -WHITE:
                self.ask(
                    f"the spectrum of subject {subject} goes as f^{falls:.2f}; EEG falls as f^-1 to f^-2 (Donoghue et "
                    "al. 2020): was it whitened, or is it no EEG?"
                )
        seen = [line for line in LINES if any(r[line] is not None for r in self.lines.values())]
        if seen and not faint:
            self.fine.append(f"no line noise at {' or '.join(map(str, seen))} Hz in any subject")
        hidden = [line for line in LINES if line not in seen]
        if hidden:
            self.fine.append(
                f"line noise at {' or '.join(map(str, hidden))} Hz cannot be seen: {self.study.n_times} samples at "
                f"{self.study.sfreq:g} Hz do not resolve it"
            )

    def spectrum(self, subject: int) -> np.ndarray | None:
        """(n_frequencies,) median over the subject's trials of the mean over channels."""
        own = self.found.spectra.get(subject)
        return np.median(own, axis=0) if own else None

    def _balance(self) -> None:
        groups: dict[str, np.ndarray] = {f"split {s}": self.split == s for s in self.study.splits}
        classes = {name: set(self.label[rows].tolist()) for name, rows in groups.items()}
        zero_shot = bool(classes["split test"]) and not classes["split test"] & classes["split train"]
        if zero_shot:  # then it is the design that splits lack classes
            self.fine.append("zero-shot: no class of the test split is among those of the train split")
        groups |= {f"subject {s}": self.subject == s for s in self.found.subjects}
        lacking, uneven = False, {}
        for name, rows in groups.items():
            counts = Counter(self.label[rows].tolist())
            absent = [self.names[label] for label in self.names if label not in counts]
            if absent and len(absent) < len(self.names) and not (zero_shot and name.startswith("split")):
                lacking = True
                some = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
                self.ask(f"{name} has no trial of {len(absent)} of {len(self.names)} classes: {some}")
            if counts and max(counts.values()) > UNEVEN * min(counts.values()):
                uneven[name] = counts
        if uneven:  # the first, train if it is one of them, stands for all
            (name, counts), *others = uneven.items()
            most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
            guess = 100 * counts[most] / counts.total()
            also = f" (so are those of {_and([name for name, _ in others])})" if others else ""
            self.ask(
                f"classes of {name} are uneven: {counts[most]} trials of {self.names[most]}, {counts[least]} of "
                f"{self.names[least]}{also}; always naming the most frequent is {guess:.1f} % right: train with "
                "classes_per_batch (pixel_features.py) and class_weights=true (sample_semantics.py), and report "
                "balanced accuracy"
            )
        elif not lacking:
            self.fine.append(f"classes are even within a factor of {UNEVEN:g} in every split and for every subject")

    def _order(self) -> None:
        """Are classes in blocks, in the order of time where the reader gives it, else of the file?"""
        known = published(self.study.dataset)
        if known and known.sorted:
            return  # the order of the file is by class, and says nothing of time
        timed = any(key[0] for key in self.found.order)
        for subject in self.found.subjects:
            rows = sorted(np.flatnonzero(self.subject == subject), key=lambda i: self.found.order[i])
            labels = self.label[rows]
            if len(labels) < 10 or len(set(labels.tolist())) < 2:
                continue
            same = float((labels[1:] == labels[:-1]).mean())
            share = np.unique(labels, return_counts=True)[1] / len(labels)
            chance = float((share**2).sum())
            if same > 0.5 and same > 2 * chance:
                order = "time" if timed else "the file"
                self.ask(
                    f"subject {subject}: in the order of {order} {100 * same:.0f} % of trials are followed by one of "
                    f"the same class (shuffled: {100 * chance:.0f} %): if that is how they were shown, "
                    "class and time of recording are one variable (block design; Li et al. 2020)",
                    rank=LEAK,
                )
                return
        kind = "of time" if timed else "of the file (time is not recorded there)"
        self.fine.append(f"classes do not come in blocks in the order {kind}")

    def _amplitude_tells(self) -> None:
        """A classifier that knows nothing of time courses: nearest class mean of log amplitudes, train to test."""
        right = total = 0
        chance = 0.0
        for subject in self.found.subjects:
            own = (self.subject == subject) & np.isfinite(self.spread).all(axis=1) & (self.spread > 0).all(axis=1)
            train, test = own & (self.split == "train"), own & (self.split == "test")
            labels = sorted(set(self.label[train].tolist()))
            test &= np.isin(self.label, labels)
            if not test.any() or len(labels) < 2:
                continue
            x = np.log(self.spread[train])
            centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-9
            means = np.stack([((x - centre) / scale)[self.label[train] == label].mean(axis=0) for label in labels])
            y = (np.log(self.spread[test]) - centre) / scale
            nearest = ((y**2).sum(1)[:, None] - 2 * y @ means.T + (means**2).sum(1)).argmin(axis=1)
            right += int((np.array(labels)[nearest] == self.label[test]).sum())
            total += int(test.sum())
            chance += float(test.sum()) * max(np.unique(self.label[test], return_counts=True)[1]) / test.sum()
        if total < 20:
            return
        share, guess = right / total, chance / total
        said = (
            f"amplitude alone (one number a channel; nearest class mean, within subject) names {100 * share:.1f} % of "
            f"{total} test trials; guessing the most frequent class, {100 * guess:.1f} %"
        )
        if share > guess + 4 * np.sqrt(guess * (1 - guess) / total):
            self.ask(f"{said}: if the response to a picture does not explain that, drift or a block design may")
        else:
            self.fine.append(said)

    def _known(self) -> None:
        known = published(self.study.dataset)
        if self.study.simulated:
            return
        if known:
            self.ask(f"{known.name}: {known.validity}")
        if known is PUBLISHED["perceivelab"]:
            wnids = [c["wnid"] for c in sorted(self.study.classes, key=lambda c: c["label"])]
            if wnids != [c.wnid for c in CLASSES]:
                self.ask(
                    "the label table is not the published one (40 wnids in their order): labels mean other classes",
                    rank=LABELS,
                )
            else:
                self.fine.append("the label table is the published one")

    def _recorded(self) -> None:
        """What the files state of pass band and reference must be the same of all, or people differ by that alone."""
        groups = self.study.recorded or []
        if len(groups) > 1:
            parts = [f"{said(group)} ({len(group['files'])} files, {some(group['files'], 2)})" for group in groups]
            self.ask(
                f"the files state different filters or references: {some(parts, 4)}: process them alike, or say why not"
            )

    def amplitudes(self) -> list[dict[str, Any]]:
        """One row a subject: trials, median and 95 % of the channels' standard deviations, band, slope, line noise."""
        rows = []
        for subject in self.found.subjects:
            spread = self.spread[self.subject == subject]
            spread = spread[np.isfinite(spread)]
            rows.append(
                {
                    "subject": subject,
                    "trials": int((self.subject == subject).sum()),
                    "median": float(np.median(spread)) if len(spread) else None,
                    "p95": float(np.quantile(spread, 0.95)) if len(spread) else None,
                    "band": self.bands.get(subject),
                    "slope": self.slopes.get(subject),
                    "lines": self.lines.get(subject, dict.fromkeys(LINES)),
                }
            )
        return rows


def _and(names: list[str], most: int = 6) -> str:
    """a, b and c"""
    shown = names[:most] + ([f"{len(names) - most} more"] if len(names) > most else [])
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def line_ratio(frequencies: np.ndarray, density: np.ndarray, line: float) -> float | None:
    """Power at `line` Hz / that of its neighbours; None where the bins are too wide, or end before.

    The peak of a Hann window is 2 bins wide on each side; neighbours are the bins 3 to 6 bins away, averaged in the
    logarithm. The side with more power counts, so that neither 1/f nor the edge of a filter looks like a line.
    """
    step = frequencies[1] - frequencies[0]
    away = (frequencies - line) / step
    below, above = (away <= -2.5) & (away > -6.5), (away >= 2.5) & (away < 6.5)
    if step > 5 or below.sum() < 4 or above.sum() < 4:
        return None
    if not (density[below] > 0).all() or not (density[above] > 0).all():
        return None
    expected = max(np.log(density[below]).mean(), np.log(density[above]).mean())
    return float(density[np.abs(away) <= 1].max() / np.exp(expected))


def band_of(frequencies: np.ndarray, density: np.ndarray) -> tuple[float, float]:
    """The frequencies between which 98 % of the power lies."""
    share = np.cumsum(density[1:]) / max(float(density[1:].sum()), 1e-300)
    low, high = np.minimum(np.searchsorted(share, [0.01, 0.99]), len(share) - 1).tolist()
    return float(frequencies[1 + low]), float(frequencies[1 + high])


def slope(frequencies: np.ndarray, density: np.ndarray) -> float | None:
    """Exponent b of power ~ f^b, without alpha (7..13 Hz): from where the spectrum comes near its maximum to 45 Hz,
    or to where 1 % of the power is left. None below 6 bins."""
    f = frequencies
    low = f[np.argmax(density >= 0.7 * density[f >= 2].max())] if (f >= 2).any() else 45
    high = band_of(f, density)[1]
    used = (f >= max(2, low)) & (f <= min(45, 0.9 * high)) & ~((f >= 7) & (f <= 13)) & (density > 0)
    if used.sum() < 6:
        return None
    return float(np.polyfit(np.log(f[used]), np.log(density[used]), 1)[0])
