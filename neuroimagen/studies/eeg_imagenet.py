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
from neuroimagen.studies.pth import PthStudy, is_table, load_lists
from neuroimagen.studies.splits import refuse_empty
from neuroimagen.studies.study import SPLITS, Faults, Trial

FILES = ("EEG-ImageNet_1.pth", "EEG-ImageNet_2.pth")
LENGTHS = (440, 600)  # samples; the files hold about 500 a trial
CUT = (40, 440)  # samples: the publishers' cut
N_CHANS = 62  # published
BLOCK, TRAIN, VAL = 50, 30, 5  # trials of a block; its first that train, as published; the last of these, kept for val
FIELDS = ("eeg_data", "granularity", "subject", "label", "image")

# The fine classes by kind: dogs, fishes, fruit, vehicles, instruments. (The 40 coarse ones are in classes.py.)
FINE_CLASSES = """
n02099601 golden retriever, n02099712 Labrador retriever, n02106166 Border collie, n02106550 Rottweiler,
n02107142 Doberman, n02110185 Siberian husky, n02111889 Samoyed, n02112826 corgi,
n01443537 goldfish, n01456756 seahorse, n01484850 great white shark, n01494475 hammerhead shark,
n01496331 electric ray, n02630281 sailfish, n02643566 lionfish, n02655020 pufferfish,
n07740461 Red Delicious apple, n07745940 strawberry, n07749192 navel orange, n07753275 pineapple, n07756951 watermelon,
n07758680 grape, n07772935 coconut, n12144580 corn,
n02701002 ambulance, n02901620 brigantine, n03384352 forklift, n03690473 lorry, n03790512 motorcycle,
n03845190 oil tanker, n04389033 tank, n04465666 tractor,
n02672831 accordion, n02992211 cello, n03372029 flute, n03495258 harp, n03838899 oboe, n03884397 panpipe,
n04249415 snare drum, n04487394 trombone
"""
FINE = dict(entry.strip().split(" ", 1) for entry in FINE_CLASSES.split(","))


@dataclasses.dataclass
class EegImageNetConfig(StudyConfig):
    """`dataset=eeg_imagenet`"""

    eeg: str = path_option(help="folder with EEG-ImageNet_1.pth, EEG-ImageNet_2.pth or one of them")
    images: str = path_option(help="folder with <wnid>/<image>.JPEG")
    splits: Literal["official", "by_image"] = option(
        "official", "by the order of the file, as published, or 80/10/10 of the images of each class"
    )
    granularity: Literal["coarse", "fine", "all"] = option("all", "which trials")


class EegImageNet(PthStudy):
    """The trials of both files, or of the one that is there, with their split; EEG is read trial by trial.

    Raises ValueError, in one sentence, for whatever in the files is not as published; faults of single trials and
    pictures, and images on two sides, go to `fault`, which may collect them instead.
    """

    dataset = "eeg_imagenet"
    n_times = CUT[1] - CUT[0]
    tmin = CUT[0] / PthStudy.sfreq  # s; the files do not say that trials begin at onset, but are cut as if
    units = "as in the file"  # it names none; the numbers look like volts
    eeg_key = "eeg_data"
    names = {**FINE, **PthStudy.names}

    def __init__(self, config: EegImageNetConfig, fault: Faults | None = None) -> None:
        super().__init__(fault)
        eeg, subject, granularity = Path(config.eeg), config.subject, config.granularity
        self.simulated = (eeg / "simulation.json").is_file()
        self._take(eeg)
        found = sorted({trial["subject"] + 1 for _, trial in self.sound()})
        if subject and subject not in found:
            raise ValueError(
                f"eeg={eeg} holds no trial of subject={subject}; it holds subjects {found} (0 in the file is 1 here)"
            )
        self.subjects = [subject] if subject else found
        chosen = {
            i
            for i, trial in self.sound()
            if granularity in ("all", trial["granularity"]) and subject in (0, trial["subject"] + 1)
        }
        if not chosen:
            raise ValueError(f"eeg={eeg} holds no trial of granularity={granularity}")
        if config.splits == "by_image":
            own = self.split_by_image(chosen, config.seed)
        else:
            own = self._official(chosen)
            self.protocol = (
                f"of the {BLOCK} trials of a subject and class, in the order of the file: first {TRAIN - VAL} train, "
                f"next {VAL} val, rest test (published: first {TRAIN} train, rest test; a class was shown in one block)"
            )
        if granularity != "all":
            self.protocol += f"; {granularity} classes only"
        if subject:
            self.protocol += f"; subject {subject} only"
        self.find_pictures(Path(config.images), chosen, lambda trial: f"was shown in {trial}")
        self.splits = {name: [i for i in own[name] if self.image(i) in self.pictures] for name in SPLITS}
        refuse_empty(self.splits, f"eeg={eeg}", self.protocol)
        used = {self.wnid(i) for i in chosen}
        self.classes = self.class_table(label for label, wnid in enumerate(self.wnids) if wnid in used)

    def trial(self, index: int) -> Trial:
        """Trial `index` of both files laid end to end, cut to (n_chans, 400)."""
        item, eeg = self.trials[index], self.finite(index, self.named(index), slice(*CUT))
        path, number = self._source(index)
        (subject, image), granularity = self.shown(index), item["granularity"]
        extra = {"granularity": granularity, "subject_in_file": item["subject"], "file": path.name}
        extra |= {"trial_index": number}
        key, picture = f"s{subject:02d}_{granularity}_t{index:06d}", self.pictures[item["image"]]
        return self.make_trial(key, eeg.numpy(), picture, subject, self.labels[item["label"]], image, extra)

    def shown(self, index: int) -> tuple[int, str]:
        """(subject, image) of a trial; reads nothing."""
        return self.trials[index]["subject"] + 1, Path(self.trials[index]["image"]).stem

    def image(self, index: int) -> str:
        return self.trials[index]["image"]

    def wnid(self, index: int) -> str:
        return self.trials[index]["label"]

    def _source(self, index: int) -> tuple[Path, int]:
        """The file that trial `index` is from, and its number there."""
        part = max(p for p, first in enumerate(self.firsts) if first <= index)
        return self.inputs[part], index - self.firsts[part]

    def named(self, index: int) -> str:
        path, number = self._source(index)
        if index in self.broken:
            return f"{path}: trial {number}"
        trial = self.trials[index]
        return f"{path}: trial {number} (subject {trial['subject']} of the file, image {trial['image']})"

    def _take(self, folder: Path) -> None:
        """Read both files; check their structure and every trial's header. No EEG sample is read yet."""
        if not folder.is_dir():
            raise ValueError(f"eeg={folder} is not a folder: dataset=eeg_imagenet takes the one that holds {FILES[0]}")
        self.inputs = [folder / name for name in FILES if os.path.lexists(folder / name)]
        if not self.inputs:
            raise ValueError(f"eeg={folder} holds neither {FILES[0]} nor {FILES[1]}")
        self.notes += [f"{name} is not there" for name in FILES if folder / name not in self.inputs]
        self.trials: list[Any] = []
        self.wnids: list[str] = []
        self.firsts: list[int] = []
        listed: set[str] = set()
        for path in self.inputs:
            content = load_lists(path, "an EEG-ImageNet", ("labels",))
            self.firsts.append(len(self.trials))
            self.trials += content["dataset"]
            self.wnids += [wnid for wnid in content["labels"] if wnid not in self.wnids]
            listed |= {name for name in content["images"] if isinstance(name, str)}
        self.labels = {wnid: label for label, wnid in enumerate(self.wnids)}
        shapes = [t["eeg_data"].shape for t in self.trials if isinstance(t, dict) and is_table(t.get("eeg_data"))]
        self.n_chans = Counter(shape[0] for shape in shapes).most_common(1)[0][0] if shapes else N_CHANS
        if self.n_chans != N_CHANS:
            self.notes.append(f"the trials have {self.n_chans} channels; the published ones have {N_CHANS}")
        self.check_headers()
        self._refuse_copies()
        strange = {trial["image"] for _, trial in self.sound()} - listed - {f"{name}.JPEG" for name in listed}
        if strange:
            self.notes.append(f"{len(strange)} images of trials are not in the list `images`, e.g. {min(strange)}")

    def _check(self, index: int, trial: Any) -> None:
        path, number = self._source(index)
        where = f"{path}: trial {number}"
        if not isinstance(trial, dict) or not set(FIELDS) <= set(trial):
            raise ValueError(f"{where} must hold {', '.join(FIELDS)}")
        if type(trial["subject"]) is not int or not 0 <= trial["subject"] < 1 << 31:
            raise ValueError(f"{where} has subject {trial['subject']!r}; subjects are whole numbers from 0")
        if trial["granularity"] not in ("coarse", "fine"):
            raise ValueError(f"{where} has granularity {trial['granularity']!r}, which is not coarse or fine")
        label, image = trial["label"], trial["image"]
        if not isinstance(label, str) or label not in self.labels:
            raise ValueError(f"{where} has label {label!r}, which is not in the list `labels`")
        if not isinstance(image, str) or not re.fullmatch(r"\w[\w-]*\.(jpe?g|png)", image, re.IGNORECASE):
            raise ValueError(f"{where} has image {image!r}, which is not the plain name of a picture")
        if not image.startswith(f"{label}_"):
            raise ValueError(f"{where} is labelled {label}, which is not the class of its image {image}")
        eeg = trial["eeg_data"]
        if not is_table(eeg):
            raise ValueError(f"{where} has no EEG table (channels x samples)")
        if eeg.shape[0] != self.n_chans:
            raise ValueError(
                f"{where} has {eeg.shape[0]} channels where most have {self.n_chans}: drop it from the file"
            )
        if not LENGTHS[0] <= eeg.shape[1] <= LENGTHS[1]:
            raise ValueError(
                f"{where} has {eeg.shape[1]} samples where about 500 are expected, {LENGTHS[0]} at least: "
                "drop it from the file, or is the file not at 1000 Hz?"
            )

    def _refuse_copies(self) -> None:
        """A person's block of a class is in one file only."""
        home: dict[Hashable, Path] = {}
        for index, trial in self.sound():
            path, block = self._source(index)[0], (trial["subject"], trial["granularity"], trial["label"])
            if home.setdefault(block, path) != path:
                raise ValueError(
                    f"{path} and {home[block]} both hold trials of subject {block[0]} and class {block[2]}: "
                    "is one a copy of the other?"
                )

    def _official(self, chosen: set[int]) -> dict[str, list[int]]:
        """By a trial's place in its block, whatever else is chosen; an image on two sides is a fault.

        Blocks of 50 are laid end to end where a person saw a class more than once. Broken trials keep their place.
        """
        place: Counter[Hashable] = Counter()
        splits: dict[str, list[int]] = {name: [] for name in SPLITS}
        for index, trial in enumerate(self.trials):
            block = tuple(repr(trial.get(key)) for key in FIELDS[1:4]) if isinstance(trial, dict) else ()
            at = place[block] % BLOCK
            place[block] += 1
            if index in chosen:
                splits["train" if at < TRAIN - VAL else "val" if at < TRAIN else "test"].append(index)
        blocks = {tuple(repr(self.trials[i][key]) for key in FIELDS[1:4]) for i in chosen}
        odd = [place[block] for block in blocks if place[block] != BLOCK]
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
