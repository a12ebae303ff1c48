"""A simulated study in the files of THINGS-EEG2, as studies/things_eeg2.py reads them, whose test concepts are unseen.

    sub-01/preprocessed_eeg_training.npy, preprocessed_eeg_test.npy, sub-02/ ...      np.save of a dict, as published
    images/training_images/00001_accordion/accordion_01b.jpg, ...                     images_per_concept= of each
    images/test_images/00001_anchor/anchor_01s.jpg, ...                               one of each
    captions.jsonl, simulation.json                                                   as in study.py

Concepts are OpenMoji pictograms (things.yaml) in the scenes of pictograms.py; which are trained on and which are tested
on is drawn by the seed, and no concept is both. 17 posterior channels or 63, 100 Hz, -0.2 to 0.8 s; each trial less its
mean before onset, each channel of a person over its deviation on the training trials. Not whitened: `whiten=` does it.

The EEG is brain.py's, with 98 numbers of a picture: the 34 of its layout, which weigh early, and, weighing late where
brain.yaml's stages have the class, 64 that are a random projection, by the seed, of a visual code: what block 11 of 16
of EfficientNet-lite0 (ImageNet weights) finds in the picture, averaged over places and standardised over the training
pictures. Nothing in it is of the concept as such: what is read of an unseen one was learnt from pictures of others.

The truth is known, and it is easier than a brain: responses are linear in the code, alike in every repetition, and of
drawn pictures. Above all, who decodes to features of that same network, even of a later layer, decodes to a relative of
what was put in. So scores compare methods with each other; they say nothing of what a method reaches on people.

snr is that of brain.py, over its 128 channels in 5-95 Hz; in 17 posterior channels it is higher. At snr=0 no picture is
looked at: the EEG is a function of the seed and the sizes of the study alone.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.signal
import torch
import yaml
from PIL import Image
from tqdm import tqdm

from neuroimagen.features.efficientnet import efficientnet, features
from neuroimagen.simulation import brain
from neuroimagen.simulation.pictograms import draw_picture
from neuroimagen.studies.classes import ImageClass
from neuroimagen.studies.things_eeg2 import FIELDS, FILES

if TYPE_CHECKING:
    from neuroimagen.simulation.study import SimulateConfig

_FILE = yaml.safe_load(Path(__file__).with_name("things.yaml").read_text(encoding="utf-8"))
_ENDS = [[int(code, 16) for code in word.split("-")] for word in _FILE["concepts"].split()]
_GLYPHS = [chr(code) for ends in _ENDS for code in range(ends[0], ends[-1] + 1)]
CONCEPTS = tuple(ImageClass(i, "", unicodedata.name(glyph).lower(), glyph) for i, glyph in enumerate(_GLYPHS))
CHANNELS = {63: _FILE["channels"].split(), 17: [c for c in _FILE["channels"].split() if c[0] in "OP"]}
SFREQ, BEFORE, N_TIMES = 100, 20, 100  # Hz; samples before onset, and in all
BLOCK, SIDE, N_VISUAL = 10, 128, 64  # of the network, from 0; px of what it sees; numbers that the EEG carries of it
BATCH = 64  # trials, or pictures, at once; what comes out depends on it, so it is not a parameter
Rng = Callable[..., np.random.Generator]  # (purpose, *numbers) -> an independent stream


def draw_pictures(config: "SimulateConfig", rng: Rng, folder: Path) -> dict[str, list[Path]]:
    """Writes images/ and captions.jsonl; the pictures of both sets, in the order of their conditions."""
    order = rng("concepts").permutation(len(CONCEPTS))
    chosen = {"training": order[: config.concepts], "test": order[len(order) - config.test_concepts :]}
    paths: dict[str, list[Path]] = {name: [] for name in chosen}
    captions = []
    for name, numbers in chosen.items():
        n, ending = (config.images_per_concept, "b") if name == "training" else (1, "s")
        concepts = sorted((CONCEPTS[i] for i in numbers), key=lambda concept: concept.name)
        for number, concept in enumerate(tqdm(concepts, desc=f"{name} concepts", disable=None), 1):
            word = re.sub(r"\W", "_", concept.name)
            (own := folder / "images" / f"{name}_images" / f"{number:05d}_{word}").mkdir(parents=True)
            for i in range(1, n + 1):
                scene = draw_picture(concept, rng("picture", ord(concept.glyph), i), config.picture_size)
                paths[name].append(own / f"{word}_{i:02d}{ending}.jpg")
                scene.image.save(paths[name][-1], quality=95)
                about = {"image": paths[name][-1].stem, "caption": scene.caption, "source": "drawn scene (simulator)"}
                captions.append(json.dumps(about) + "\n")
    (folder / "captions.jsonl").write_bytes("".join(captions).encode())
    return {name: sorted(own) for name, own in paths.items()}


def picture_codes(paths: Sequence[Path], n_training: int, rng: np.random.Generator) -> np.ndarray:
    """What the EEG carries of pictures, (n, 64 + 34): visual code and layout. The first n_training are the training
    pictures, whose mean and deviation standardise the visual code. ValueError without the network's packages."""
    network, found, layouts = efficientnet(SIDE, torch.device("cpu")), [], []
    block: Any = network._blocks[BLOCK]  # type: ignore[index]
    block.register_forward_hook(lambda block, seen, made: found.append(made.mean((2, 3))))
    for start in tqdm(range(0, len(paths), BATCH), desc="pictures seen", disable=None):
        pictures = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
        layouts += [brain.layout(picture) for picture in pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        features(network, pixels.movedim(3, 1).float() / 255, SIDE)
    seen = torch.cat(found).double().numpy()
    seen = (seen - seen[:n_training].mean(0)) / np.maximum(seen[:n_training].std(0), 1e-6)
    visual = seen @ rng.standard_normal((seen.shape[1], N_VISUAL)) / np.sqrt(seen.shape[1])
    return np.concatenate([visual, brain.layout_codes(np.stack(layouts))], 1)


def resampled(waves: np.ndarray) -> np.ndarray:
    """(..., samples at 1 kHz from onset, WINDOW at most), circular and 0 where they end -> (..., 100) from -0.2 s."""
    lacking = [(0, 0)] * (waves.ndim - 1) + [(0, brain.WINDOW - waves.shape[-1])]
    return np.roll(scipy.signal.resample(np.pad(waves, lacking), N_TIMES, axis=-1), BEFORE, -1)


def write_eeg(config: "SimulateConfig", rng: Rng, codes: dict[str, np.ndarray], folder: Path) -> int:
    """The files of all subjects; the number of trials. codes: (conditions, 98) of "training" and of "test"."""
    names = CHANNELS[config.n_chans]
    picks = np.zeros((len(names), len(brain.CHANNELS)), np.float32)
    for row, name in zip(picks, names, strict=True):
        sites = _FILE["between"].get(name, [name])
        row[[brain.CHANNELS.index(site) for site in sites]] = 1 / len(sites)
    erp, patterns = brain.draw_subjects(rng, config.n_subjects, codes["training"], config.snr, "raw")
    times = (np.arange(N_TIMES) - BEFORE) / SFREQ
    repetitions = {"training": config.train_repetitions, "test": config.test_repetitions}
    for subject in tqdm(range(config.n_subjects), desc="EEG of subjects", disable=None):
        common, own = resampled(picks @ erp[subject]), resampled(picks @ patterns[subject])
        noise = brain.Noise(rng("noise", subject), "raw")
        noise.mixing = picks @ noise.mixing
        scale = None
        for name, file in FILES.items():
            eeg = np.empty((len(codes[name]), repetitions[name], *common.shape), np.float32)
            trials = eeg.reshape(-1, *common.shape)  # the same memory
            for start in range(0, len(trials), BATCH):
                drawn = noise.draw(rng(name, subject, start), len(trials[start : start + BATCH]))
                trials[start : start + BATCH] = resampled(drawn) + common
            if config.snr > 0:  # at 0 not even the rounding of a sum with zeros may depend on the picture
                eeg += np.tensordot(codes[name].astype(np.float32), own, 1)[:, None]
            eeg -= eeg[..., :BEFORE].mean(-1, keepdims=True)
            scale = eeg.std((0, 1, 3), keepdims=True) if scale is None else scale
            path = folder / f"sub-{subject + 1:02d}" / file
            path.parent.mkdir(exist_ok=True)
            content: Any = dict(zip(FIELDS, (eeg / scale, names, times), strict=True))
            np.save(path, content)
    return config.n_subjects * sum(repetitions[name] * len(own) for name, own in codes.items())


def write_things(config: "SimulateConfig", rng: Rng, folder: Path) -> tuple[dict[str, Any], str]:
    """The study but for simulation.json; what that says of the EEG, and what a terminal says of all."""
    paths = draw_pictures(config, rng, folder)
    n, whole = len(paths["training"]), paths["training"] + paths["test"]
    codes = np.ones((len(whole), N_VISUAL + len(brain.LAYOUT)))  # of no picture
    if config.snr > 0:
        codes = picture_codes(whole, n, rng("visual"))
    n_trials = write_eeg(config, rng, {"training": codes[:n], "test": codes[n:]}, folder)
    about = {"sfreq": SFREQ, "channels": CHANNELS[config.n_chans], "noise_shares": brain.SHARES, "stages": brain.STAGES}
    concepts = f"{config.concepts} training and {config.test_concepts} test concepts"
    return about, f"{len(whole)} pictures of {concepts}, {n_trials} trials at snr={config.snr:g}"
