"""A study whose truth is known: drawn pictures and simulated EEG, in the files of the PerceiveLab data set.

(format=things_eeg2: in those of THINGS-EEG2, things.py. What follows is of the former.)

Of the forms that studies/perceivelab.py describes:

    eeg.pth          trials shuffled, z-scored by channel over the study, subjects from 1
    splits.pth       six splits of 4:1:1 by image
    block_splits_by_image_single.pth
                     the same for subject 1 alone: numbers count the trials of that subject, in the order of `dataset`.
                     (Another subject's list has as many, and pictures stay apart, but not 4:1:1 of each class.)
    images/<wnid>/<name>.JPEG
    captions.jsonl   {"image", "caption", "source"} a line: what was drawn
    simulation.json  the parameters; that this file is there says "simulated"

Pictures: pictograms.py. EEG: the linear model of brain.py, where every number has its source. Trial lengths are as
reported for the published file: about 500 samples at 1 kHz, 0.2 % of them outside the customary 450..600. Unlike in the
published study, classes come in random order and without drift: a class is to be read from the response to the picture
or not at all.

drift, order, blank, signature, repetitions and band=raw make studies that deceive: a class can be named, though nothing
or not all of it comes from the picture. Their trials also have 'block', from 1 along the recording of a person, and
'onset', s along it.
"""

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from neuroimagen.config import option, path_option
from neuroimagen.files import replacing
from neuroimagen.simulation import brain
from neuroimagen.simulation.pictograms import draw_picture
from neuroimagen.simulation.things import CHANNELS, CONCEPTS, write_things
from neuroimagen.studies.classes import CLASSES, ImageClass

VERSION = 1  # raise it when the same parameters begin to give other files
BATCH = 64  # trials made at once; the random streams depend on it, so it is not a parameter
N_FOLDS = 6


@dataclasses.dataclass
class SimulateConfig:
    """A simulated study."""

    out: str = path_option(help="folder to make; holds eeg.pth, splits files, images/, captions.jsonl, simulation.json")
    seed: int = option(0, "everything is a function of the seed; another seed gives other pictures and other people")
    snr: float = option(0.2, "power of what depends on the picture / power of noise; 0: nothing of the picture")
    n_subjects: int = option(3, "people; each sees every picture once (6 in the published study)")
    images_per_class: int = option(50, "pictures of each class")
    classes: str = option("all", "all | how many, from the first | wnids or names, e.g. pizza,giant panda")
    picture_size: int = option(128, "width and height of the pictures in pixels")
    pictures_only: bool = option(False, "pictures and captions without EEG, to train a diffusion model on")
    band: Literal["5-95", "14-70", "55-95", "raw"] = option(
        "5-95", "band-pass in Hz, as in the published files' names; raw: no high-pass, so drift stays in"
    )
    drift: float = option(0.0, "power of slow drift along a recording / power of noise; most of it shows in band=raw")
    order: Literal["random", "blocks"] = option("random", "trials at random, or blocks of one class as published")
    blank: float = option(10.0, "s of nothing between two blocks (as published)")
    signature: float = option(
        0.0,
        "power of a fixed pattern of each person / power of noise; above 0 a person sees every other class alone, so "
        "that who it is tells what it may be: of n classes about 2/n are named right without any signal",
    )
    repetitions: int = option(1, "times that a person sees each picture")
    format: Literal["perceivelab", "things_eeg2"] = option(
        "perceivelab", "whose files; things_eeg2 has test concepts that are not trained on, and the fields below"
    )
    concepts: int = option(100, "things_eeg2: training concepts (1,654 in the published study)")
    test_concepts: int = option(20, "things_eeg2: test concepts, others, of one picture each (200)")
    images_per_concept: int = option(5, "things_eeg2: pictures of each training concept (10)")
    train_repetitions: int = option(4, "things_eeg2: times that a person sees each training picture (4)")
    test_repetitions: int = option(20, "things_eeg2: times that a person sees each test picture (80)")
    n_chans: int = option(17, "things_eeg2: channels, 17 posterior ones or 63")


OWN: dict[str, tuple[str, ...]] = {  # fields of one format alone
    "perceivelab": (
        *("images_per_class", "classes", "pictures_only", "band", "drift", "order", "blank", "signature"),
        "repetitions",
    ),
    "things_eeg2": (
        *("concepts", "test_concepts", "images_per_concept", "train_repetitions", "test_repetitions"),
        "n_chans",
    ),
}
# The options that came later, and need an order of presentation: their defaults, which mean none.
DECEPTIONS = {name: getattr(SimulateConfig, name) for name in ("drift", "order", "blank", "signature", "repetitions")}
LEAST = {"seed": 0, "snr": 0, "n_subjects": 1, "images_per_class": 1, "picture_size": 32}
LEAST |= {"drift": 0, "blank": 0, "signature": 0, "repetitions": 1}
LEAST |= {"concepts": 2, "test_concepts": 2, "images_per_concept": 2, "train_repetitions": 1, "test_repetitions": 1}


def choose_classes(choice: str) -> list[ImageClass]:
    """`all`, a number n (the first n), or wnids or names separated by commas; ValueError for one that is not there."""
    if choice == "all":
        return list(CLASSES)
    if choice.strip().isdigit():
        if not 1 <= int(choice) <= len(CLASSES):
            raise ValueError(f"classes={choice}: choose 1 to {len(CLASSES)} classes")
        return list(CLASSES[: int(choice)])
    chosen: list[ImageClass] = []
    for word in (word.strip().lower() for word in choice.split(",")):
        found = [c for c in CLASSES if word in (c.wnid, c.name.lower())]
        found = found or [c for c in CLASSES if word in c.name.lower().split()]  # "panda" will do
        if len(found) != 1:
            names = {c.name.lower(): c.name for c in CLASSES}
            near = [c.name for c in found] or [names[n] for n in difflib.get_close_matches(word, names, 1)]
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"classes={choice}: {word!r} does not name one of the {len(CLASSES)} classes.{hint}")
        if found[0] in chosen:
            raise ValueError(f"classes={choice}: {found[0].name!r} is there twice; name each class once")
        chosen += found
    return chosen


class Picture(NamedTuple):
    name: str
    label: int
    code: np.ndarray  # (58,), what the EEG carries (brain.py)


def _rng(config: SimulateConfig, purpose: str, *numbers: int) -> np.random.Generator:
    """An independent stream of random numbers for each (seed, purpose, numbers)."""
    return np.random.default_rng([config.seed, *purpose.encode(), 256, *numbers])


def _draw_pictures(config: SimulateConfig, classes: list[ImageClass], folder: Path) -> list[Picture]:
    """Draw all pictures, write the JPEGs and captions.jsonl; class by class in the order of `classes`.

    A class has the same pictures, names and code whichever other classes there are.
    """
    pictures, captions = [], []
    n = config.images_per_class
    for label, image_class in enumerate(tqdm(classes, desc="classes of pictures", disable=None)):
        number = int(image_class.wnid[1:])
        (folder / "images" / image_class.wnid).mkdir(parents=True)
        suffixes = _rng(config, "names", number).choice(np.arange(1, 10 * max(3000, n)), n, replace=False)
        class_code = _rng(config, "class", number).standard_normal(brain.N_CLASS)
        for i, suffix in enumerate(suffixes):
            scene = draw_picture(image_class, _rng(config, "picture", number, i), config.picture_size)
            name = f"{image_class.wnid}_{suffix}"
            scene.image.save(folder / "images" / image_class.wnid / f"{name}.JPEG", quality=95)
            captions.append({"image": name, "caption": scene.caption, "source": "drawn scene (simulator)"})
            code = np.concatenate([class_code, brain.layout_codes(brain.layout(scene.image)[None])[0]])
            pictures.append(Picture(name, label, code))
    (folder / "captions.jsonl").write_bytes("".join(json.dumps(caption) + "\n" for caption in captions).encode())
    return pictures


def trial_lengths(rng: np.random.Generator, n: int) -> np.ndarray:
    """Samples of each trial: near 500, at least the 460 that the customary cut 20:460 needs; 0.2 % outside 450..600."""
    lengths = np.clip(np.round(rng.normal(500, 10, n)), 460, 560).astype(int)
    odd = rng.choice(n, round(0.002 * n), replace=False)
    short = rng.random(len(odd)) < 0.5
    lengths[odd] = np.where(short, rng.integers(380, 450, len(odd)), rng.integers(601, brain.LONGEST, len(odd)))
    return lengths


def official_splits(picture_of_trial: np.ndarray) -> dict[str, list[dict[str, list[int]]]]:
    """Six splits of 4:1:1 by image; every picture is in the test part of one of them.

    picture_of_trial: (trials,) picture numbers counted class by class, so that six in a row give each class 4:1:1.
    """
    parts = {"train": (0, 1, 2, 3), "val": (4,), "test": (5,)}
    folds = [(picture_of_trial + k) % N_FOLDS for k in range(N_FOLDS)]
    return {"splits": [{n: np.flatnonzero(np.isin(f, p)).tolist() for n, p in parts.items()} for f in folds]}


class Recording(NamedTuple):
    """What one person sees: (trials,) each."""

    shown: np.ndarray  # picture numbers
    block: np.ndarray  # from 1
    onset: np.ndarray  # s


def timed(config: SimulateConfig) -> bool:
    """Whether the study has an order of presentation: where none of the options that need one is given, it has not."""
    return config.band == "raw" or any(getattr(config, name) != default for name, default in DECEPTIONS.items())


def present(config: SimulateConfig, labels: np.ndarray, subject: int) -> Recording:
    """The recording of a person (from 0); labels: (pictures,) their classes.

    There are as many blocks as classes: of one class each, or of trials at random.
    """
    if not timed(config):
        return Recording(np.arange(len(labels)), np.ones(len(labels)), np.zeros(len(labels)))
    seen = (labels + subject) % 2 == 0 if config.signature else np.full(len(labels), True)
    rng = _rng(config, "presentation", subject)
    shown = rng.permutation(np.repeat(np.flatnonzero(seen), config.repetitions))
    n_blocks = len(np.unique(labels[shown]))
    block = np.arange(len(shown)) * n_blocks // len(shown)
    if config.order == "blocks":
        shown = shown[np.argsort(rng.permutation(labels.max() + 1)[labels[shown]], kind="stable")]
        block = np.cumsum(np.diff(labels[shown], prepend=labels[shown[0]]) != 0)
    return Recording(shown, block + 1, brain.SHOWN * np.arange(len(shown)) + config.blank * block)


def _generate(config: SimulateConfig, codes: np.ndarray, people: list[Recording]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (trial, EEG (128, LONGEST) float32 before standardisation); trials count on from person to person."""
    rng = functools.partial(_rng, config)
    erp, patterns = brain.draw_subjects(rng, config.n_subjects, codes, config.snr, config.band)
    first = 0
    for subject, (shown, _, onset) in enumerate(people):
        noise = brain.Noise(rng("noise", subject), config.band)
        flat = patterns[subject].reshape(codes.shape[1], -1)
        given = (onset, config.drift, config.signature, config.band)
        electrodes = brain.Electrodes(rng("electrodes", subject), *given) if any(given[1:3]) else None
        for start in range(0, len(shown), BATCH):
            chosen = shown[start : start + BATCH]
            eeg = noise.draw(rng("trials", subject, start), len(chosen))[:, :, : brain.LONGEST] + erp[subject]
            if config.snr > 0:  # at 0 not even the rounding of a sum with zeros may depend on the picture
                eeg += (codes[chosen].astype(np.float32) @ flat).reshape(eeg.shape)
            if electrodes:
                eeg = electrodes(eeg, slice(start, start + BATCH))
            yield from enumerate(eeg, first + start)
        first += len(shown)


def _write_eeg(config: SimulateConfig, classes: list[ImageClass], pictures: list[Picture], folder: Path) -> int:
    """eeg.pth and both splits files; returns the number of trials.

    Until saved, trials lie in a memory-mapped file: memory does not grow with n.
    """
    labels = np.array([picture.label for picture in pictures])
    recordings = [present(config, labels, subject) for subject in range(config.n_subjects)]
    subject = np.repeat(np.arange(config.n_subjects), [len(recording.shown) for recording in recordings])
    shown, block, onset = (np.concatenate(column) for column in zip(*recordings, strict=True))
    n = len(shown)
    rng = _rng(config, "order")
    image_number = rng.permutation(len(pictures))  # place in `images`, by picture number
    place = rng.permutation(n)  # in `dataset`, by trial
    lengths = trial_lengths(rng, n)  # by place
    offsets = np.concatenate([[0], np.cumsum(lengths * len(brain.CHANNELS))])
    scratch = folder / "eeg.float32"
    store = np.memmap(scratch, np.float32, "w+", shape=(int(offsets[-1]),))
    trials = [store[offsets[i] : offsets[i + 1]].reshape(len(brain.CHANNELS), -1) for i in range(n)]
    total = np.zeros((2, len(brain.CHANNELS)))
    with tqdm(total=n, desc="EEG trials", disable=None) as progress:
        for trial, eeg in _generate(config, np.stack([picture.code for picture in pictures]), recordings):
            i = place[trial]
            trials[i][:] = eeg[:, : lengths[i]]
            total += trials[i].sum(1), (trials[i] ** 2).sum(1)
            progress.update()
    mean = total[0] / lengths.sum()
    deviation = np.sqrt(total[1] / lengths.sum() - mean**2)
    mean32, scale32 = mean[:, None].astype(np.float32), (1 / deviation)[:, None].astype(np.float32)
    dataset: list[dict[str, Any]] = [{}] * n
    for trial, i in enumerate(place):
        np.multiply(trials[i] - mean32, scale32, out=trials[i])
        dataset[i] = {"eeg": torch.from_numpy(trials[i]), "image": int(image_number[shown[trial]])}
        dataset[i] |= {"label": pictures[shown[trial]].label, "subject": int(subject[trial]) + 1}
        if timed(config):
            dataset[i] |= {"block": int(block[trial]), "onset": float(onset[trial])}
    images = [pictures[number].name for number in np.argsort(image_number)]
    torch.save({"dataset": dataset, "labels": [c.wnid for c in classes], "images": images}, folder / "eeg.pth")
    torch.save(official_splits(shown[np.argsort(place)]), folder / "splits.pth")
    first = slice(len(recordings[0].shown))
    torch.save(official_splits(shown[first][np.argsort(place[first])]), folder / "block_splits_by_image_single.pth")
    scratch.unlink()
    return n


def _write_perceivelab(config: SimulateConfig, classes: list[ImageClass], folder: Path) -> tuple[dict[str, Any], str]:
    """The study but for simulation.json; what that says of the EEG, and what a terminal says of all."""
    pictures = _draw_pictures(config, classes, folder)
    drawn = f"{len(pictures)} pictures of {len(classes)} classes"
    if config.pictures_only:
        return {}, f"{drawn}, no EEG"
    n_trials = _write_eeg(config, classes, pictures, folder)
    about = {"sfreq": brain.SFREQ, "channels": brain.CHANNELS, "noise_shares": brain.SHARES, "stages": brain.STAGES}
    set_ = {name: getattr(config, name) for name in DECEPTIONS}
    given = [f"{name}={value}" for name, value in set_.items() if value != DECEPTIONS[name]]
    return about, ", ".join([drawn, f"{n_trials} trials at snr={config.snr:g}", *given])


def simulate(config: SimulateConfig) -> None:
    """Write the study to `config.out`, whole or not at all; does nothing where the same study already is.

    Raises ValueError if a parameter makes no sense or `out` holds anything else.
    """
    classes = choose_classes(config.classes)
    for name, least in LEAST.items():
        if not least <= getattr(config, name) < 2**31:
            raise ValueError(f"{name}={getattr(config, name)}: give a number of at least {least}")
    things = config.format == "things_eeg2"
    other = "perceivelab" if things else "things_eeg2"
    for name in OWN[other]:
        if getattr(config, name) != getattr(SimulateConfig, name):
            raise ValueError(f"{name}={getattr(config, name)} is for format={other}: leave it out")
    if config.n_chans not in CHANNELS:
        raise ValueError(f"n_chans={config.n_chans}: the published files have {' or '.join(map(str, CHANNELS))}")
    if things and config.concepts + config.test_concepts > len(CONCEPTS):
        raise ValueError(f"concepts and test_concepts: there are {len(CONCEPTS)} in all, give fewer")
    if config.pictures_only and timed(config):
        raise ValueError(f"{', '.join([*DECEPTIONS])} and band=raw are about EEG: leave them out of pictures_only=true")
    if config.signature and min(config.n_subjects, len(classes)) < 2:
        raise ValueError(f"signature={config.signature:g}: each person sees every other class, so give two of each")
    least = (len(classes) // 2 if config.signature else len(classes)) * config.images_per_class  # that a person sees
    if least < N_FOLDS and not config.pictures_only:
        raise ValueError(f"images_per_class={config.images_per_class}: a 4:1:1 split needs {N_FOLDS} pictures or more")
    parameters = {**dataclasses.asdict(config), "classes": [c.wnid for c in classes], "version": VERSION}
    unset = [name for name, default in DECEPTIONS.items() if parameters[name] == default]  # as before there were any
    for name in {*unset, *OWN[other], *["format"] * (not things)}:
        parameters.pop(name)
    out = Path(parameters.pop("out"))
    if (out / "simulation.json").is_file():
        before = json.loads((out / "simulation.json").read_text(encoding="utf-8"))["parameters"]
        changed = sorted(key for key in parameters | before if parameters.get(key) != before.get(key))
        if changed:
            raise ValueError(
                f"{out} holds a simulated study with another {', '.join(changed)}: choose another out= or remove {out}"
            )
        print(f"{out} already holds this simulated study; nothing to do")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there and is not a simulated study: choose another out=")
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        if things:
            about, said = write_things(config, functools.partial(_rng, config), partial)
        else:
            about, said = _write_perceivelab(config, classes, partial)
        about = {"simulated": True, "parameters": parameters, **about}
        (partial / "simulation.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(f"{out}: simulated study, {said}")
