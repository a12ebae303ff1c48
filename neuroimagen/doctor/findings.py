"""What the examination of a study means: what is wrong, what a reviewer would ask, what is fine.

Each of LOOKS looks at one thing; what it says of it, with the remedy, stands in findings.yaml.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from neuroimagen.doctor.examination import CLIPPED, CLIPPED_LEAST, CLIPPED_SHARE, FLAT, LINES, NAN, Examination
from neuroimagen.doctor.picture_hash import NEAR_BITS, NEAR_CORRELATION, near_pairs
from neuroimagen.pictures import described
from neuroimagen.shards.tars import OFFSET, people_apart
from neuroimagen.studies.classes import CLASSES, UNEVEN
from neuroimagen.studies.epochs_files import said as stated
from neuroimagen.studies.study import some

# By data set: name, validity, facts, sorted; the file says what they are.
PUBLISHED = yaml.safe_load(Path(__file__).with_name("published_sets.yaml").read_text(encoding="utf-8"))
SAID = yaml.safe_load(Path(__file__).with_name("findings.yaml").read_text(encoding="utf-8"))
RANKS = ("leak", "labels", "units", "signal")  # how bad a finding is, worst first
LARGE = 20  # times the customary standard deviation: no brain, and hardly an eye blink, does that
LINE_RATIO, LINE_SHARE = 2.0, 0.01  # of the neighbouring bins' power, and of a channel's, that is worth a question
USUAL = 0.1, 1000.0  # uV, standard deviation of EEG
OVERLAPS = 0.05  # s; trials of one recording that share EEG further apart are windows that overlap
WHITE = 0.3  # EEG falls as f^-1 to f^-2 (Donoghue et al. 2020); f^-0.3 and flatter is not what EEG looks like
OF_SPLITS = re.compile("is in both|the same picture|the same data")  # what readers say of a leak
BROKEN = {
    NAN: "holds NaN or infinity",
    FLAT: "is flat",
    CLIPPED: f"is clipped ({100 * CLIPPED_SHARE:g} % of its samples and {CLIPPED_LEAST} are its extreme)",
}


class Finding(NamedTuple):
    """One sentence, and all trials it is about: their numbers in the examination, then their names."""

    text: str
    trials: Sequence[Any] = ()
    rank: str = "signal"
    kind: str = "wrong"

    def short(self, most: int = 3) -> str:
        return f"{self.text}: {some(self.trials, most)}" if self.trials else self.text


def say(name: str, trials: Sequence[int] = (), /, **facts: Any) -> Finding:
    """The finding of that name in findings.yaml, its sentence filled with the facts."""
    ((kind, text), *rank) = SAID[name].items()
    return Finding(text.format(**facts), trials, **dict(rank), kind=kind)


Found = Iterator[Finding]
Looks = tuple[Callable[[Examination], Found], ...]


class Findings:
    """The verdict on an examination. `where`: what was examined, for sentences about trials."""

    def __init__(self, found: Examination, where: str) -> None:
        self.found, self.study, self.where = found, found.study, where
        heard: list[Finding] = []
        for look in LOOKS if len(found) else OF_THE_STUDY:
            heard += look(found)
        heard = [one._replace(trials=[found.trials[i].name for i in one.trials]) for one in heard]
        heard.sort(key=lambda finding: RANKS.index(finding.rank))
        told = [Finding(text, rank="leak" if OF_SPLITS.search(text) else "labels") for text in self.study.fault.found]
        told += [one._replace(text=f"{where}: {one.text}") for one in heard if one.kind == "wrong"]
        self.faults = sorted(told, key=lambda finding: RANKS.index(finding.rank))
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
    if not shared:
        yield say("images_apart" if by_image else "images_apart_by_run", n=n)
    elif not by_image:
        yield say("images_shared_by_runs", n=len(shared), of=n, by=found.study.split_by)
    for image in shared if by_image else ():
        if not any(f"image {image} is in both" in text for text in found.study.fault.found):  # as readers say it
            yield say("images_in_two_splits", image=image, splits=" and ".join(sorted(shared[image])))


def what_was_seen(found: Examination) -> Found:
    """What had to be done to see the pictures."""
    for what, question in described({image: picture.done for image, picture in found.pictures.items()}):
        yield say("picture_asked" if question else "picture_done", what=what, question=question)
    if not found.bad_pictures:
        yield say("pictures_whole", n=len(found.pictures))


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
            named = [f"{image} ({'/'.join(sorted(pictures[image].splits))})" for image in images]
            yield say("same_picture", named=_and(named))
            apart = False
        else:
            same += len(images) > 1
    for one, other in combinations(sides, 2):
        a, b = list(sides[one].values()), list(sides[other].values())
        for i, j, r in near_pairs([pictures[k].look for k in a], [pictures[k].look for k in b]):
            if pictures[a[i]].digest != pictures[b[j]].digest:
                yield say("near_picture", one=a[i], split=one, other=b[j], other_split=other, r=r)
                apart = False
    if apart:
        yield say("no_copies", bits=NEAR_BITS, correlation=NEAR_CORRELATION)
    if same:
        yield say("several_names", n=same)


def orphans(found: Examination) -> Found:
    if n := len(found.orphans):
        yield say("orphans", n=n, some=some(list(map(str, found.orphans)), 3))
    elif found.study.picture_folders:
        yield say("no_orphans")


def broken_channels(found: Examination) -> Found:
    for mark, how in BROKEN.items():
        broken = found.broken == mark
        for subject in found.subjects:
            own = (found.subject == subject)[:, None] & broken
            counts, trials = own.sum(axis=0), np.flatnonzero(own.any(axis=1)).tolist()
            worst = [c for c in np.argsort(-counts, kind="stable").tolist() if counts[c]]
            if trials:
                uneven = bool(counts[worst[-1]] < len(trials))
                channels = some([found.channel(c) + f" (in {counts[c]})" * uneven for c in worst], 8)
                n, of = len(trials), found.n_trials(subject)
                yield say("broken_channel", trials, channels=channels, subject=subject, how=how, n=n, of=of)
        if not broken.any():
            yield say("no_broken_channel", how=how)


def unpackable(found: Examination) -> Found:
    """What `neuroimagen shards` would refuse."""
    for (subject, _), (why, trials) in sorted(found.refused.items()):
        yield say("unpackable", trials, n=len(trials), of=found.n_trials(subject), subject=subject, why=why)


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
            yield say("offset", subject=subject, offset=offset)
    if apart := people_apart(sizes):
        yield say("people_apart", apart=apart)
    odd = [f"{size:.3g} uV of subject {s}" for s, size in sizes.items() if not USUAL[0] <= size <= USUAL[1]]
    if odd and found.study.units == "uV":
        yield say("odd_microvolts", odd=_and(odd), low=USUAL[0], high=USUAL[1])


def large(found: Examination) -> Found:
    """Channels, then single trials, that are LARGE times what is usual for the subject."""
    fine = True
    for subject in found.subjects:
        rows = np.flatnonzero(found.subject == subject)
        spread = found.spread[rows]
        if not np.isfinite(spread).any():
            continue
        sizes = np.nanmedian(spread[np.isfinite(spread).any(axis=1)], axis=0)
        usual = np.nanmedian(sizes)
        for c in np.flatnonzero(sizes > LARGE * usual).tolist() if usual > 0 else []:
            told = {"channel": found.channel(c), "size": sizes[c], "usual": usual, "units": found.study.units}
            yield say("large_channel", subject=subject, **told)
            fine = False
        with np.errstate(invalid="ignore"):
            trials = rows[(spread > LARGE * np.where(sizes > 0, sizes, np.inf)).any(axis=1)].tolist()
        if trials:
            yield say("large_trials", trials, n=len(trials), subject=subject, times=LARGE)
            fine = False
    if fine:
        yield say("nothing_large", times=LARGE)


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
        those = "two trials hold" if len(pairs) == 1 else f"{n} trials and {len(trials) - n} others hold"
        name = "overlap" if overlap else "same_eeg_in_two_splits" if across else "same_eeg"
        yield say(name, trials, n=n, recording=recording, across=across, both=both, those=those)
    if not groups:
        yield say("no_same_eeg")


def line_noise(found: Examination) -> Found:
    f, noisy, seen = found.frequencies, False, set()
    for subject, spectrum in found.spectra.items():
        own = found.channel_spectra[subject]
        for line, ratio in spectrum.lines.items():
            if ratio is None:
                continue
            seen.add(line)
            share = own[:, np.abs(f - line) <= 2 * f[1]].sum(axis=1) / np.maximum(own[:, 1:].sum(axis=1), 1e-300)
            if ratio > LINE_RATIO and share.max() > LINE_SHARE:
                noisy = True
                worst = ", ".join(found.channel(c) for c in np.argsort(-share)[:3])
                told = {"ratio": ratio, "percent": 100 * share.max(), "worst": worst}
                yield say("line_noise", subject=subject, line=line, **told)
    if seen and not noisy:
        yield say("no_line_noise", lines=" or ".join(map(str, sorted(seen))))
    if hidden := [str(line) for line in LINES if line not in seen]:
        yield say("line_noise_hidden", lines=" or ".join(hidden), n_times=found.study.n_times, sfreq=found.study.sfreq)


def whitened(found: Examination) -> Found:
    for subject, spectrum in found.spectra.items():
        if spectrum.slope is not None and spectrum.slope > -WHITE:
            yield say("white", subject=subject, slope=spectrum.slope)


def balance(found: Examination) -> Found:
    """Classes that a split or a person lacks, or has many more trials of than of others."""
    names = {c["label"]: str(c["name"]) for c in found.study.classes}
    rows = {f"split {s}": found.split == s for s in found.study.splits}
    rows |= {f"subject {s}": found.subject == s for s in found.subjects}
    counts = {name: Counter(found.label[own].tolist()) for name, own in rows.items()}
    zero_shot = bool(counts["split test"]) and not counts["split test"].keys() & counts["split train"].keys()
    if zero_shot:  # then it is the design that splits lack classes
        yield say("zero_shot")
    lacking = False
    for name, own in counts.items():
        absent = [names[label] for label in names if label not in own]
        if absent and len(absent) < len(names) and not (zero_shot and name.startswith("split")):
            lacking = True
            yield say("no_trial_of", where=name, n=len(absent), of=len(names), some=some(absent))
    uneven = [name for name, own in counts.items() if own and max(own.values()) > UNEVEN * min(own.values())]
    if uneven:  # the first, train if it is one of them, stands for all
        own = counts[uneven[0]]
        most, least = max(own, key=own.__getitem__), min(own, key=own.__getitem__)
        told = {"most": names[most], "n_most": own[most], "least": names[least], "n_least": own[least]}
        told["also"] = f" (so are those of {_and(uneven[1:])})" if uneven[1:] else ""
        yield say("uneven", where=uneven[0], percent=100 * own[most] / own.total(), **told)
    elif not lacking:
        yield say("even", times=UNEVEN)


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
            told = {"order": "time" if timed else "the file", "percent": 100 * same, "chance": 100 * chance}
            yield say("blocks", subject=subject, **told)
            return
    yield say("no_blocks", order="of time" if timed else "of the file (time is not recorded there)")


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
    fine = say("amplitude_alone", percent=100 * share, n=total, guess=100 * guess)
    beyond = share > guess + 4 * np.sqrt(guess * (1 - guess) / total)
    yield say("amplitude_tells", what=fine.text) if beyond else fine


def published_design(found: Examination) -> Found:
    """What is held against the published data set that this is."""
    known = PUBLISHED.get(found.study.dataset)
    if known is None or found.study.simulated:
        return
    yield say("published", name=known["name"], validity=known["validity"])
    if found.study.dataset == "perceivelab":
        wnids = [c["wnid"] for c in sorted(found.study.classes, key=lambda c: c["label"])]
        yield say("published_labels" if wnids == [c.wnid for c in CLASSES] else "other_labels")


def stated_filters(found: Examination) -> Found:
    """What the files state of pass band and reference must be the same of all, or people differ by that alone."""
    groups = found.study.recorded or []
    if len(groups) > 1:
        parts = [f"{stated(group)} ({len(group['files'])} files, {some(group['files'], 2)})" for group in groups]
        yield say("filters_differ", groups=some(parts, 4))


OF_THE_STUDY: Looks = (published_design, stated_filters)  # though no trial could be read
LOOKS: Looks = (
    *(shared_pictures, what_was_seen, copied_pictures, orphans),
    *(broken_channels, unpackable, units, large, same_eeg, line_noise, whitened),
    *(balance, blocks, amplitude_alone, *OF_THE_STUDY),
)


def _and(names: list[str], most: int = 6) -> str:
    """a, b and c"""
    shown = names[:most] + ([f"{len(names) - most} more"] if len(names) > most else [])
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
