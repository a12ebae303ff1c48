"""Reader of EEG-ImageNet (Zhu et al. 2024), 16 people, 80 ImageNet classes.

The files as published:
  EEG-ImageNet_1.pth, EEG-ImageNet_2.pth   eight people each; either may be used alone. A dict: `dataset` list of
      {'eeg_data': tensor (62, about 500) at 1 kHz, 'granularity': 'coarse' | 'fine', 'subject': 0 to 15,
      'label': wnid, 'image': 'n02106662_1234.JPEG'}, `labels` list of wnids, `images`
  pictures                                 <images>/<wnid>/<image>
The publishers' loader takes samples 40 to 439 of each trial, 400 in all; so does this one. Their split goes by the
order of the file: of the 50 trials of a person and class, shown in one block, the first 30 train and the rest test.
`subject` counts from 1 here, as 0 means all. Everything is read with `weights_only=True`: nothing in it is executed.

The files are memory-mapped: to open 8,000 trials (1 GB) took 20 MB. Pages once read stay mapped and count as resident
(all 1 GB, after all trials) until the system wants them back; what the process itself holds does not grow.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Literal

from neuroimagen.config import option, path_option
from neuroimagen.studies.config import StudyConfig
from neuroimagen.studies.pth import Header, PthStudy, is_table, load_lists
from neuroimagen.studies.study import SPLITS, Facts, Faults, Trial

FILES = ("EEG-ImageNet_1.pth", "EEG-ImageNet_2.pth")
LENGTHS = (440, 600)  # samples; the files hold about 500 a trial
CUT = (40, 440)  # samples: the publishers' cut
N_CHANS = 62  # published
BLOCK, TRAIN, VAL = 50, 30, 5  # trials of a block; its first that train, as published; the last of these, kept for val
FIELDS = ("eeg_data", "granularity", "subject", "label", "image")


@dataclasses.dataclass
class EegImageNetConfig(StudyConfig):
    """`dataset=eeg_imagenet`"""

    eeg: str = path_option(help="folder with EEG-ImageNet_1.pth, EEG-ImageNet_2.pth or one of them")
    images: str = path_option(help="folder with <wnid>/<image>.JPEG")
    splits: Literal["official", "by_image", "trials"] = option(
        "official",
        "by the order of the file, as published, or 80/10/10 of the images of each class; trials: wrong on purpose",
    )
    granularity: Literal["coarse", "fine", "all"] = option("all", "which trials")


class EegImageNet(PthStudy):
    """The trials of both files, or of the one that is there, with their split; EEG is read trial by trial."""

    dataset = "eeg_imagenet"
    n_times = CUT[1] - CUT[0]
    tmin = CUT[0] / PthStudy.sfreq  # s; the files do not say that trials begin at onset, but are cut as if
    units = "as in the file"  # it names none; the numbers look like volts
    fields = FIELDS
    lengths_taken = LENGTHS

    def __init__(self, config: EegImageNetConfig, fault: Faults | None = None) -> None:
        super().__init__(fault)
        eeg, subject, granularity = Path(config.eeg), config.subject, config.granularity
        self.simulated = (eeg / "simulation.json").is_file()
        self._take(eeg)
        found = {header.subject for header in self.headers.values()}
        self.subjects = self.choose_subject(subject, found, f"eeg={eeg} (whose subject 0 is 1 here)")
        chosen = {
            i
            for i, header in self.headers.items()
            if granularity in ("all", self.trials[i][2]["granularity"]) and header.subject in self.subjects
        }
        if not chosen:
            raise ValueError(f"eeg={eeg} holds no trial of granularity={granularity}")
        if config.splits != "official":
            own = self.split_at_random(config.splits, chosen, config.seed)
        else:
            own = self._official(chosen)
            self.protocol = (
                f"of the {BLOCK} trials of a subject and class, in the order of the file: first {TRAIN - VAL} train, "
                f"next {VAL} val, rest test (published: first {TRAIN} train, rest test; a class was shown in one block)"
            )
        if granularity != "all":
            self.protocol += f"; {granularity} classes only"
        self.keep_pictured(own, Path(config.images), subject, f"eeg={eeg}")
        self.classes = self.class_table(sorted({self.headers[i].label for i in chosen}))

    def trial(self, index: int) -> Trial:
        """Trial `index` of both files laid end to end, cut to (n_chans, 400)."""
        path, number, item = self.trials[index]
        header, granularity = self.headers[index], item["granularity"]
        extra = {"granularity": granularity, "subject_in_file": item["subject"], "file": path.name}
        key, eeg = f"s{header.subject:02d}_{granularity}_t{index:06d}", header.eeg[:, slice(*CUT)].float()
        return self.read_trial(index, key, eeg, slice(None), extra | {"trial_index": number})

    def facts(self, index: int) -> Facts:
        """Reads nothing. The block is that of a class; for the onset stands the place in the file."""
        known, item = super().facts(index), self.trials[index][2]
        block = f"{item['granularity']} {item['label']} {self.places[index] // BLOCK}"
        return known._replace(block=block, onset=float(index))

    def _take(self, folder: Path) -> None:
        """Read both files; check their structure and every trial's header. No EEG sample is read yet."""
        if not folder.is_dir():
            raise ValueError(f"eeg={folder} is not a folder: dataset=eeg_imagenet takes the one that holds {FILES[0]}")
        self.inputs = [folder / name for name in FILES if os.path.lexists(folder / name)]
        if not self.inputs:
            raise ValueError(f"eeg={folder} holds neither {FILES[0]} nor {FILES[1]}")
        self.notes += [f"{name} is not there" for name in FILES if folder / name not in self.inputs]
        self.trials, self.wnids = [], []
        for path in self.inputs:
            content = load_lists(path, "an EEG-ImageNet", ("labels",))
            self.trials += [(path, number, trial) for number, trial in enumerate(content["dataset"])]
            self.wnids += [wnid for wnid in content["labels"] if wnid not in self.wnids]
        tables: list[Any] = [trial.get(FIELDS[0]) for _, _, trial in self.trials if isinstance(trial, dict)]
        shapes = Counter(table.shape[0] for table in tables if is_table(table))
        self.n_chans = shapes.most_common(1)[0][0] if shapes else N_CHANS
        if self.n_chans != N_CHANS:
            self.notes.append(f"the trials have {self.n_chans} channels; the published ones have {N_CHANS}")
        self.read_headers()
        met: Counter[Hashable] = Counter()
        self.places = []  # of each trial among those of its subject and class
        for block in map(self._block, range(len(self))):
            self.places.append(met[block])
            met[block] += 1
        self._refuse_copies()

    def header(self, where: str, trial: dict[str, Any]) -> Header:
        subject, label, image = trial["subject"], trial["label"], trial["image"]
        if type(subject) is not int or not 0 <= subject < 1 << 31:
            raise ValueError(f"{where} has subject {subject!r}; subjects are whole numbers from 0")
        if trial["granularity"] not in ("coarse", "fine"):
            raise ValueError(f"{where} has granularity {trial['granularity']!r}, which is not coarse or fine")
        if label not in self.wnids:
            raise ValueError(f"{where} has label {label!r}, which is not in the list `labels`")
        if not isinstance(image, str) or not re.fullmatch(r"\w[\w-]*\.(jpe?g|png)", image, re.IGNORECASE):
            raise ValueError(f"{where} has image {image!r}, which is not the plain name of a picture")
        said = f"subject {subject} of the file, image {image}"
        return Header(subject + 1, self.wnids.index(label), image, trial["eeg_data"], said)

    def _block(self, index: int) -> tuple[str, ...]:
        """Subject, granularity and label of a trial, as the file says them; () if that cannot be told."""
        trial = self.trials[index][2]
        return tuple(repr(trial.get(key)) for key in FIELDS[1:4]) if isinstance(trial, dict) else ()

    def _refuse_copies(self) -> None:
        """A person's block of a class is in one file only."""
        home: dict[Hashable, Path] = {}
        for index in self.headers:
            (path, _, trial), block = self.trials[index], self._block(index)
            if home.setdefault(block, path) != path:
                raise ValueError(
                    f"{path} and {home[block]} both hold trials of subject {trial['subject']} and class "
                    f"{trial['label']}: is one a copy of the other?"
                )

    def _official(self, chosen: set[int]) -> dict[str, list[int]]:
        """By a trial's place in its block, whatever else is chosen; an image on two sides is a fault.

        Blocks of 50 are laid end to end where a person saw a class more than once. Broken trials keep their place.
        """
        splits: dict[str, list[int]] = {name: [] for name in SPLITS}
        for index, at in enumerate(self.places):
            at %= BLOCK
            if index in chosen:
                splits["train" if at < TRAIN - VAL else "val" if at < TRAIN else "test"].append(index)
        blocks = {self._block(i) for i in chosen}
        count = Counter(map(self._block, range(len(self))))
        odd = [count[block] for block in blocks if count[block] != BLOCK]
        if odd:
            self.notes.append(
                f"{len(odd)} of {len(blocks)} blocks of a subject and class do not hold {BLOCK} trials (but {min(odd)} "
                f"to {max(odd)}), so they are not split {TRAIN} to {BLOCK - TRAIN}"
            )
        side: dict[str, tuple[str, int]] = {}
        leaks: dict[str, str] = {}  # image -> where it is
        for name in SPLITS:
            for i in splits[name]:
                first, by = side.setdefault(self.image(i), (name, i))
                if first != name:
                    found = f"{self.named(i)} is in {name}, the same image in {first} ({self.named(by)})"
                    leaks.setdefault(self.image(i), found)
        if leaks:
            self.fault(
                f"splits=official puts {len(leaks)} of {len(side)} images on two sides, e.g. {[*leaks.values()][0]}: "
                "give subject=... if the order differs between people, or splits=by_image"
            )
            splits = {name: [i for i in own if self.image(i) not in leaks] for name, own in splits.items()}
        return splits
