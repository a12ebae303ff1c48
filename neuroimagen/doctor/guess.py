"""What a lab's files tell of themselves: the study file of recording tables, and which event showed which picture.

Each line is measured, or guessed from a name, and says why. What the files do not tell is left to fill in, not made up:
such a value begins with FILL, and the readers refuse it in a sentence that shows it.
"""

import csv
import glob
import io
import os
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy  # whose parts are imported when first used

from neuroimagen.pictures import SUFFIXES, list_pictures
from neuroimagen.studies import recordings_tables as recordings
from neuroimagen.studies.classes import NAMES
from neuroimagen.studies.clock import fit_clock
from neuroimagen.studies.epochs_files import BAD, BidsFiles, EpochsConfig, EpochsFiles, import_mne
from neuroimagen.studies.recordings_tables import Marker, StudyFile, plain_marker
from neuroimagen.studies.signal import region_of
from neuroimagen.studies.study import some
from neuroimagen.text_files import read_table

FILL = "fill in: "
# What stands before the subject's number in the name of a table, or in its path
WHO = (r"(?i)(?:^|[^a-z])(?:subject|subj|sub)[-_ ]?", r"(?i)(?:^|[^a-z])(?:participant|pp|vp|p|s)[-_ ]?", "^")
RUN = (r"(?P<subject>\d+)[-_/ ]*(?P<run>.+?)\.[ct]sv", r"(?P<run>(?P<subject>\d+).*?)\.[ct]sv")  # what follows, or all
TIME = re.compile(r"time|stamp|clock|lsl|^t$|^s(ec(onds?)?)?$", re.IGNORECASE)
MARKER = re.compile(r"mark|event|trig|stim|label|annot|code|status", re.IGNORECASE)
NO_EEG = re.compile(r"aux|acc|gyr|eog|ecg|ekg|emg|ppg|batt|count|index|temp|resp|gsr|^$|unnamed|sample|packet", re.I)
SPREADS = {"uV": (0.3, 300), "mV": (3e-4, 0.3), "V": (3e-7, 3e-4)}  # of scalp EEG, around 10 uV
ARTEFACT, MOST_ARTEFACTS = 100.0, 0.2  # uV peak to peak; share of epochs above it from which it is not proposed


class Line(NamedTuple):
    """A field's value, and how it came about."""

    value: Any
    why: str = ""


class Pictures:
    """The pictures below `root`, by what a marker or event may call one of them, or a class of them."""

    def __init__(self, root: str) -> None:
        if not os.path.isdir(root):
            raise ValueError(f"images={root} is not a folder: give the one that holds the pictures shown")
        self.root = Path(os.path.abspath(root))
        self.one: dict[str, set[Path]] = defaultdict(set)
        self.classes: dict[str, list[Path]] = defaultdict(list)
        for path in list_pictures(self.root):
            below = path.relative_to(self.root)
            for name in (below.as_posix(), below.with_suffix("").as_posix(), path.name, path.stem):
                self.one[name.casefold()].add(path)
            self.classes[self.class_of(path)].append(path)

    def class_of(self, picture: Path) -> str:
        """Its folder (of a WordNet id that is known, the name), or without one its own name up to a number."""
        alone = picture.stem.rstrip("0123456789._- ") or picture.stem
        name = alone if picture.parent == self.root else picture.parent.name
        return NAMES.get(name, name)

    def find(self, what: str) -> Path | None:
        """The one picture of this name or path, or of what follows the last / of it."""
        found = [self.one.get(name.casefold(), set()) for name in (what, re.split(r"[/\\]", what)[-1])]
        return next((min(own) for own in found if len(own) == 1), None)

    def named(self, what: str) -> str:
        """The one class of this name, in singular or plural, or ""."""
        same = [name for name in self.classes if what.casefold().rstrip("s") == name.casefold().rstrip("s")]
        return same[0] if len(same) == 1 else ""

    def marker(self, value: str, what: str) -> Marker | None:
        """The marker `value`, if `what` is one picture, a class, or a pattern below the folder."""
        picture, name, pattern = self.find(what), self.named(what), f"{glob.escape(str(self.root))}/{what}"
        own = [picture] if picture else sorted(self.classes.get(name, []))
        if picture:
            pattern = glob.escape(str(picture))
        elif own:
            stem = glob.escape(name) if own[0].parent == self.root else ""
            pattern = f"{glob.escape(str(own[0].parent))}/{stem}*{own[0].suffix}"
        shown = sorted(map(Path, glob.glob(pattern)))
        fits = bool(shown) and shown == (own or [path for path in shown if path.is_file()])
        return Marker(value, self.class_of(shown[0]), pattern) if fits else None


class Tables:
    """The study file of the tables that `eeg` names: `lines`, field -> Line; what is `left` to do; what was `found`.

    images: folder of pictures, or "". said: marker value -> picture, class or pattern below it. ValueError, in one
    sentence, for tables that cannot be read, and for what is said and not so.
    """

    def __init__(self, eeg: str, images: str, said: dict[str, str], ignore: list[str]) -> None:
        self.lines: dict[str, Line] = {}
        self.left: list[str] = []
        self.found: list[str] = []
        self.markers: Counter[str] = Counter()  # value -> onsets
        self._files(eeg)
        self._columns()
        if not self.left:
            self._read()
        self._pictures(Pictures(images) if images else None, said, set(map(plain_marker, ignore)))

    def take(self, field: str, value: Any, why: str, missing: str = "") -> None:
        """A line; one without a value is left to fill in."""
        self.lines[field] = Line(value, why) if value else Line(FILL + missing)
        self.left += [] if value else [f"{field}: {missing}"]

    def _files(self, eeg: str) -> None:
        pattern = os.path.abspath(eeg)
        if os.path.isdir(eeg):
            pattern = f"{glob.escape(pattern)}/*.[ct]sv*"
            pattern = pattern if glob.glob(pattern) else f"{pattern.rpartition('/')[0]}/**/*.[ct]sv*"
        self.paths = sorted(Path(path) for path in glob.glob(pattern, recursive=True))
        if not self.paths:
            raise ValueError(f"eeg={eeg} names no table: give a folder of .csv or .tsv files (or .gz), or a pattern")
        self.take("files", pattern, f"{len(self.paths)} tables")
        for expression in (who + run for who in WHO for run in RUN):
            matches = [re.search(expression, path.name) or re.search(expression, str(path)) for path in self.paths]
            self.named = [(int(match["subject"]), match["run"]) for match in matches if match]
            if len(set(self.named)) == len(self.paths):
                people = some([str(subject) for subject in sorted({subject for subject, _ in self.named})], 30)
                return self.take("file_name", expression, f"subjects {people}")
        self.take("file_name", "", "", r"a regular expression with (?P<subject>\d+) and (?P<run>...) for their names")

    def _columns(self) -> None:
        """Which column is what, rate and units, from the first table."""
        table = read_table(recordings.table_text(self.paths[0]), self.paths[0], ())
        rows = [cells for _, cells in table.rows]
        if len(rows) < 200:
            raise ValueError(f"{self.paths[0]} holds {len(rows)} rows, too few for a recording: remove it")
        cells = dict(zip(table.header, zip(*rows, strict=True), strict=True))
        numbers = {name: np.array([recordings.number(table, cell) for cell in own]) for name, own in cells.items()}
        numeric = [name for name, own in numbers.items() if np.isfinite(own).mean() > 0.99 and np.nanstd(own) > 0]
        order = np.arange(len(rows))  # stamps jitter, stand still in packets, and jump over gaps
        rank = scipy.stats.spearmanr
        rising = [name for name in numeric if rank(order, numbers[name], nan_policy="omit")[0] > 0.999]
        time = next((name for name in rising if TIME.search(name)), next(iter(rising), ""))
        marks = {name: [plain_marker(cell) for cell in own] for name, own in cells.items() if name not in rising}
        few = [n for n, own in marks.items() if 1 < len({*own}) < len(rows) / 20 and own.count("") > len(rows) / 2]
        marker = [name for name in few if MARKER.search(name)] or few
        eeg = [name for name in numeric if name not in (*rising, *marker)]
        sites = [name for name in eeg if region_of(name)]
        channels = sites or [name for name in eeg if not NO_EEG.search(name)]
        rest = some([name for name in table.header if name not in (time, *marker, *channels)])
        among = f", among {', '.join(table.header)}"
        self.take("time", time, "its numbers rise", f"the column of time stamps{among}")
        why = "names of the 10-05 system" if sites else "neither time nor marker"
        self.take("channels", channels, why + f"; left out: {rest}" * bool(rest), f"the columns of EEG{among}")
        one = marker[0] if len(marker) == 1 else marker
        self.take("marker", one, "0 or empty in most rows", f"the column of markers{among}")
        if time:
            self._clock(numbers[time][np.isfinite(numbers[time])])
        pieces = [numbers[name][: len(rows) // 100 * 100].reshape(-1, 100) for name in channels]
        spread = float(np.nanmedian(np.std(pieces, axis=-1))) if channels else 0.0  # whatever offset and drift
        units = next((unit for unit, (low, high) in SPREADS.items() if low <= spread < high), "")
        why = f"numbers vary by {spread:.3g} (standard deviation in 100 samples), as scalp EEG does in "
        self.take("units", units, why + units, f"uV, mV or V; {why}none of them")

    def _clock(self, stamps: np.ndarray) -> None:
        step, rate, unit = float(np.median(stamps[64:] - stamps[:-64]) / 64), 0.0, "samples"
        if not (np.diff(stamps) == 1).all() and step > 0:  # else these count rows, or ms at 1 kHz: who knows
            seconds = {name: step * second for name, second in recordings.SECONDS.items()}
            unit = next((name for name, second in seconds.items() if 30 <= 1 / second <= 20000), unit)
            if unit in seconds:
                stamps = (stamps - stamps[0]) * recordings.SECONDS[unit]
                rate = 1 / fit_clock(stamps, 1 / seconds[unit]).step
        usual = round(rate) if rate and abs(rate / round(rate) - 1) < 0.003 else round(rate, 2)
        self.take("time_units", unit, f"stamps advance by {step:g} a row")
        self.take("rate", usual, f"measured: {rate:.2f} Hz", "sampling rate, Hz, which these stamps do not tell")

    def _read(self) -> None:
        """All tables: their markers, who has runs enough, how many epochs are artefacts."""
        study, fewest = StudyFile(**{name: line.value for name, line in self.lines.items()}), StudyFile().fewest_trials
        if study.rate >= 240:
            study.resample = study.rate / (study.rate // 120)
            self.take("resample", study.resample, "enough for a band that ends at 30 Hz")
        for name, why in {"band": "Hz", "window": "s from onset", "hold_out": "test runs: the last"}.items():
            self.take(name, getattr(study, name), why)
        runs, seen, peaks = Counter[int](), set[str](), [np.zeros(0)]
        for path, (subject, _) in zip(self.paths, self.named, strict=True):
            table = recordings.read_table(path, study)
            if table.digest not in seen:
                epochs, _ = recordings.cut_epochs(table, study)
                peaks.append(np.ptp(epochs, axis=2).max(axis=1, initial=0))
                self.markers.update(table.values)
                runs[subject] += len(epochs) >= fewest
            seen.add(table.digest)
        above = float((np.concatenate(peaks) > ARTEFACT).sum() / max(1, sum(map(len, peaks))))
        if 0 < above <= MOST_ARTEFACTS:
            self.take("reject_above", ARTEFACT, f"leaves out {above:.1%} of the epochs")
        elif above:
            self.found.append(f"{above:.0%} of the epochs exceed {ARTEFACT:g} uV peak to peak: reject_above is not set")
        if few := ", ".join(str(subject) for subject in sorted(runs) if runs[subject] < 2):
            why = f"without subject {few}, who has fewer than two runs of {fewest} trials, one of which is for test"
            self.take("subjects", sorted(subject for subject in runs if runs[subject] > 1), why, why)
            self.found.append(why)

    def _pictures(self, pictures: Pictures | None, said: dict[str, str], ignore: set[str]) -> None:
        """What the markers stand for: what is `said`, or what they are called."""
        values = sorted(self.markers.keys() - ignore, key=lambda value: (len(value), value))
        whats = said or {value: value for value in values}
        found = {value: pictures.marker(value, what) for value, what in whats.items()} if pictures else {}
        fits = {value: marker for value, marker in found.items() if marker}
        for value, what in said.items():
            if value not in fits or (self.markers and value not in values):
                raise ValueError(f"markers: {value}={what}: no such picture below images=, or marker ({some(values)})")
        lost = [value for value in values if fits and value not in fits and value.lower().endswith(SUFFIXES)]
        other = [value for value in values if fits and value not in {*fits, *lost}]
        counted = some([f"{value} ({self.markers[value]:,} times)" for value in values], 50)
        blank = lost if fits else values or ["1", "2"]
        unknown = [Marker(value, f"{FILL}class", f"{FILL}picture, or pattern of pictures") for value in blank]
        self.take("markers", [*fits.values(), *unknown], counted)
        if lost:
            self.left.append(f"markers: {len(lost)} pictures are not below images=: {some(lost)}")
        elif not fits:
            about = f"what they show of {some(list(pictures.classes))}" if pictures else "what they show"
            self.left.append(f"markers: {about}: {counted}; or give markers=[VALUE=CLASS,...]")
        if other or ignore:
            why = f"no picture is called {some(other)}: taken for no picture onset" if other else ""
            self.take("ignore_markers", [*other, *sorted(ignore)], why)
            self.found += [f"markers: {why}"] if other else []


def trials_table(config: EpochsConfig) -> tuple[str, list[str], list[str]]:
    """Which event of `config.eeg` shows which picture, as CSV; what is left to do there; what was found.

    An event shows the picture that it is called after. An event's number is its name only where it has no other.
    """
    pictures, events, rows = Pictures(config.images), Counter[tuple[str, ...]](), dict[str, list[str]]()
    with import_mne().use_log_level("ERROR"):
        bids = os.path.lexists(Path(config.eeg) / "dataset_description.json")
        files: EpochsFiles | BidsFiles = (BidsFiles if bids else EpochsFiles)(config, [])
        for event in (event for path in files.paths for event in files.describe(path).events):
            called = [name for name in event.names if name]
            events[tuple([name for name in called if not name.isdecimal()] or called)] += 1
    lost, other = [], []
    for names, times in sorted(events.items()):
        if {*config.ignore_markers} & {*names} or any(map(BAD.match, names)):
            continue
        found = ((name, picture) for name in names if (picture := pictures.find(name)))
        name, picture = next(found, ((*names, "without a name")[0], None))
        kind = next(filter(None, map(pictures.named, names)), "")
        if picture:
            rows[name] = [picture.relative_to(pictures.root).as_posix(), pictures.class_of(picture)]
        elif kind or name.lower().endswith(SUFFIXES):
            rows[name] = [f"{FILL}picture of {name}", kind or f"{FILL}class"]
            lost.append(f"{name} ({times:,} times)")
        else:
            rows[name] = ["", ""]
            other.append(f"{name} ({times:,} times)")
    if not any(image for image, _ in rows.values()):
        lost, other = other, []
    text, what = io.StringIO(), "no picture below images= is called as"
    csv.writer(text, lineterminator="\n").writerows(
        [("event", "image", "class"), *((k, *row) for k, row in rows.items())]
    )
    left = [f"column image: {what} these {len(lost)} events: {some(lost)}"] if lost else []
    return text.getvalue(), left, [f"{what} {some(other)}: left out"] if other else []
