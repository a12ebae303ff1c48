"""What the examination of a study means: what is wrong, what a reviewer would ask, what is fine.

Each of LOOKS looks at one thing and says what it found, with the remedy.
"""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from neuroimagen.doctor.examination import CLIPPED_LEAST, CLIPPED_SHARE, LINES, Examination
from neuroimagen.doctor.picture_hash import NEAR_BITS, NEAR_CORRELATION, near_pairs
from neuroimagen.pictures import described
from neuroimagen.shards.tars import OFFSET, people_apart
from neuroimagen.studies.classes import CLASSES, UNEVEN
from neuroimagen.studies.epochs_files import said as stated
from neuroimagen.studies.study import some

# By data set: name, validity, facts, sorted; the file says what they are.
PUBLISHED = yaml.safe_load(Path(__file__).with_name("published_sets.yaml").read_text(encoding="utf-8"))
LARGE = 20  # times the customary standard deviation: no brain, and hardly an eye blink, does that
LINE_RATIO, LINE_SHARE = 2.0, 0.01  # of the neighbouring bins' power, and of a channel's, that is worth a question
USUAL = 0.1, 1000.0  # uV, standard deviation of EEG
OVERLAPS = 0.05  # s; trials of one recording that share EEG further apart are windows that overlap
LEAK, LABELS, UNITS, SIGNAL = range(4)  # how bad a finding is, worst first
WHITE = 0.3  # EEG falls as f^-1 to f^-2 (Donoghue et al. 2020); f^-0.3 and flatter is not what EEG looks like
OF_SPLITS = re.compile("is in both|the same picture|the same data")  # what readers say of a leak
BROKEN = {
    "nan": "holds NaN or infinity",
    "flat": "is flat",
    "clipped": f"is clipped ({100 * CLIPPED_SHARE:g} % of its samples and {CLIPPED_LEAST} are its extreme)",
}


class Finding(NamedTuple):
    """One sentence, and all trials it is about: their numbers in the examination, then their names."""

    text: str
    trials: Sequence[Any] = ()
    rank: int = SIGNAL
    kind: str = "wrong"

    def short(self, most: int = 3) -> str:
        return f"{self.text}: {some(self.trials, most)}" if self.trials else self.text


wrong, ask, fine = (functools.partial(Finding, kind=kind) for kind in ("wrong", "ask", "fine"))
Found = Iterator[Finding]
Looks = tuple[Callable[[Examination], Found], ...]


class Findings:
    """The verdict on an examination. `where`: what was examined, for sentences about trials."""

    def __init__(self, found: Examination, where: str) -> None:
        self.found, self.study, self.where = found, found.study, where
        heard: list[Finding] = []
        for look in LOOKS if len(found) else OF_THE_STUDY:
            heard += list(look(found)) or ([fine(ELSE_FINE[look])] if look in ELSE_FINE else [])
        heard = [one._replace(trials=[found.trials[i].name for i in one.trials]) for one in heard]
        heard.sort(key=lambda finding: finding.rank)
        told = [Finding(text, rank=LEAK if OF_SPLITS.search(text) else LABELS) for text in self.study.fault.found]
        told += [one._replace(text=f"{where}: {one.text}") for one in heard if one.kind == "wrong"]
        self.faults = sorted(told, key=lambda finding: finding.rank)
        self.questions = [one for one in heard if one.kind == "ask"]
        self.fine = [one.text for one in heard if one.kind == "fine"]

    def counts(self) -> list[tuple[str, str, str]]:
        """(what, here, published)"""
        found, study, facts = self.found, self.study, PUBLISHED.get(self.study.dataset, {}).get("facts", {})
        here = {"trials": len(study), "images": len(found.pictures) + len(found.bad_pictures)}
        here |= {"classes": len(study.classes), "subjects": len(found.subjects), "channels": study.n_chans}
        return [(what, f"{n:,}", " or ".join(f"{p:,}" for p in facts.get(what, ()))) for what, n in here.items()]


def shared_pictures(found: Examination) -> Found:
    """One picture, by name, in several splits."""
    n, by_image = len(found.pictures), found.study.split_by == "image"
    shared = {image: picture.splits for image, picture in found.pictures.items() if len(picture.splits) > 1}
    if shared and not by_image:
        what = f"{len(shared)} of {n} pictures are in more than one split (it is by run)"
        yield ask(f"{what}: a decoder may know the test pictures; say so", rank=LEAK)
    elif not shared:
        split = "split by image: " if by_image else ""
        yield fine(f"{split}none of {n} pictures is in two splits" + ", for any subject" * by_image)
    for image in shared if by_image else ():
        if not any(f"image {image} is in both" in text for text in found.study.fault.found):  # as readers say it
            sides = " and ".join(sorted(shared[image]))
            yield wrong(f"image {image} is in {sides}: use a split by image", rank=LEAK)


def what_was_seen(found: Examination) -> Found:
    """What had to be done to see the pictures."""
    for what, question in described({image: picture.done for image, picture in found.pictures.items()}):
        yield ask(f"{what}: {question}") if question else fine(what)
    if not found.bad_pictures:
        yield fine(f"every picture that was found was decoded whole ({len(found.pictures)})")


def copied_pictures(found: Examination) -> Found:
    """One picture under several names, by its bytes or by its look."""
    pictures, same, apart = found.pictures, 0, True
    by_digest: dict[str, list[str]] = defaultdict(list)
    sides: dict[str, dict[str, str]] = defaultdict(dict)  # split -> digest -> the first image that has it
    for image, picture in pictures.items():
        by_digest[picture.digest].append(image)
        for split in picture.splits:
            sides[split].setdefault(picture.digest, image)
    for images in by_digest.values():
        across = len(set().union(*(pictures[image].splits for image in images))) > 1
        if len(images) > 1 and across and found.study.split_by == "image":
            named = _and([f"{image} ({'/'.join(sorted(pictures[image].splits))})" for image in images])
            yield wrong(f"{named} are the same picture, byte for byte: leave one out", rank=LEAK)
            apart = False
        else:
            same += len(images) > 1
    for one, other in combinations(sides, 2):
        a, b = list(sides[one].values()), list(sides[other].values())
        for i, j, r in near_pairs([pictures[k].look for k in a], [pictures[k].look for k in b]):
            if pictures[a[i]].digest != pictures[b[j]].digest:
                named = f"{a[i]} ({one}) and {b[j]} ({other})"
                yield ask(f"{named} look like copies of one picture (correlation {r:.3f})", rank=LEAK)
                apart = False
    if apart:
        yield fine(
            "no picture has a copy in another split, by content (SHA-256) or by look (pHash within "
            f"{NEAR_BITS} of 63 bits and correlation {NEAR_CORRELATION} or more)"
        )
    if same:
        yield ask(f"{same} pictures are there under several names in one split, or in a split by run, byte for byte")


def orphans(found: Examination) -> Found:
    if n := len(found.orphans):
        yield ask(f"{n} orphan images, which no readable trial shows: {some(list(map(str, found.orphans)), 3)}")
    elif found.study.picture_folders:
        yield fine("every picture in the folders is shown in some trial")


def broken_channels(found: Examination) -> Found:
    for kind, word in BROKEN.items():
        for subject, channels in found.channels[kind].items():
            trials = sorted(set().union(*channels.values()))
            worst = sorted(channels, key=lambda channel: -len(channels[channel]))
            uneven = any(len(own) < len(trials) for own in channels.values())
            listed = some([found.channel(c) + f" (in {len(channels[c])})" * uneven for c in worst], 8)
            of = found.n_trials(subject)
            yield wrong(f"channel {listed} of subject {subject} {word} in {len(trials)} of {of} trials", trials)
        if not found.channels[kind]:
            yield fine(f"no channel of any trial {word}")


def unpackable(found: Examination) -> Found:
    """What `neuroimagen shards` would refuse."""
    for (subject, _), (why, trials) in sorted(found.refused.items()):
        those = f"{len(trials)} of {found.n_trials(subject)} trials of subject {subject}"
        yield wrong(f"{those} cannot be packed: {why}", trials, UNITS)


def units(found: Examination) -> Found:
    """Offsets, people that are too far apart, and amplitudes that no person has."""
    moves = np.where(found.spread > 0, found.spread, np.nan)
    sizes: dict[int, float] = {}
    for subject in found.subjects:
        rows = found.subject == subject
        if np.isfinite(moves[rows]).any():
            sizes[subject] = float(np.nanmedian(moves[rows]))
        offset = float(np.median(found.offset[rows]))
        if offset > OFFSET and not any(subject == refused for refused, _ in found.refused):
            what = f"the EEG of subject {subject} stands on an offset of {offset:.3g} times its signal"
            yield ask(f"{what}: take it away by baseline= or band=", rank=UNITS)
    if apart := people_apart(sizes):
        yield wrong(apart, rank=UNITS)
    odd = [f"{size:.3g} uV of subject {s}" for s, size in sizes.items() if not USUAL[0] <= size <= USUAL[1]]
    if odd and found.study.units == "uV":
        yield ask(
            f"amplitudes of {_and(odd)} (median of the standard deviations of channels in trials), where EEG has "
            f"{USUAL[0]:g} to {USUAL[1]:,.0f} uV: does the file name its units, and are they right?",
            rank=UNITS,
        )


def large(found: Examination) -> Found:
    """Channels, then single trials, that are LARGE times what is usual for the subject."""
    for subject in found.subjects:
        rows = np.flatnonzero(found.subject == subject)
        spread = found.spread[rows]
        if not np.isfinite(spread).any():
            continue
        usual = np.nanmedian(spread[np.isfinite(spread).any(axis=1)], axis=0)
        middle = np.nanmedian(usual)
        for channel in np.flatnonzero(usual > LARGE * middle).tolist() if middle > 0 else []:
            what = f"channel {found.channel(channel)} of subject {subject} is very large: {usual[channel]:.3g}"
            yield ask(f"{what}, where the subject's channels have {middle:.3g} {found.study.units}")
        with np.errstate(invalid="ignore"):
            trials = rows[(spread > LARGE * np.where(usual > 0, usual, np.inf)).any(axis=1)].tolist()
        if trials:
            those = f"{len(trials)} trials of subject {subject}"
            yield ask(f"{those} have a channel over {LARGE} times its usual amplitude", trials)


def same_eeg(found: Examination) -> Found:
    """One line for each two recordings that share EEG, on the same or two sides of a split."""
    groups: dict[tuple[Any, ...], list[tuple[int, int]]] = defaultdict(list)
    for (a, b), shift in sorted(found.same_eeg.items()):
        one, other = found.trials[a], found.trials[b]
        overlap = one.recording == other.recording and abs(shift) > OVERLAPS * found.study.sfreq
        if not overlap or one.split != other.split:
            groups[overlap, one.recording, other.recording, one.split, other.split].append((a, b))
    for (overlap, recording, of_other, split, split_of_other), pairs in groups.items():
        n, trials = len({a for a, _ in pairs}), list(dict.fromkeys(trial for pair in pairs for trial in pair))
        across = f" and in two splits, {split} and {split_of_other}" if split != split_of_other else ""
        both = recording if recording == of_other else f"{recording} and {of_other}"
        if overlap:
            what = f"windows of {n} trials of {recording} overlap{across}"
            yield ask(f"{what}: leave a gap between splits", trials, LEAK)
        else:
            what = "two trials hold" if len(pairs) == 1 else f"{n} trials and {len(trials) - n} others hold"
            rank = LEAK if across else LABELS
            yield wrong(f"{what} the same EEG{across} ({both}): leave one of the two out", trials, rank)


def line_noise(found: Examination) -> Found:
    f, faint, seen = found.frequencies, False, set()
    for subject, spectrum in found.spectra.items():
        own = found.channel_spectra[subject]
        for line, ratio in spectrum.lines.items():
            if ratio is None:
                continue
            seen.add(line)
            share = own[:, np.abs(f - line) <= 2 * f[1]].sum(axis=1) / np.maximum(own[:, 1:].sum(axis=1), 1e-300)
            if ratio > LINE_RATIO and share.max() > LINE_SHARE:
                faint = True
                worst = ", ".join(found.channel(c) for c in np.argsort(-share)[:3])
                yield ask(
                    f"subject {subject} has line noise at {line} Hz: {ratio:.1f} times the power of neighbouring "
                    f"frequencies, up to {100 * share.max():.2g} % of a channel's (most in channel {worst}): was a "
                    "notch filter meant to be applied?"
                )
    if seen and not faint:
        yield fine(f"no line noise at {' or '.join(map(str, sorted(seen)))} Hz in any subject")
    if hidden := [line for line in LINES if line not in seen]:
        samples = f"{found.study.n_times} samples at {found.study.sfreq:g} Hz"
        yield fine(f"line noise at {' or '.join(map(str, hidden))} Hz cannot be seen: {samples} do not resolve it")


def whitened(found: Examination) -> Found:
    for subject, spectrum in found.spectra.items():
        if spectrum.slope is not None and spectrum.slope > -WHITE:
            yield ask(
                f"the spectrum of subject {subject} goes as f^{spectrum.slope:.2f}; EEG falls as f^-1 to f^-2 "
                "(Donoghue et al. 2020): was it whitened, or is it no EEG?"
            )


def balance(found: Examination) -> Found:
    """Classes that a split or a person lacks, or has many more trials of than of others."""
    names = {c["label"]: str(c["name"]) for c in found.study.classes}
    rows = {f"split {s}": found.split == s for s in found.study.splits}
    rows |= {f"subject {s}": found.subject == s for s in found.subjects}
    counts = {name: Counter(found.label[own].tolist()) for name, own in rows.items()}
    zero_shot = bool(counts["split test"]) and not counts["split test"].keys() & counts["split train"].keys()
    if zero_shot:  # then it is the design that splits lack classes
        yield fine("zero-shot: no class of the test split is among those of the train split")
    lacking = False
    for name, own in counts.items():
        absent = [names[label] for label in names if label not in own]
        if absent and len(absent) < len(names) and not (zero_shot and name.startswith("split")):
            lacking = True
            yield ask(f"{name} has no trial of {len(absent)} of {len(names)} classes: {some(absent)}")
    uneven = [name for name, own in counts.items() if own and max(own.values()) > UNEVEN * min(own.values())]
    if uneven:  # the first, train if it is one of them, stands for all
        own = counts[uneven[0]]
        most, least = max(own, key=own.__getitem__), min(own, key=own.__getitem__)
        also = f" (so are those of {_and(uneven[1:])})" if uneven[1:] else ""
        yield ask(
            f"classes of {uneven[0]} are uneven: {own[most]} trials of {names[most]}, {own[least]} of {names[least]}"
            f"{also}; always naming the most frequent is {100 * own[most] / own.total():.1f} % right: train with "
            "classes_per_batch (pixel_features.py) and class_weights=true (sample_semantics.py), and report "
            "balanced accuracy"
        )
    elif not lacking:
        yield fine(f"classes are even within a factor of {UNEVEN:g} in every split and for every subject")


def blocks(found: Examination) -> Found:
    """Are classes in blocks, in the order of time where the reader gives it, else of the file?"""
    if PUBLISHED.get(found.study.dataset, {}).get("sorted"):
        return  # the order of the file is by class, and says nothing of time
    timed = any(trial.order[0] for trial in found.trials)
    for subject in found.subjects:
        rows = sorted(np.flatnonzero(found.subject == subject), key=lambda i: found.trials[i].order)
        labels = found.label[rows]
        if len(labels) < 10 or len(set(labels.tolist())) < 2:
            continue
        same = float((labels[1:] == labels[:-1]).mean())
        chance = float(((np.unique(labels, return_counts=True)[1] / len(labels)) ** 2).sum())
        if same > 0.5 and same > 2 * chance:
            yield ask(
                f"subject {subject}: in the order of {'time' if timed else 'the file'} {100 * same:.0f} % of trials "
                f"are followed by one of the same class (shuffled: {100 * chance:.0f} %): if that is how they were "
                "shown, class and time of recording are one variable (block design; Li et al. 2020)",
                rank=LEAK,
            )
            return
    order = "of time" if timed else "of the file (time is not recorded there)"
    yield fine(f"classes do not come in blocks in the order {order}")


def amplitude_alone(found: Examination) -> Found:
    """A classifier that knows nothing of time courses: nearest class mean of log amplitudes, train to test."""
    right = total = chance = 0
    for subject in found.subjects:
        own = (found.subject == subject) & np.isfinite(found.spread).all(axis=1) & (found.spread > 0).all(axis=1)
        train, test = own & (found.split == "train"), own & (found.split == "test")
        labels = np.unique(found.label[train])
        test &= np.isin(found.label, labels)
        if not test.any() or len(labels) < 2:
            continue
        x = np.log(found.spread[train])
        centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-9
        means = np.stack([((x - centre) / scale)[found.label[train] == label].mean(axis=0) for label in labels])
        y = (np.log(found.spread[test]) - centre) / scale
        nearest = ((y**2).sum(1)[:, None] - 2 * y @ means.T + (means**2).sum(1)).argmin(axis=1)
        right += int((labels[nearest] == found.label[test]).sum())
        total += int(test.sum())
        chance += int(np.unique(found.label[test], return_counts=True)[1].max())
    if total < 20:
        return
    share, guess = right / total, chance / total
    what = (
        f"amplitude alone (one number a channel; nearest class mean, within subject) names {100 * share:.1f} % of "
        f"{total} test trials; guessing the most frequent class, {100 * guess:.1f} %"
    )
    if share > guess + 4 * np.sqrt(guess * (1 - guess) / total):
        yield ask(f"{what}: if the response to a picture does not explain that, drift or a block design may")
    else:
        yield fine(what)


def published_design(found: Examination) -> Found:
    """What is held against the published data set that this is."""
    known = PUBLISHED.get(found.study.dataset)
    if known is None or found.study.simulated:
        return
    yield ask(f"{known['name']}: {known['validity']}")
    if found.study.dataset == "perceivelab":
        wnids = [c["wnid"] for c in sorted(found.study.classes, key=lambda c: c["label"])]
        what = "the label table is not the published one (40 wnids in their order): labels mean other classes"
        right = wnids == [c.wnid for c in CLASSES]
        yield fine("the label table is the published one") if right else ask(what, rank=LABELS)


def stated_filters(found: Examination) -> Found:
    """What the files state of pass band and reference must be the same of all, or people differ by that alone."""
    groups = found.study.recorded or []
    if len(groups) > 1:
        parts = [f"{stated(group)} ({len(group['files'])} files, {some(group['files'], 2)})" for group in groups]
        what = f"the files state different filters or references: {some(parts, 4)}"
        yield ask(f"{what}: process them alike, or say why not")


OF_THE_STUDY: Looks = (published_design, stated_filters)  # though no trial could be read
LOOKS: Looks = (
    *(shared_pictures, what_was_seen, copied_pictures, orphans),
    *(broken_channels, unpackable, units, large, same_eeg, line_noise, whitened),
    *(balance, blocks, amplitude_alone, *OF_THE_STUDY),
)
ELSE_FINE = {  # where a look has nothing to say
    large: f"no channel is {LARGE} times as large as is usual for its subject",
    same_eeg: "no two trials hold the same EEG, be it rounded, scaled or shifted",
}


def _and(names: list[str], most: int = 6) -> str:
    """a, b and c"""
    shown = names[:most] + ([f"{len(names) - most} more"] if len(names) > most else [])
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
