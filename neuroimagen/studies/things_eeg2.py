"""Reader of THINGS-EEG2 (Gifford et al. 2022), as published and as later decoders preprocess it.

The files, for each subject in a folder sub-01, sub-02, ...:
  preprocessed_eeg_training.npy   pickled dict: `preprocessed_eeg_data` (conditions, repetitions, channels, samples),
  preprocessed_eeg_test.npy       `ch_names`, `times` (s after onset); see plain_pickle.py for the two kinds of file
  <images>/training_images/00001_aardvark/*.jpg, <images>/test_images/00001_aircraft_carrier/*.jpg
Condition c is the c-th picture of the sorted folders and of the sorted files in each. Published are 16,540 training
conditions (1,654 concepts x 10) of 4 repetitions and 200 test conditions (one a concept) of 80: 17 channels at 100 Hz,
or 63 channels at 250 Hz. `times` may begin before the samples do (a baseline was cut off): its last entries count.

A trial is one repetition of one picture; it is read from the file when it is asked for, and nothing else is.
"""

import bisect
import dataclasses
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from neuroimagen.config import option, path_option
from neuroimagen.studies.config import StudyConfig
from neuroimagen.studies.controls import BY_TRIAL, by_split, split_images
from neuroimagen.studies.plain_pickle import StoredArray, load_pickle
from neuroimagen.studies.study import Facts, Faults, Study, Trial, absent, refuse_nonfinite, some

FILES = {"training": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
FIELDS = ("preprocessed_eeg_data", "ch_names", "times")
EXTENSIONS = (".jpg", ".jpeg", ".png")  # in lower case


@dataclasses.dataclass
class ThingsEeg2Config(StudyConfig):
    """`dataset=things_eeg2`"""

    eeg: str = path_option(help="folder with sub-01, sub-02, ...")
    images: str = path_option(help="folder with training_images/ and test_images/")
    splits: Literal["official", "by_image", "trials"] = option(
        "official", "official: the published test set; trials: wrong on purpose"
    )
    val_concepts: int = option(
        0,
        "training concepts, drawn by seed, that are val with all their pictures and not trained on; 0: val is one "
        "picture of each",
        newer=True,
    )


class Picture(NamedTuple):
    path: Path
    image: str
    label: int


@dataclasses.dataclass
class Part:
    """One file: its trials are numbered from `first`, condition by condition."""

    subject: int
    name: str  # "training" or "test"
    path: Path
    eeg: Any  # (conditions, repetitions, channels, samples)
    channels: list[str]
    times: np.ndarray  # of the samples, s after onset
    first: int = 0

    def __len__(self) -> int:
        return int(self.eeg.shape[0] * self.eeg.shape[1])


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, by name; not what file managers hide there."""
    return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)


class ThingsEeg2(Study):
    """Single repetitions of all subjects, or of one; `seed` draws the val pictures. EEG is read trial by trial.

    Raises ValueError, in one sentence, for whatever in the files is not as published.
    """

    dataset = "things_eeg2"
    units = "as in the file"  # it names none; the published data are whitened (multivariate noise normalisation)

    def __init__(self, config: ThingsEeg2Config, fault: Faults | None = None) -> None:
        super().__init__(fault)
        if config.splits == "by_image":
            raise ValueError("dataset=things_eeg2 has its published test set and no other: leave splits=official")
        if config.splits == "trials" and config.val_concepts:
            raise ValueError("splits=trials deals out trials, whatever their concept: leave val_concepts out")
        eeg, images, subject, seed = Path(config.eeg), Path(config.images), config.subject, config.seed
        self.simulated = (eeg / "simulation.json").is_file()
        self.pictures = self._pictures(images)
        self.picture_folders = [images / "training_images", images / "test_images"]
        folders = self._subject_folders(eeg, subject)
        self.subjects = sorted(folders)
        self.parts: list[Part] = []
        for number in self.subjects:
            for name, file in FILES.items():
                part = self._part(number, name, folders[number] / file)
                part.first = len(self)
                self.parts.append(part)
        self.inputs = [part.path for part in self.parts]
        self._agree()
        first = self.parts[0]
        self.channels = first.channels
        self.n_chans, self.n_times = len(first.channels), len(first.times)
        self.tmin = float(first.times[0])
        self.sfreq = round(float((self.n_times - 1) / (first.times[-1] - first.times[0])), 6)
        self.notes.append(f"samples run from {first.times[0]:.3f} to {first.times[-1]:.3f} s after onset")
        self.splits = self._split(seed, config.val_concepts)
        self._say(seed, config.val_concepts)
        if config.splits == "trials":
            shown, names = [self.facts(i)[2:0:-1] for i in range(len(self))], [c["name"] for c in self.classes]
            self.splits = by_split(split_images(shown, names, seed, f"eeg={eeg}", config.splits))
            self.split_by, self.protocol = "trial", BY_TRIAL.format(seed)

    def __len__(self) -> int:
        return self.parts[-1].first + len(self.parts[-1]) if self.parts else 0

    def trial(self, index: int) -> Trial:
        """Trial `index`, (n_chans, n_times): the only one that is read."""
        (part, condition, repetition), facts = self._place(index), self.facts(index)
        with np.errstate(over="ignore"):  # a number too large for float32 becomes infinity
            eeg = np.asarray(part.eeg[condition, repetition], dtype=np.float32)
        where = f"{part.path}: condition {condition} (image {facts.image}), repetition {repetition}"
        refuse_nonfinite(eeg, part.channels, where)
        key = f"s{part.subject:02d}_{part.name}_c{condition:05d}_r{repetition:02d}"
        extra = {"condition": condition, "repetition": repetition}
        return self.make_trial(key, eeg, facts, extra)

    def facts(self, index: int) -> Facts:
        """Reads nothing. The files are ordered by condition: they do not tell when a trial was."""
        part, condition, _ = self._place(index)
        picture = self.pictures[part.name][condition]
        return Facts(part.subject, picture.image, picture.label, picture=picture.path)

    def _place(self, index: int) -> tuple[Part, int, int]:
        part = self.parts[bisect.bisect_right([p.first for p in self.parts], index) - 1]
        return part, *divmod(index - part.first, part.eeg.shape[1])

    def _subject_folders(self, eeg: Path, subject: int) -> dict[int, Path]:
        if not eeg.is_dir():
            raise ValueError(f"eeg={eeg} is not a folder: give the one that holds sub-01, sub-02, ...")
        found: dict[int, Path] = {}
        others: list[str] = []
        for path in _visible(eeg):
            if (match := re.fullmatch(r"sub-(\d{1,6})", path.name)) and path.is_dir():
                number = int(match[1])
                if number == 0 or number in found:
                    raise ValueError(f"{path}: subjects are numbered from 1, each in one folder: rename it")
                found[number] = path
            elif path.is_symlink() and not path.exists():
                self.fault(f"{path} {absent(path)}")
            elif re.match(r"sub", path.name, re.IGNORECASE):
                others.append(path.name)
        if others:
            self.notes.append(f"left out, for it is not called sub-01, sub-02, ...: {some(others)}")
        if not found:
            near = any((eeg / file).exists() for file in FILES.values())
            raise ValueError(
                f"eeg={eeg} holds no folder sub-01, sub-02, ...: give "
                + ("the folder above it, and subject=... for this one alone" if near else "the one that holds them")
            )
        return {number: found[number] for number in self.choose_subject(subject, found, f"eeg={eeg}")}

    def _part(self, subject: int, name: str, path: Path) -> Part:
        """Open one file and check everything about it but the samples themselves."""
        content = load_pickle(path)
        if not isinstance(content, dict) or not set(FIELDS) <= set(content):
            raise ValueError(f"{path} is not a THINGS-EEG2 file: it must hold {', '.join(FIELDS)}")
        eeg, names, times = (content[field] for field in FIELDS)
        shape = eeg.shape if isinstance(eeg, StoredArray) else None
        if not shape or len(shape) != 4 or 0 in shape or eeg.dtype.kind not in "fiu":
            wanted = "a table of numbers, conditions x repetitions x channels x samples"
            raise ValueError(f"{path}: `preprocessed_eeg_data` must be {wanted}; it has the shape {shape}")
        names = names[...].tolist() if isinstance(names, StoredArray) else names
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and n.strip() for n in names):
            raise ValueError(f"{path}: `ch_names` must be a list of names")
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: `ch_names` holds {Counter(names).most_common(1)[0][0]!r} twice")
        if len(names) != shape[2]:
            raise ValueError(f"{path}: `ch_names` names {len(names)} channels, but the data have {shape[2]}")
        pictures = self.pictures[name]
        if len(pictures) != shape[0]:
            there = f"{pictures[0].path.parents[1]} holds {len(pictures)} pictures"
            folders = len({picture.path.parent for picture in pictures})
            raise ValueError(
                f"{path} holds {shape[0]} conditions, but {there} in {folders} folders, where each picture is a "
                "condition: use the pictures that belong to this file"
            )
        return Part(subject, name, path, eeg, [str(n) for n in names], self._times(path, times, shape[3]))

    def _times(self, path: Path, times: Any, n: int) -> np.ndarray:
        """The times of the samples: the last n entries."""
        try:  # one by one: numpy would look into whatever is nested there
            times = np.array([float(time) for time in (times[...] if isinstance(times, StoredArray) else times)])
        except (TypeError, ValueError, OverflowError):
            times = np.zeros(0)
        if len(times) < n or n < 2:
            raise ValueError(
                f"{path}: `times` must hold the times of the {n} samples, two or more; it has {len(times)}"
            )
        if len(times) > n:
            note = f"`times` names {len(times)} times for {n} samples: the last {n} are theirs"
            self.notes += [note] if note not in self.notes else []
        times = times[-n:]
        steps = np.diff(times)
        if not np.isfinite(times).all() or steps[0] <= 0 or np.abs(steps - steps.mean()).max() > 0.01 * steps.mean():
            raise ValueError(f"{path}: `times` must rise in even steps; the sampling rate is taken from it")
        return times

    def _agree(self) -> None:
        """Two files of one study have the same channels at the same times."""
        first = self.parts[0]
        for part in self.parts[1:]:
            if part.channels != first.channels:
                raise ValueError(f"{part.path} has other channels, or in another order, than {first.path}")
            if part.times.shape != first.times.shape or not np.allclose(part.times, first.times, atol=1e-3):
                own, other = (f"{len(p.times)} samples from {p.times[0]:g} to {p.times[-1]:g} s" for p in (part, first))
                raise ValueError(
                    f"{part.path} has {own} where {first.path} has {other}: take all files from one source"
                )

    def _pictures(self, root: Path) -> dict[str, list[Picture]]:
        """The pictures of both sets in the order of conditions; makes `classes`, one for each concept folder."""
        folders: list[tuple[str, Path, list[Path]]] = []  # set, concept folder, pictures
        odd = 0
        for name in FILES:
            own = root / f"{name}_images"
            if not own.is_dir():
                raise ValueError(f"{own} is not a folder: images= must hold training_images/ and test_images/")
            inside = {path: _visible(path) for path in _visible(own) if path.is_dir()}
            found = [(name, path, [p for p in all_ if p.suffix.lower() in EXTENSIONS]) for path, all_ in inside.items()]
            if not any(files for _, _, files in found):
                raise ValueError(f"{own} holds no folder of pictures: it must hold one a concept, 00001_aardvark, ...")
            usual = Counter(len(files) for _, _, files in found).most_common(1)[0][0]
            for _, path, files in found:
                if len(files) != usual:
                    odd += 1
                    self.fault(
                        f"{path} holds {len(files)} pictures where the other folders hold {usual}, which shifts all "
                        "conditions after it: put the published pictures there"
                    )
            folders += found
        if odd:
            raise ValueError(f"images={root}: {odd} folders hold another number of pictures than the others")
        concepts = [re.sub(r"^\d+_(?=.)", "", path.name) for _, path, _ in folders]
        stems = Counter(file.stem for _, _, files in folders for file in files)
        often = Counter(concepts)
        self.classes: list[dict[str, Any]] = []
        pictures: dict[str, list[Picture]] = {name: [] for name in FILES}
        for label, (concept, (name, path, files)) in enumerate(zip(concepts, folders, strict=True)):
            wnid = concept if often[concept] == 1 else f"{name}_{path.name}"
            self.classes.append({"label": label, "wnid": wnid, "name": concept.replace("_", " ")})
            for file in files:
                image = file.stem if stems[file.stem] == 1 else f"{name}_{path.name}_{file.stem}"
                pictures[name].append(Picture(file, image, label))
        if len({picture.image for own in pictures.values() for picture in own}) < sum(map(len, pictures.values())):
            raise ValueError(f"images={root} holds two pictures of one name in one folder: rename one")
        n_train = sum(name == "training" for name, _, _ in folders)
        self.both = sorted(set(concepts[:n_train]) & set(concepts[n_train:]))
        if more := [concept for concept, times in often.most_common() if times > 1]:
            self.notes.append(
                f"{len(more)} concept names stand for several folders (e.g. {more[0]}): these classes are told apart "
                "by set and folder"
            )
        return pictures

    def _split(self, seed: int, n_val: int) -> dict[str, list[int]]:
        """val: one picture of each training concept or all of n_val, all repetitions, the same for every subject."""
        by_label: dict[int, list[int]] = defaultdict(list)
        for condition, picture in enumerate(self.pictures["training"]):
            by_label[picture.label].append(condition)
        if n_val and n_val not in range(1, n := len(by_label)):
            raise ValueError(f"val_concepts={n_val} of {n} training concepts: give 1 to {n - 1}")
        for label, own in by_label.items():
            if len(own) < 2 and not n_val:
                name = self.classes[label]["name"]
                raise ValueError(
                    f"{self.picture_folders[0]}: concept {name} has one picture; two are needed, one for val"
                )
        held = {own[int(np.random.default_rng([seed, label]).integers(len(own)))] for label, own in by_label.items()}
        if n_val:
            drawn = np.random.default_rng(seed).permutation(sorted(by_label))[:n_val]
            held = {condition for label in drawn for condition in by_label[label]}
        return by_split(
            "test" if part.name == "test" else "val" if condition in held else "train"
            for part in self.parts
            for condition in range(part.eeg.shape[0])
            for _ in range(part.eeg.shape[1])
        )

    def _say(self, seed: int, n_val: int) -> None:
        concepts = {name: len({picture.label for picture in own}) for name, own in self.pictures.items()}
        unseen = "none of them in training"
        if self.both:
            names = ", ".join(self.both[:3])
            unseen = f"of which {len(self.both)} ({names}) are also trained on: NOT zero-shot for those"
        n = concepts["training"]
        val = f"one picture of each of {n} training concepts (seed {seed}), with all its repetitions"
        train = "the other training pictures"
        if n_val:
            val = f"all pictures of {n_val} of {n} training concepts (seed {seed}), which are not trained on"
            train = "those of the other training concepts"
        self.protocol = (
            f"test: the published test set, {concepts['test']} concepts, {unseen} ({concepts['test']}-way zero-shot), "
            f"single repetitions; val: {val}; train: {train}"
        )
        if len(self.subjects) == 1:
            self.protocol += f"; subject {self.subjects[0]} only"
