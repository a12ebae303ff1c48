"""One tar of a study; shards/workers.py has several processes write them, shards/pack.py makes a directory of them.

A tar is a function of (study, config, number) alone, whoever writes it. What concerns several tars (keys, pictures,
statistics) is in their records, which are put together in the order of the tars: so the number of processes and the
moment at which a run was interrupted change no byte.
"""

import dataclasses
import hashlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import webdataset as wds
from PIL import Image

from neuroimagen.config import Limited, option, path_option
from neuroimagen.files import MAX_PICTURE_BYTES, pass_on, replacing, sha256
from neuroimagen.pictures import FORMATS, Seen, Unclear, see
from neuroimagen.shards.format import KEY, MAX_JSON_BYTES, scan_tar, write_json
from neuroimagen.studies.open import SourceConfig
from neuroimagen.studies.study import Study, Trial
from neuroimagen.text_files import encode

OFFSET = 20  # times the signal: a mean that EEG does not have, unless it is DC-coupled
APART = 100  # times: no two people differ so much
MAX_KEPT = 64 << 20  # bytes of pictures made anew that a process keeps for further trials that show them


@dataclasses.dataclass
class ShardsConfig(SourceConfig, Limited):
    """`neuroimagen shards`"""

    out: str = path_option(help="shard directory to make")
    eeg_dtype: Literal["float16", "float32"] = option("float16", "how EEG is stored; float16 halves the size")
    shard_mb: float = option(64.0, "aim for tars of so many million bytes", above=0)
    shard_size: int = option(0, "trials in a tar; 0: as many as shard_mb says", at_least=0)
    picture_size: int = option(0, "px: shortest side of larger pictures; 0 keeps the files' bytes", at_least=0)
    picture_quality: int = option(95, "JPEG quality of resized pictures; 0: PNG, without loss", at_least=0, at_most=100)
    processes: int = option(0, "that pack, for speed alone; 0: by processors, memory and work", at_least=0)


def encode_eeg(eeg: np.ndarray, dtype: str, where: str) -> tuple[bytes, float, float]:
    """Raw little-endian bytes, and the sums of squares of what rounding changed and of the signal around its mean.

    Refuses a float16 that would overflow, or err by more than 1 % of the signal.
    """
    eeg = np.ascontiguousarray(eeg, dtype="<f4")
    spread = eeg.std(axis=1, dtype=np.float64)
    signal_ = float((spread**2).sum() * eeg.shape[1])
    if dtype == "float32":
        return eeg.tobytes(), 0.0, signal_
    with np.errstate(over="ignore"):
        half = eeg.astype("<f2")
    error = ((half.astype(np.float64) - eeg) ** 2).mean(axis=1)
    moving = spread > 0
    # The median over channels: one electrode that hardly moves for one trial is no reason to refuse a study.
    lost = moving.any() and np.median(np.sqrt(error[moving]) / spread[moving]) > 0.01
    if (too_large := not np.isfinite(half).all()) or lost:
        offset = np.abs(eeg.mean(axis=1, dtype=np.float64))
        if moving.any() and np.median(offset[moving] / spread[moving]) > OFFSET:
            raise ValueError(
                f"{where}: a signal of {np.median(spread[moving]):.3g} on an offset of {np.median(offset[moving]):.3g} "
                "does not fit float16: take the offset away by baseline= or band="
            )
        what = f"value of {np.abs(eeg).max():.3g}" if too_large else f"signal of {np.median(spread[moving]):.3g}"
        raise ValueError(
            f"{where}: a {what} does not fit float16: mend the units of the file (EEG has 0.1 to 1,000 uV), or scale "
            "it by standardise=; eeg_dtype=float32 would keep it as it is"
        )
    return half.tobytes(), float(error.sum() * eeg.shape[1]), signal_


def people_apart(sizes: dict[int, float]) -> str:
    """What is wrong if amplitudes (subject -> above 0) are a factor of APART from each other; else nothing."""
    if not sizes or (most := max(sizes.values())) < APART * (least := min(sizes.values())):
        return ""
    large, small = (max(sizes, key=lambda subject: sign * sizes[subject]) for sign in (1, -1))
    return (
        f"the EEG of subject {large} is {most / least:.2g} times as large as that of subject {small} (standard "
        f"deviations of {most:.3g} and {least:.3g}): their units differ, and scaled together the smaller would be "
        "zeros: mend the units, or give standardise=channel"
    )


def open_picture(data: bytes, where: str, background: str = "", orientation: str = "") -> Seen:
    """`see`, with the picture named in what is wrong."""
    if len(data) > MAX_PICTURE_BYTES:
        raise ValueError(
            f"picture {where} has more than {MAX_PICTURE_BYTES >> 20} MB: replace the file by one of the size shown"
        )
    try:
        return see(data, background, orientation)
    except Unclear as error:
        raise ValueError(f"picture {where} cannot be taken as it is: {error}") from None
    except ValueError as error:
        raise ValueError(f"picture {where} cannot be decoded ({error}): replace the file by a JPEG or PNG") from None


def store_picture(data: bytes, where: str, config: ShardsConfig) -> tuple[str, bytes, tuple[str, ...]]:
    """Extension and bytes to store, and what was done to the picture (keys of OPEN); `data` itself where that will do.

    A picture whose shortest side is larger than picture_size becomes that small, and of JPEG by picture_quality.
    """
    seen = open_picture(data, where, config.background, config.orientation)
    size, picture = config.picture_size, seen.image
    kind: dict[str, Any] = {"format": "PNG"}
    if size and min(picture.size) > size:
        scale = size / min(picture.size)
        width, height = (max(size, round(side * scale)) for side in picture.size)
        picture = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        if quality := config.picture_quality:
            kind = {"format": "JPEG", "quality": quality, "subsampling": 0 if quality > 90 else -1}
    elif seen.kept:
        return seen.extension, data, seen.done
    buffer = io.BytesIO()
    picture.save(buffer, **kind)
    if buffer.tell() > MAX_PICTURE_BYTES:
        raise ValueError(f"picture {where} has to be stored anew, and is too large for that: give picture_size=")
    return FORMATS[kind["format"]], buffer.getvalue(), seen.done


def read_picture(path: Path) -> tuple[bytes, list[Any]]:
    """A picture file's bytes, and [path, size, time of change] to know it again by."""
    try:
        known = path.stat()
        if not stat.S_ISREG(known.st_mode):
            raise ValueError(f"picture {path} is not a file: replace it")
        if known.st_size > MAX_PICTURE_BYTES:
            raise ValueError(
                f"picture {path} has {known.st_size >> 20} MB where {MAX_PICTURE_BYTES >> 20} MB are the most: "
                "replace the file by one of the size shown"
            )
        with open(path, "rb") as file:
            return file.read(MAX_PICTURE_BYTES + 1), [str(path.absolute()), known.st_size, known.st_mtime_ns]
    except OSError as error:
        pass_on(error)
        raise ValueError(f"picture {path} cannot be read ({error.strerror}): put it there again") from None


Moments = tuple[int, Any, Any]  # samples; mean and sum of squared deviations of each channel, in float64


def pooled(parts: Iterable[Moments]) -> Moments:
    """Those of all samples together, without cancellation (Chan et al. 1979)."""
    n: int = 0
    mean: Any = 0.0
    m2: Any = 0.0
    for count, mean_of_part, m2_of_part in parts:
        if count:
            total, delta = n + count, mean_of_part - mean
            m2 = m2 + (m2_of_part + delta**2 * n * count / total)
            n, mean = total, mean + delta * count / total
    return n, mean, m2


@dataclasses.dataclass
class Job:
    """One tar to write: trials `indices` of the study."""

    split: str
    number: int
    indices: list[int]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"

    def record(self, folder: Path) -> Path:
        """Where the record of the tar is kept until all tars are whole."""
        return folder / "unfinished" / f"{self.name}.json"


@dataclasses.dataclass
class Record:
    """What is known of a whole tar. JSON keeps each number exactly."""

    name: str
    bytes: int = 0
    sha256: str = ""
    rows: list[list[Any]] = dataclasses.field(default_factory=list)  # key, png, (offset, size) of eeg, picture, json
    # image -> SHA-256 of the picture as it was read, the first trial with it, and what `read_picture` knows it by
    images: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    done: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # image -> what `store_picture` did
    subjects: list[int] = dataclasses.field(default_factory=list)
    moments: list[Any] = dataclasses.field(default_factory=list)  # of train EEG: count, mean, m2
    sizes: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # subject -> trials, sum of log amplitudes
    squared_error: float = 0.0
    squared_signal: float = 0.0


def bad_key(key: str) -> str:
    return f"trial {key}: a key is 1 to 90 of A-Z a-z 0-9 _ -, and unique in its study"


def other_picture(key: str, image: str) -> str:
    return f"trial {key}: image {image} is not the same picture as in an earlier trial: rename one"


class Packer:
    """Writes tars of a study into `folder`; checks each trial on the way."""

    def __init__(self, study: Study, config: ShardsConfig, folder: Path) -> None:
        self.study, self.config, self.folder = study, config, folder
        self.classes = {c["label"]: c for c in study.classes}
        # SHA-256 of a picture as read -> what `store_picture` made of it, "" for the same bytes, as far as `room` goes
        self.known: dict[str, tuple[str, bytes, tuple[str, ...]]] = {}
        self.room = MAX_KEPT

    def sample(self, trial: Trial, record: Record) -> dict[str, Any]:
        """A trial as TarWriter takes it; what has to be known of it goes into `record`."""
        study, where = self.study, f"trial {trial.key}"
        if not KEY.fullmatch(trial.key):
            raise ValueError(bad_key(trial.key))
        if trial.eeg.shape != (study.n_chans, study.n_times):
            raise ValueError(f"{where} has EEG of shape {trial.eeg.shape} instead of {(study.n_chans, study.n_times)}")
        if not np.isfinite(trial.eeg).all():
            raise ValueError(f"{where} holds NaN or infinity: mend the recording or leave this trial out")
        if trial.label not in self.classes or self.classes[trial.label]["wnid"] != trial.wnid:
            raise ValueError(f"{where} has label {trial.label} ({trial.wnid}), which is not among the study's classes")
        extension, picture = self._picture(trial, record)
        info = {"subject": int(trial.subject), "label": int(trial.label), "wnid": trial.wnid, "trial": trial.key}
        info |= {"class_name": trial.class_name, "image": trial.image}
        assert not set(info) & set(trial.extra), "a reader's extra fields must not hide ours"
        text = encode(json.dumps(info | trial.extra, ensure_ascii=False, sort_keys=True))
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"{where} comes with {len(text)} bytes of text where {MAX_JSON_BYTES} are the most")
        eeg, error, power = encode_eeg(trial.eeg, self.config.eeg_dtype, where)
        record.squared_error += error
        record.squared_signal += power
        if (spread := trial.eeg.std(axis=1))[spread > 0].size:
            n, total = record.sizes.get(str(trial.subject), (0, 0.0))
            record.sizes[str(trial.subject)] = [n + 1, total + float(np.log(np.median(spread[spread > 0])))]
        return {"__key__": trial.key, "eeg": eeg, extension: picture, "json": text}

    def _picture(self, trial: Trial, record: Record) -> tuple[str, bytes]:
        """Extension and bytes as stored."""
        where = trial.image if isinstance(trial.jpeg, bytes) else str(trial.jpeg)
        data, file = (trial.jpeg, ["", 0, 0]) if isinstance(trial.jpeg, bytes) else read_picture(trial.jpeg)
        digest = hashlib.sha256(data).hexdigest()
        if record.images.setdefault(trial.image, [digest, trial.key, *file])[0] != digest:
            raise ValueError(other_picture(trial.key, trial.image))
        extension, stored, done = self.known.get(digest) or store_picture(data, where, self.config)
        anew = b"" if stored is data else stored
        if digest not in self.known and len(anew) <= self.room:
            self.known[digest] = extension, anew, done
            self.room -= len(anew)
        if done:
            record.done[trial.image] = list(done)
        return extension, stored or data

    def pack(self, job: Job, progress: Callable[[], Any] = lambda: None) -> Record:
        """Write a tar and, when it is whole and on the disk, its record; `progress` is called once a trial."""
        record, subjects, keys = Record(job.name), set(), set()
        moments: list[Moments] = []
        with replacing(self.folder / job.name, own=True) as partial:
            with open(partial, "wb") as file:
                with wds.TarWriter(file, user="", group="", mtime=0, encoder=False) as tar:
                    for i in job.indices:
                        trial = self.study.trial(i)
                        if trial.key in keys:
                            raise ValueError(bad_key(trial.key))
                        keys.add(trial.key)
                        tar.write(self.sample(trial, record))
                        subjects.add(int(trial.subject))
                        if job.split == "train":
                            mean = trial.eeg.mean(axis=1, dtype=np.float64)
                            squares = ((trial.eeg - mean[:, None]) ** 2).sum(axis=1)
                            moments.append((trial.eeg.shape[1], mean, squares))
                        progress()
                file.flush()
                os.fsync(file.fileno())  # the record must not outlive a power cut that its tar does not
            for row in scan_tar(partial, job.number):
                places = [row[member].tolist() for member in ("eeg", "picture", "json")]
                record.rows.append([row["key"].decode(), bool(row["png"]), *places])
            record.bytes, record.sha256 = partial.stat().st_size, sha256(partial)
        record.subjects = sorted(subjects)
        record.moments = [np.asarray(values).tolist() for values in pooled(moments)]
        write_json(job.record(self.folder), dataclasses.asdict(record))
        return record
