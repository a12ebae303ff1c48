"""Splits, and controls that every data set has: who is held out, and what is made untrue on purpose.

First the splits that a reader makes itself: by image, by recording run, or (for an audit alone) by trial.

Controls stand between the reader and the signal options, so that whitening and averages see what is made here. A
control moves labels only together with their pictures, and both only within a split: what the split keeps apart stays
apart. What is drawn is drawn by (seed, what the files hold), EEG by (seed, trial key).
"""

import dataclasses
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence

import numpy as np

from neuroimagen.studies.config import StudyConfig
from neuroimagen.studies.study import SPLITS, Changed, Facts, Study, Trial, some

BY_IMAGE = "80/10/10 of the images of each class (seed {}), every trial of an image in "  # and which, for the protocol

BY_TRIAL = "80/10/10 of the trials of each class at random (seed {}), so the SAME PICTURES are in train and test"


def split_images(
    shown: Iterable[tuple[int, str]], classes: Sequence[str], seed: int, where: str, by: str = "by_image"
) -> list[str]:
    """The split of each trial, of its label and image: 80/10/10 of the images of each label, by (names, seed) alone.

    by: or "trials", each of which is then taken as an image of its own, by (place, seed).
    ValueError, beginning with `where`, for a class (label -> its name) of fewer than three images.
    """
    shown, images = list(shown), defaultdict(set)
    if by == "trials":
        shown = [(label, f"{i:09d}") for i, (label, _) in enumerate(shown)]
    for label, image in shown:
        images[label].add(image)
    side: dict[str, str] = {}
    for label, found in sorted(images.items()):
        names = sorted(found)
        if len(names) < 3:
            raise ValueError(
                f"{where}: class {classes[label]} has {len(names)} {by.removeprefix('by_').rstrip('s')}s; splits={by} "
                "needs 3 or more"
            )
        order = [names[i] for i in np.random.default_rng([seed, label]).permutation(len(names))]
        n = max(1, round(0.1 * len(names)))
        side |= dict.fromkeys(order[:n], "val") | dict.fromkeys(order[n : 2 * n], "test")
        side |= dict.fromkeys(order[2 * n :], "train")
    return [side[image] for _, image in shown]


def split_runs(
    trials: Sequence[tuple[int, str, float]], hold_out: list[int], val_tail: float, length: float, where: str
) -> list[str]:
    """The split of each trial, of its subject, run and onset (s); "" for those to leave out.

    Runs that `hold_out` names (0 is the subject's first, -1 the last) are test; of each other run the last part,
    `val_tail` of it, is val and the rest train, without trials that share a sample with val. length: of a trial, s.
    ValueError, beginning with `where`, if there is no such run, or none to train on.
    """
    runs: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, (subject, run, _) in enumerate(trials):
        runs[subject][run].append(i)
    sides = [""] * len(trials)
    for subject, own in runs.items():
        wrong = [i for i in hold_out if not -len(own) <= i < len(own)]
        if wrong:
            raise ValueError(f"{where}: hold_out={wrong[0]}, but subject {subject} has {len(own)} usable runs")
        test = {i % len(own) for i in hold_out}
        if len(test) == len(own):
            raise ValueError(f"{where}: hold_out leaves subject {subject} no run to train on")
        for number, indices in enumerate(own.values()):
            indices.sort(key=lambda i: trials[i][2])
            first = max(0, len(indices) - max(1, round(val_tail * len(indices))))
            for place, i in enumerate(indices):
                if number in test or place >= first:
                    sides[i] = "test" if number in test else "val"
                elif trials[i][2] + length < trials[indices[first]][2]:
                    sides[i] = "train"
    return sides


def by_split(sides: Iterable[str]) -> dict[str, list[int]]:
    """The trials of each split, in order."""
    sides = list(sides)
    return {name: [i for i, side in enumerate(sides) if side == name] for name in SPLITS}


def refuse_empty(splits: Mapping[str, Sequence[int]], where: str, protocol: str) -> None:
    """ValueError, beginning with `where`, for a split without a trial."""
    for name, indices in splits.items():
        if not indices:
            raise ValueError(f"{where}: no trial is left in split {name!r} ({protocol})")


HALVES = " a", " b"  # of a class, for nonsense labels
ITS_OWN = "EEG with random phases, one at each frequency for all channels"
NO_BLOCKS = "needs to know the blocks of each recording, which these files do not tell"


def check_controls(config: StudyConfig) -> None:
    """Refuses, with ValueError and before a file is read, what cannot go together."""
    held = [name for name in ("hold_out", "hold_out_subject", "hold_out_classes") if getattr(config, name)]
    trials = getattr(config, "splits", "") == "trials"
    if trials and not config.audit:
        raise ValueError("splits=trials trains on the pictures of test: it is for an audit, which says audit=true")
    if config.audit and not trials:
        raise ValueError("audit=true only allows splits=trials: leave it out")
    if trials and held:
        raise ValueError(f"splits=trials holds nothing out: leave {held[0]} out")
    if config.hold_out_subject and config.subject:
        one = f"subject={config.subject} keeps one subject"
        raise ValueError(f"hold_out_subject={config.hold_out_subject}: {one}, so nobody is left to train on")
    if config.hold_out_classes < 0 or config.hold_out_subject < 0:
        raise ValueError("hold_out_classes is a number of classes, hold_out_subject one subject, both from 1")


def with_controls(study: Study, config: StudyConfig) -> Study:
    """The study with what `config` asks for beyond its reader; the very same where that is nothing."""
    runs, labels = [] if study.own_runs else config.hold_out, config.control_labels
    if study.control and labels == "shuffled":  # by its reader
        labels = "none"
    asked = runs or config.hold_out_subject or config.hold_out_classes or {labels, config.control_eeg} != {"none"}
    return Controlled(study, config, runs, labels) if asked else study


class Controlled(Changed):
    """A study with other splits, labels or EEG. ValueError, in one sentence, for what these files do not allow."""

    def __init__(self, study: Study, config: StudyConfig, hold_out: list[int], labels: str) -> None:
        super().__init__(study)
        self.config = config
        self.known = {i: study.facts(i) for own in study.splits.values() for i in own}
        self.done: list[str] = []  # for the protocol
        if hold_out:
            self._hold_out_blocks(hold_out)
        if config.hold_out_subject:
            self._hold_out_subject(config.hold_out_subject)
        if config.hold_out_classes:
            self._hold_out_classes(config.hold_out_classes)
        self.shown: dict[int, int] = {}  # trial -> another, whose label and picture it is given
        self.donors: dict[int, list[int]] = {}  # trial -> those that may give it their EEG
        self.halves: dict[str, int] = {}  # image -> which half of its class
        controls = {"shuffled": self._shuffle, "blocks": self._permute_blocks, "nonsense": self._cut_classes}
        controls |= {"other_trial": self._exchange, "surrogate": self._find_donors, "amplitude": lambda: ITS_OWN}
        if said := [controls[name]() for name in (labels, config.control_eeg) if name in controls]:
            self.done.append(f"CONTROL: {'; '.join(said)} (seed {config.seed})")
            self.control = "; ".join(filter(None, [study.control, self.done[-1]]))
        self.protocol = "; ".join([study.protocol, *self.done])
        refuse_empty(self.splits, f"dataset={study.dataset}", self.protocol)

    def facts(self, index: int) -> Facts:
        own, shown = self.known[index], self.known[self.shown.get(index, index)]
        label = 2 * shown.label + self.halves[shown.image] if self.halves else shown.label
        return own._replace(image=shown.image, label=label, picture=shown.picture)

    def trial(self, index: int) -> Trial:
        trial, kind = self.study.trial(index), self.config.control_eeg
        if kind != "none":
            rng = np.random.default_rng([self.config.seed, zlib.crc32(trial.key.encode())])
            donors = [i for i in self.donors.get(index, ()) if i != index]
            donor = self.study.trial(donors[int(rng.integers(len(donors)))]) if donors else trial
            eeg = donor.eeg if kind == "other_trial" else random_phases(donor.eeg, rng)
            trial = dataclasses.replace(trial, eeg=eeg, extra=trial.extra | {"eeg_of": donor.key})
        if not self.shown and not self.halves:
            return trial
        extra = trial.extra | ({"shown": trial.image} if self.shown else {})
        return self.make_trial(trial.key, trial.eeg, self.facts(index), extra)

    def _keep(self, held: set[int], what: str) -> None:
        """The reader's own test trials that are held out are the test split, of the other trials train and val."""
        self.splits = {name: [i for i in self.splits[name] if (i in held) == (name == "test")] for name in SPLITS}
        self.done.append(f"of these, held out for test alone: {what}")

    def _hold_out_blocks(self, numbers: list[int]) -> None:
        held, classes = set[int](), self._labels("train")
        for subject, blocks in self._blocks(f"hold_out={numbers}", self.known).items():
            for number in numbers:
                if not -len(blocks) <= number < len(blocks):
                    raise ValueError(f"hold_out={number}, but subject {subject} has {len(blocks)} blocks")
                held |= {*list(blocks.values())[number]}
        self._keep(held, f"blocks {some([*map(str, numbers)])}")
        if lost := sorted((self._labels("test") & classes) - self._labels("train")):
            gone = f"class {self._named(lost[0])} was shown in held-out blocks alone, so it could not be trained on"
            raise ValueError(f"hold_out={numbers}: {gone}: hold out other blocks, or give hold_out_classes=...")

    def _hold_out_subject(self, subject: int) -> None:
        found = {facts.subject for facts in self.known.values()}
        if found == {subject}:
            only = f"subject {subject} is the only one here, so nobody is left to train on"
            raise ValueError(f"hold_out_subject={subject}: {only}: take the files of several subjects")
        if subject not in found:
            raise ValueError(f"hold_out_subject={subject} has no trial here; there are subjects {sorted(found)}")
        self._keep({i for i, facts in self.known.items() if facts.subject == subject}, f"subject {subject}")

    def _hold_out_classes(self, count: int) -> None:
        trained = self._labels("train")
        both = sorted(trained & self._labels("test"))
        if not both:
            raise ValueError(f"hold_out_classes={count}: no class of test is trained on anyhow: leave it out")
        if count > len(both) or len(trained) - count < 2:
            most = min(len(both), len(trained) - 2)
            less = f"leaves fewer than two classes to train on: give {most} or fewer" if most > 0 else "needs 3 classes"
            raise ValueError(f"hold_out_classes={count} of {len(both)} {less}")
        out = set(np.random.default_rng(self.config.seed).permutation(both)[:count].tolist())
        what = f"{count} classes, drawn by seed {self.config.seed} ({some([self._named(i) for i in sorted(out)])})"
        self._keep({i for i, facts in self.known.items() if facts.label in out}, what)

    def _labels(self, split: str) -> set[int]:
        return {self.known[i].label for i in self.splits[split]}

    def _named(self, label: int) -> str:
        return repr(self.study._names[label][1])

    def _blocks(self, who: str, trials: Iterable[int]) -> dict[int, dict[str, list[int]]]:
        """Subject -> block -> its trials, both in order of time; ValueError where the files do not tell blocks."""
        found: dict[int, dict[str, list[int]]] = defaultdict(dict)
        for i in sorted(trials, key=lambda i: (self.known[i].onset or 0.0, i)):
            if (block := self.known[i].block) is None:
                raise ValueError(f"{who} {NO_BLOCKS}: give what needs none, such as hold_out_subject or surrogate")
            found[self.known[i].subject].setdefault(block, []).append(i)
        return dict(sorted(found.items()))

    def _groups(self, of: Callable[[Facts], Hashable]) -> list[list[int]]:
        """The trials of each split that have the same `of`."""
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for name in SPLITS:
            for i in self.splits[name]:
                groups[name, of(self.known[i])].append(i)
        return list(groups.values())

    def _leave_out(self, lost: set[int], why: str) -> None:
        self.splits = {name: [i for i in own if i not in lost] for name, own in self.splits.items()}
        self.notes += [f"{len(lost)} trials were left out: {why}"] if lost else []

    def _rng(self, members: Collection[int]) -> np.random.Generator:
        """Of a group: by the seed and its first trial."""
        first = self.known[min(members)]
        return np.random.default_rng([self.config.seed, first.subject, zlib.crc32(f"{first.block}".encode())])

    def _shuffle(self) -> str:
        groups, where = self._groups(lambda facts: (facts.subject, facts.block)), "block of each subject"
        if not any(self._mixed(members) for members in groups):
            groups, where = self._groups(lambda facts: facts.subject), "subject, as each block holds one class,"
        elif None in {facts.block for facts in self.known.values()}:
            where = "subject"
        if not any(self._mixed(members) for members in groups):
            raise ValueError("control_labels=shuffled changes nothing: no subject has two classes in a split")
        for members in groups:
            self.shown |= dict(zip(members, self._rng(members).permutation(members).tolist(), strict=True))
        return f"labels, with their pictures, shuffled within each {where} and split"

    def _mixed(self, members: list[int]) -> bool:
        return len({self.known[i].label for i in members}) > 1

    def _permute_blocks(self) -> str:
        """A block's trials get the labels and pictures of another block's, in order of time and again from the first.

        Blocks that are trained on and blocks of test alone are permuted apart, for a picture stays in its split.
        """
        side = {i: name for name in SPLITS for i in self.splits[name]}
        lost = set()
        for subject, blocks in self._blocks("control_labels=blocks", side).items():
            kinds: dict[bool, list[str]] = defaultdict(list)
            for block, members in blocks.items():
                kinds[any(side[i] != "test" for i in members)].append(block)
            if len(kinds[True]) < 2:
                few = f"subject {subject} has {len(kinds[True])} to train on"
                raise ValueError(f"control_labels=blocks needs two or more blocks of each subject, and {few}")
            for names in kinds.values():
                order = [names[k] for k in self._rng([i for b in names for i in blocks[b]]).permutation(len(names))]
                for block, other in zip(order, order[1:] + order[:1], strict=True):
                    for name in SPLITS:
                        members, donors = ([i for i in blocks[b] if side[i] == name] for b in (block, other))
                        lost |= set(members if not donors else ())
                        self.shown |= {i: donors[k % len(donors)] for k, i in enumerate(members) if donors}
        self._leave_out(lost, "the block whose labels theirs gets has none in that split")
        return "labels, with their pictures, permuted between the blocks of each subject"

    def _cut_classes(self) -> str:
        """Each class's pictures in two halves, as equal as can be in each split, by (seed, names)."""
        where: dict[tuple[int, str], set[str]] = defaultdict(set)
        for name in SPLITS:
            for i in self.splits[name]:
                where[self.known[i].label, self.known[i].image].add(name)
        for known in self.classes:
            own = {image: sorted(sides) for (label, image), sides in sorted(where.items()) if label == known["label"]}
            if sum("train" in sides for sides in own.values()) == 1:
                one = f"class {self._named(known['label'])} has one picture in train"
                raise ValueError(f"control_labels=nonsense: {one}, which cannot be cut in two: use more pictures")
            order = np.random.default_rng([self.config.seed, known["label"]]).permutation(list(own)).tolist()
            order.sort(key=lambda image: own[image])
            self.halves |= {image: k % 2 for k, image in enumerate(order)}
        self.classes = [
            {"label": 2 * known["label"] + half, "wnid": known["wnid"], "name": known["name"] + HALVES[half]}
            for known in self.classes
            for half in (0, 1)
        ]
        return "nonsense labels, each class being the halves a and b of its pictures, cut at random"

    def _exchange(self) -> str:
        """Each trial gets the EEG of the next, in a random order, of its block and split."""
        lost = set()
        for blocks in self._blocks("control_eeg=other_trial", self.known).values():
            for block, members in blocks.items():
                if len(members) < 2:
                    one = f"block {block} of subject {self.known[members[0]].subject} has one trial"
                    raise ValueError(f"control_eeg=other_trial: {one}, so there is no other: leave that block out")
        for members in self._groups(lambda facts: (facts.subject, facts.block)):
            order = self._rng(members).permutation(members).tolist()
            self.donors |= {i: [k] for i, k in zip(order, order[1:] + order[:1], strict=True)}
            lost |= set(members if len(members) == 1 else ())
        self._leave_out(lost, "no other trial of their block is in their split")
        return "EEG of another trial of the same block and split"

    def _find_donors(self) -> str:
        """Of each trial: the train trials of its subject, but not itself."""
        for subject in sorted({facts.subject for facts in self.known.values()}):
            own = {name: [i for i in self.splits[name] if self.known[i].subject == subject] for name in SPLITS}
            if any(own.values()) and len(own["train"]) < 2:
                few = f"subject {subject} has {len(own['train'])} in train, and two are needed"
                raise ValueError(
                    f"control_eeg=surrogate: {few}: give control_eeg=amplitude, which needs no other trial"
                )
            self.donors |= dict.fromkeys((i for members in own.values() for i in members), own["train"])
        return f"{ITS_OWN}, of another train trial of the same subject"


def random_phases(eeg: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """EEG (n_chans, n_times) with a random phase added at each frequency, the same for all channels.

    Amplitude spectra and cross-spectra stay as they are, and nothing else does (Prichard & Theiler 1994).
    """
    n = eeg.shape[1]
    turn = np.exp(2j * np.pi * rng.random(n // 2 + 1))
    real = [0, -1] if n % 2 == 0 else [0]  # frequencies whose coefficient is a real number, which can change its sign
    turn[real] = np.where(rng.random(len(real)) < 0.5, -1, 1)
    turned = np.fft.irfft(np.fft.rfft(eeg.astype(np.float64), axis=1) * turn, n, axis=1)
    return turned.astype(np.float32)
