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
from neuroimagen.studies.clock import fit_clock, order_of_time

VOLTS = {"uV": 1e-6, "mV": 1e-3, "V": 1.0}
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
NO_MARKER = {"", "nan", "na", "n/a", "<na>", "null", "none"}  # as tables write an empty cell, in any case
# Clocks of wireless headsets jitter by tens of milliseconds (up to 40 ms in the Muse runs that
# configs/n170_study.yaml names); what strays further from an even spacing, gaps apart, is no sampling.
MOST_JITTER = 0.1  # s
MOST_BACK = 0.08  # s, from one stamp to the next
MOST_FILLED = 10.0  # s; a longer gap is closed to this before filtering, which looks no further


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
    time: str = option(help="column of time stamps")
    channels: list[str] = option([], "columns of EEG channels")
    marker: str | list[str] = option(help="column of markers, or a list of such columns; 0, empty, NaN: none")
    markers: list[Marker] = option([], "the classes: value, name, pictures, wnid of each")
    ignore_markers: list[str] = option([], "marker values that are no picture onsets, e.g. offset or response codes")
    markers_file: str = path_option("", "the same as a CSV table with these columns, instead of markers")
    units: Literal["uV", "mV", "V"] = option("uV", "of the channel columns")
    time_units: Literal["s", "ms", "us", "ns", "samples"] = option("s", "of the time column, from whatever start")
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
    """One run as read: eeg (n_chans, n) in volts, evenly sampled; onset samples and values of its markers.

    gap (n,): the samples that were lost (they hold a straight line) or stand beside lost ones. seconds: of the onsets,
    from the first sample. notes: what was wrong with the clock.
    """

    eeg: np.ndarray
    onsets: np.ndarray
    values: list[str]
    digest: str
    gap: np.ndarray
    seconds: np.ndarray
    notes: list[str]


def check_study(path: Path, study: StudyFile, markers: dict[str, Marker]) -> None:
    """Values of the study file that cannot be; ValueError."""

    def refuse(wrong: bool, what: str) -> None:
        if wrong:
            raise ValueError(f"{path}: {what}")

    refuse(not study.channels, "channels is empty: name the EEG columns")
    refuse(len(markers) < 2, "markers must name at least two markers")
    both = sorted(set(markers) & {plain_marker(value) for value in study.ignore_markers})
    refuse(bool(both), f"marker {''.join(both[:1])} is in markers and in ignore_markers: take it out of one")
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


def columns(study: StudyFile) -> list[str]:
    """The columns of markers."""
    return [study.marker] if isinstance(study.marker, str) else study.marker


def table_text(path: Path) -> str:
    """What a table says, of a .gz what is in it; ValueError if it cannot be read."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}): copy it again") from None
    return text_files.decode(data, path)


def read_table(path: Path, study: StudyFile) -> Table:
    """One table; ValueError naming the file and line for whatever is not a recording at `study.rate`."""
    wanted = [study.time, *study.channels]
    asked = [*wanted, *columns(study)]
    table = text_files.read_table(table_text(path), path, asked, remedy="mend the study file")
    places = [table.header.index(name) for name in asked]
    numbers, marks, at_line = [], [], []
    for line, row in table.rows:
        numbers.append([number(table, row[c]) for c in places[: len(wanted)]])
        marks.append([plain_marker(row[c]) for c in places[len(wanted) :]])
        at_line.append(line)
    values, at = np.array(numbers).reshape(-1, len(wanted)), np.array(at_line)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row_, column = bad[0]
        raise ValueError(f"{path}, line {at[row_]}: {wanted[column]} is not a finite number; mend or remove the file")
    digest = hashlib.sha256(values.tobytes() + repr(marks).encode()).hexdigest()
    order, notes = order_of_time(values[:, 0]), []
    moved = np.flatnonzero(np.diff(order, prepend=-1) != 1)
    if len(moved):
        notes.append(f"rows stood in the wrong order (first line {at[moved[0]]}) and were put in that of time")
    values, events, at = values[order], np.array(marks).reshape(-1, len(columns(study)))[order], at[order]
    lost, doubt = _check_clock(path, values[:, 0], study, at)
    # Where each row's sample belongs; between, straight lines, so that the filter meets no jump.
    place = np.arange(len(values)) + np.cumsum(np.clip(lost, 0, round(MOST_FILLED * study.rate)))
    eeg, gap = values[:, 1:].T, np.zeros(place[-1] + 1, bool)
    if lost.any():
        eeg = np.stack([np.interp(np.arange(len(gap)), place, channel) for channel in eeg])
        for k in np.flatnonzero(lost):
            gap[max(0, place[k - 1] + 1 - doubt) : place[k] + 1 + doubt] = True
        missing, extra = lost.clip(0).sum(), -lost.clip(None, 0).sum()
        count = int(np.count_nonzero(np.diff(gap.astype(int), prepend=0) == 1))
        notes.append(
            f"{missing} samples ({missing / study.rate:.2f} s) are lost in {count} gaps"
            + (f", and {extra} stand there twice" if extra else "")
        )
    # An onset is where a marker begins: it may be held for several samples.
    begun: dict[int, str] = {}
    ignored = [plain_marker(value) for value in study.ignore_markers]
    for column in events.T:
        rises = (column != "") & (column != np.concatenate([[""], column[:-1]])) & ~np.isin(column, ignored)
        for i in np.flatnonzero(rises).tolist():
            if begun.setdefault(i, str(column[i])) != column[i]:
                raise ValueError(f"{path}, line {at[i]}: two markers, {begun[i]} and {column[i]}; name one column")
    starts = np.array(sorted(begun), dtype=int)
    return Table(
        eeg=eeg * VOLTS[study.units],
        onsets=place[starts],
        values=[begun[i] for i in starts],
        digest=digest,
        gap=gap,
        seconds=(starts + np.cumsum(lost)[starts]) / study.rate,
        notes=notes,
    )


def number(table: text_files.Table, cell: str) -> float:
    """What a cell says, NaN where that is no number."""
    try:
        return table.number(cell)
    except ValueError:
        return np.nan


def plain_marker(value: str) -> str:
    """A marker as it is written in the study file: '1.0' and ' 1' are '1'; 0 and nothing are ''."""
    value = value.strip()
    if value.casefold() in NO_MARKER:
        return ""
    try:
        number = float(value.replace(",", "."))
    except ValueError:
        return value
    return "" if number == 0 else f"{number:.15g}"


def _check_clock(path: Path, time: np.ndarray, study: StudyFile, at: np.ndarray) -> tuple[np.ndarray, int]:
    """Samples lost before each sample, and by how many samples these places may be wrong; at: the samples' lines.

    Refuses, with ValueError, a run whose time stamps do not advance, gaps apart, by 1 / rate.
    """
    rate, units = study.rate, SECONDS | {"samples": 1 / study.rate}
    if len(time) < 2 * rate:
        raise ValueError(f"{path} holds {len(time)} samples, less than 2 s at {rate:g} Hz; remove it")
    time = (time - time[0]) * units[study.time_units]
    clock = fit_clock(time, rate)
    if not 0.99 < clock.step * rate < 1.01:
        for name, unit in units.items():
            if 0.99 < clock.step / units[study.time_units] * unit * rate < 1.01:
                said = f"time stamps are in {name}, not in {study.time_units}"
                raise ValueError(f"{path}: {said}; say time_units: {name} in the study file")
        measured = f"{1 / clock.step:.1f} Hz" if clock.step > 0 else "a clock that does not advance"
        raise ValueError(
            f"{path}: time stamps ({study.time_units}) tell of {measured}, rate says {rate:g} Hz; mend the study file"
        )
    back, far = int(np.diff(time).argmin()) + 1, int(np.abs(clock.stray).argmax())
    for i, wrong, limit in (
        (back, f"go back by {time[back - 1] - time[back]:.2f} s", time[back] - time[back - 1] < -MOST_BACK),
        (far, f"stray {abs(clock.stray[far]):.2f} s from even spacing", abs(clock.stray[far]) > MOST_JITTER),
    ):
        if limit:
            raise ValueError(f"{path}, line {at[i]}: time stamps {wrong}; cut the file in two there, or remove it")
    return clock.lost, clock.doubt


def n_times(study: StudyFile) -> int:
    """Samples in an epoch: both ends of the window, each at the sample nearest to it."""
    rate = study.resample or study.rate
    return round(study.window[1] * rate) - round(study.window[0] * rate) + 1


def across_gaps(table: Table, study: StudyFile) -> np.ndarray:
    """Whether the epoch around each onset touches a gap."""
    first, last = (table.onsets + round(edge * study.rate) for edge in study.window)
    lost = np.concatenate([[0], np.cumsum(table.gap)])
    return lost[(last + 1).clip(0, len(table.gap))] > lost[first.clip(0, len(table.gap))]


def cut_epochs(table: Table, study: StudyFile) -> tuple[np.ndarray, np.ndarray]:
    """Filtered epochs (n, n_chans, n_times) in microvolts and, of each, which of the table's onsets it is.

    Epochs that touch a gap, reach over an end of the run, or exceed `reject_above` are left out.
    """
    try:
        import mne
    except ImportError:
        raise ValueError("dataset=recording filters with mne, which is missing: pip install mne") from None
    whole = np.flatnonzero(~across_gaps(table, study))
    if not len(whole):
        return np.zeros((0, len(study.channels), n_times(study)), np.float32), np.zeros(0, int)
    with mne.use_log_level("ERROR"):
        info = mne.create_info(list(study.channels), study.rate, "eeg")
        raw = mne.io.RawArray(table.eeg, info).filter(*study.band)
        events = np.stack([table.onsets[whole], np.zeros_like(whole), whole + 1], axis=1)
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
