"""A lab's recording tables: the study file that describes them, reading one, cutting it into epochs."""

import dataclasses
import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from neuroimagen import text_files
from neuroimagen.config import option, path_option

VOLTS = {"uV": 1e-6, "mV": 1e-3, "V": 1.0}
# Clocks of wireless headsets jitter by tens of milliseconds (up to 40 ms in the Muse runs that
# configs/n170_study.yaml names); what strays further from an even spacing is lost samples.
MOST_JITTER = 0.1  # s


@dataclasses.dataclass
class Marker:
    """One value of the marker column."""

    value: str = option(help="the value at stimulus onset")
    name: str = option(help="class name, as captions say it")
    pictures: str = path_option(help="the picture shown, or a pattern of all pictures it may have been")
    wnid: str = option("", "WordNet id of the class, if it has one")


@dataclasses.dataclass
class StudyFile:
    """The YAML file. Paths in it are relative to it."""

    files: str = path_option(help="pattern of the tables, one a run")
    file_name: str = option(help="regular expression for file names with groups (?P<subject>) and (?P<run>)")
    time: str = option(help="column of time stamps, s")
    channels: list[str] = option([], "columns of EEG channels")
    marker: str = option(help="column of markers; 0 or empty: none")
    markers: list[Marker] = option([], "the classes: value, name, pictures, wnid of each")
    markers_file: str = path_option("", "the same as a CSV table with these columns, instead of markers")
    units: Literal["uV", "mV", "V"] = option("uV", "of the channel columns")
    rate: float = option(help="nominal sampling rate, Hz; time stamps that tell of another are refused")
    band: list[float] = option([1.0, 30.0], "band-pass, Hz: low and high edge")
    window: list[float] = option([-0.1, 0.8], "epoch, s from marker onset: first and last sample")
    baseline: list[float] | None = option(None, "s from marker onset: interval whose mean is subtracted")
    resample: float = option(0.0, "sampling rate of the epochs, Hz; 0 keeps `rate`")
    reject_above: float = option(0.0, "drop epochs of larger peak-to-peak amplitude in any channel, uV; 0 keeps all")
    fewest_trials: int = option(20, "leave out runs with fewer trials than this after rejection")
    subjects: list[int] = option([], "whose runs to read; empty: all")
    hold_out: list[int] = option([-1], "test runs of each subject, in order of name: 0 is the first, -1 the last")
    val_tail: float = option(0.1, "last part of each other run that goes to val")
    shuffle_labels: bool = option(False, "control: shuffle the labels within each run")
    average: int = option(1, "test trials: averages of so many trials of one class and run")


@dataclasses.dataclass
class Table:
    """One run as read: eeg (n_chans, n) in volts; onset samples and values of its markers."""

    eeg: np.ndarray
    onsets: np.ndarray
    values: list[str]
    digest: str


def check_study(path: Path, study: StudyFile, markers: dict[str, Marker]) -> None:
    """Values of the study file that cannot be; ValueError."""

    def refuse(wrong: bool, what: str) -> None:
        if wrong:
            raise ValueError(f"{path}: {what}")

    refuse(not study.channels, "channels is empty: name the EEG columns")
    refuse(len(markers) < 2, "markers must name at least two markers")
    refuse(study.rate <= 0 or study.resample < 0, "rate must be above 0 Hz, resample 0 or above")
    target = study.resample or study.rate
    refuse(len(study.band) != 2 or not 0 < study.band[0] < study.band[1], "band must be two rising frequencies, Hz")
    refuse(study.band[1] >= min(study.rate, target) / 2, f"band must end below half of {target:g} Hz")
    refuse(len(study.window) != 2 or not study.window[0] < study.window[1], "window must be two rising times, s")
    wrong = study.baseline and (len(study.baseline) != 2 or not study.baseline[0] < study.baseline[1])
    refuse(bool(wrong), "baseline must be two rising times, s")
    outside = study.baseline and (study.baseline[0] < study.window[0] or study.baseline[1] > study.window[1])
    refuse(bool(outside), "baseline must lie inside window")
    refuse(not 0 < study.val_tail < 1, "val_tail must be between 0 and 1")
    refuse(study.average < 1 or not study.hold_out, "average must be at least 1, and hold_out name a run")


def read_table(path: Path, study: StudyFile) -> Table:
    """One table; ValueError naming the file and line for whatever is not a whole, evenly sampled recording."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}): copy it again") from None
    wanted = [study.time, *study.channels, study.marker]
    table = text_files.read_table(text_files.decode(data, path), path, wanted, remedy="mend the study file")
    columns = [table.header.index(name) for name in wanted]
    at, numbers, markers = [], [], []
    for number, row in table.rows:
        try:
            numbers.append([table.number(row[c]) for c in columns[:-1]])
            markers.append(plain_marker(row[columns[-1]]))
            at.append(number)
        except ValueError:
            raise ValueError(f"{path}, line {number}: not a whole row of numbers; mend or remove the file") from None
    values = np.array(numbers).reshape(len(numbers), len(columns) - 1)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row_, column = bad[0]
        raise ValueError(f"{path}, line {at[row_]}: {wanted[column]} is not a finite number; mend or remove the file")
    _check_clock(path, values[:, 0], study.rate)
    # An onset is where a marker begins: it may be held for several samples.
    starts = [i for i, value in enumerate(markers) if value and (i == 0 or markers[i - 1] != value)]
    return Table(
        eeg=values[:, 1:].T * VOLTS[study.units],
        onsets=np.array(starts, dtype=int),
        values=[markers[i] for i in starts],
        digest=hashlib.sha256(values.tobytes() + "\n".join(markers).encode()).hexdigest(),
    )


def plain_marker(value: str) -> str:
    """A marker as it is written in the study file: '1.0' and ' 1' are '1'; 0 and nothing are ''."""
    value = value.strip()
    try:
        number = float(value.replace(",", ".") or 0)
    except ValueError:
        return value
    return "" if number == 0 else f"{number:g}"


def _check_clock(path: Path, time: np.ndarray, rate: float) -> None:
    """Refuse a run whose time stamps do not advance, on the whole, by 1 / rate."""
    if len(time) < 2 * rate:
        raise ValueError(f"{path} holds {len(time)} samples, less than 2 s at {rate:g} Hz; remove it")
    slope, start = np.polyfit(np.arange(len(time)), time - time[0], 1)
    stray = np.abs(time - time[0] - start - slope * np.arange(len(time))).max()
    if stray > MOST_JITTER:
        raise ValueError(f"{path}: time stamps stray {stray:.2f} s from even spacing: samples are missing; remove it")
    if not 0.99 < slope * rate < 1.01:
        measured = f"{1 / slope:.1f} Hz" if slope > 0 else "a clock that does not advance"
        raise ValueError(f"{path}: time stamps (s) tell of {measured}, rate says {rate:g} Hz; mend the study file")


def n_times(study: StudyFile) -> int:
    """Samples in an epoch: both ends of the window, each at the sample nearest to it."""
    rate = study.resample or study.rate
    return round(study.window[1] * rate) - round(study.window[0] * rate) + 1


def cut_epochs(table: Table, study: StudyFile) -> tuple[np.ndarray, np.ndarray]:
    """Filtered epochs (n, n_chans, n_times) in microvolts and, of each, which of the table's onsets it is.

    Epochs that reach over an end of the run, or that exceed `reject_above`, are left out.
    """
    try:
        import mne
    except ImportError:
        raise ValueError("dataset=recording filters with mne, which is missing: pip install mne") from None
    if not len(table.onsets):
        return np.zeros((0, len(study.channels), n_times(study)), np.float32), np.zeros(0, int)
    with mne.use_log_level("ERROR"):
        info = mne.create_info(list(study.channels), study.rate, "eeg")
        raw = mne.io.RawArray(table.eeg, info).filter(*study.band)
        events = np.stack([table.onsets, np.zeros_like(table.onsets), np.arange(1, len(table.onsets) + 1)], axis=1)
        if study.resample and study.resample != study.rate:
            raw, events = raw.resample(study.resample, events=events)
        # The event's code is its number, so that what survives can be told; samples may coincide after resampling.
        epochs = mne.Epochs(
            raw,
            events,
            tmin=study.window[0],
            tmax=study.window[1],
            baseline=tuple(study.baseline) if study.baseline else None,
            reject={"eeg": study.reject_above * 1e-6} if study.reject_above else None,
            event_repeated="drop",
            preload=True,
        )
        return (epochs.get_data(copy=False) * 1e6).astype(np.float32), epochs.events[:, 2] - 1
