"""A lab's small random recordings with known samples: mne.Epochs files, and a BIDS data set, for tests."""

import warnings
from pathlib import Path

import mne
import mne_bids
import numpy as np
from perceivelab_files import jpeg

from neuroimagen.config import load_config
from neuroimagen.shards.pack import ShardsConfig
from neuroimagen.studies.open import open_study

CHANNELS = ["O1", "EOG", "Oz", "Pz"]
TYPES = ["eeg", "eog", "eeg", "eeg"]
EEG = [0, 2, 3]
RATE = 100.0
CLASSES = ["cat", "Straße 犬"]
IMAGES = 10  # a class
TABLE = ["event,image,class,wnid"] + [
    f"{name[0]}{i},{folder}/{name[0]}é{i}.jpg,{name},n{folder}"
    for folder, name in enumerate(CLASSES)
    for i in range(IMAGES)
]
NAMES = [line.split(",")[0] for line in TABLE[1:]]  # of events


def write_pictures(root: Path) -> None:
    for number, line in enumerate(TABLE[1:]):
        path = root / line.split(",")[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(np.random.default_rng(number)))


def write_table(path: Path, lines: list[str] = TABLE) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def shuffled_names(seed: int) -> list[str]:
    return [NAMES[i] for i in np.random.default_rng(seed).permutation(len(NAMES))]


def write_epochs_file(
    path: Path,
    seed: int,
    names: list[str],
    channels: list[str] = CHANNELS,
    rate: float = RATE,
    tmin: float = -0.1,
    seconds: float = 0.4,
) -> np.ndarray:
    """Epochs of 0.4 s, one for each of `names`, 1 s apart; their samples (n, channels, 41) in volts as saved."""
    info = mne.create_info(channels, rate, [TYPES[CHANNELS.index(c)] if c in CHANNELS else "eeg" for c in channels])
    info["bads"] = channels[-1:] if seed % 2 else []
    eeg = np.random.default_rng(seed).normal(0, 1e-5, (len(names), len(channels), round(seconds * rate) + 1))
    event_id = {name: 1 + NAMES.index(name) for name in sorted(set(names))}
    events = np.array([[round(rate * (i + 1)), 0, event_id[name]] for i, name in enumerate(names)])
    path.parent.mkdir(parents=True, exist_ok=True)
    mne.EpochsArray(eeg, info, events, tmin, event_id, verbose="ERROR").save(path, overwrite=True, verbose="ERROR")
    return eeg.astype(np.float32)


def write_epochs(folder: Path) -> dict[tuple[str, int], tuple[str, np.ndarray]]:
    """eeg/sub-01_run-{a,b}-epo.fif, eeg/sub-02_run-a-epo.fif, images/, trials.csv; (file, number) -> (event, volts)."""
    write_pictures(folder / "images")
    write_table(folder / "trials.csv")
    known = {}
    for seed, name in enumerate(["sub-01_run-a", "sub-01_run-b", "sub-02_run-a"]):
        names = shuffled_names(seed)
        eeg = write_epochs_file(folder / "eeg" / f"{name}-epo.fif", seed, names)
        known |= {(f"{name}-epo.fif", i): (names[i], eeg[i]) for i in range(len(names))}
    return known


def write_bids(folder: Path, seconds: int = 22, rate: float = RATE) -> dict[str, tuple[list[str], np.ndarray]]:
    """bids/ with two runs of sub-01 and one of sub-02, an event a second; run's name -> (events, volts as saved)."""
    write_pictures(folder / "images")
    write_table(folder / "trials.csv")
    known = {}
    for seed, (subject, run) in enumerate([("01", "1"), ("01", "2"), ("02", "1")]):
        info = mne.create_info(CHANNELS, rate, TYPES)
        info["line_freq"] = 50
        t = np.arange(round(seconds * rate)) / rate
        eeg = np.random.default_rng(seed).normal(0, 1e-5, (len(CHANNELS), len(t)))
        eeg += 1e-4 * np.sin(2 * np.pi * 40 * t)
        names = shuffled_names(seed)
        event_id = {name: 1 + NAMES.index(name) for name in NAMES}
        events = np.array([[round(rate * (i + 1)), 0, event_id[name]] for i, name in enumerate(names)])
        path = mne_bids.BIDSPath(subject=subject, task="view", run=run, datatype="eeg", root=folder / "bids")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mne_bids.write_raw_bids(
                mne.io.RawArray(eeg, info, verbose="ERROR"),
                path,
                events=events,
                event_id=event_id,
                format="BrainVision",
                allow_preload=True,
                verbose="ERROR",
            )
            saved = mne_bids.read_raw_bids(path.update(extension=".vhdr", suffix="eeg"), verbose="ERROR").get_data()
        np.testing.assert_allclose(saved, eeg, rtol=0, atol=1e-7)
        known[f"sub-{subject}_task-view_run-{run}"] = (names, saved)
    return known


def config(folder, *arguments):
    eeg = "bids" if (folder / "bids").is_dir() else "eeg"
    given = [f"out={folder / 'out'}", "dataset=epochs", f"eeg={folder / eeg}", f"images={folder / 'images'}"]
    return load_config(ShardsConfig, [*given, f"trials={folder / 'trials.csv'}", *arguments], "shards")


def opened(folder, *arguments, fault=None):
    return open_study(config(folder, *(arguments or ("splits=by_image",))), fault)


def picture_of(name):
    return next(line.split(",")[1] for line in TABLE[1:] if line.split(",")[0] == name)
