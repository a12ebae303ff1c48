"""Packing one tar of a study, and doing so in several processes; shards/pack.py makes a shard directory of them.

A tar is a function of (study, config, number) alone, whoever writes it. What concerns several tars (keys, pictures,
statistics) is in their records, which are put together in the order of the tars: so the number of processes and the
moment at which a run was interrupted change no byte.
"""

import dataclasses
import hashlib
import io
import json
import os
import signal
import stat
import traceback
from collections.abc import Callable, Generator
from multiprocessing import connection, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from neuroimagen.files import pass_on
from neuroimagen.pictures import FORMATS, Seen, Unclear, see
from neuroimagen.shards.format import (
    KEY,
    MAX_JSON_BYTES,
    MAX_PICTURE_BYTES,
    SPLITS,
    scan_tar,
)
from neuroimagen.studies.open import open_study
from neuroimagen.studies.study import Study, Trial
from neuroimagen.text_files import encode

if TYPE_CHECKING:
    from neuroimagen.shards.pack import ShardsConfig

OFFSET = 20  # times the signal: a mean that EEG does not have, unless it is DC-coupled
APART = 100  # times: no two people differ so much
MAX_KEPT = 64 << 20  # bytes of pictures made anew that a process keeps for further trials that show them


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
    if lost or not np.isfinite(half).all():
        offset = np.abs(eeg.mean(axis=1, dtype=np.float64))
        if moving.any() and np.median(offset[moving] / spread[moving]) > OFFSET:
            raise ValueError(
                f"{where}: a signal of {np.median(spread[moving]):.3g} on an offset of {np.median(offset[moving]):.3g} "
                "does not fit float16: take the offset away by baseline= or band="
            )
        what = f"signal of {np.median(spread[moving]):.3g}"
        if not np.isfinite(half).all():
            what = f"value of {float(np.abs(eeg).max()):.3g}"
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


def store_picture(data: bytes, where: str, config: "ShardsConfig") -> tuple[str, bytes, tuple[str, ...]]:
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


@dataclasses.dataclass
class Moments:
    """Count, mean and sum of squared deviations of each channel, in float64; no cancellation (Chan et al. 1979)."""

    count: int
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def none(cls, n_chans: int) -> "Moments":
        return cls(0, np.zeros(n_chans), np.zeros(n_chans))

    @classmethod
    def of(cls, eeg: np.ndarray) -> "Moments":
        mean = eeg.mean(axis=1, dtype=np.float64)
        return cls(eeg.shape[1], mean, ((eeg - mean[:, None]) ** 2).sum(axis=1))

    def add(self, other: "Moments") -> None:
        total = self.count + other.count
        if other.count:
            delta = other.mean - self.mean
            self.m2 += other.m2 + delta**2 * self.count * other.count / total
            self.mean += delta * other.count / total
        self.count = total


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


@dataclasses.dataclass
class Job:
    """One tar to write: trials `indices` of the study."""

    split: str
    number: int
    indices: list[int]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"


def jobs_of(study: Study, trials: int) -> list[Job]:
    """The tars of a study, `trials` in each, in the order of the manifest."""
    found = []
    for split in SPLITS:
        indices = [int(i) for i in study.splits[split]]
        if not indices:
            raise ValueError(f"split {split!r} of the study holds no trial")
        found += [Job(split, n, indices[i : i + trials]) for n, i in enumerate(range(0, len(indices), trials))]
    return found


def fingerprint(study: Study) -> str:
    """To see that a study opened again is the same one."""
    said = [study.dataset, study.n_chans, study.n_times, study.sfreq, study.units, study.channels, study.classes]
    splits = {name: [int(i) for i in study.splits[name]] for name in SPLITS}
    return hashlib.sha256(json.dumps([*said, study.protocol, study.notes, splits]).encode()).hexdigest()


class _Hashed:
    """A file that is written from its beginning to its end, and the SHA-256 of what was written."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


class Packer:
    """Writes tars of a study into `folder`; checks each trial on the way."""

    def __init__(self, study: Study, config: "ShardsConfig", folder: Path) -> None:
        self.study, self.config, self.folder = study, config, folder
        self.classes = {c["label"]: c for c in study.classes}
        # SHA-256 of a picture as read -> extension, what was done (`store_picture`), whether it is stored as read
        self.known: dict[str, tuple[str, tuple[str, ...], bool]] = {}
        self.anew: dict[str, bytes] = {}  # the same -> the picture stored anew, as far as MAX_KEPT goes
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
        info = {
            "subject": int(trial.subject),
            "label": int(trial.label),
            "wnid": trial.wnid,
            "class_name": trial.class_name,
            "image": trial.image,
            "trial": trial.key,
        }
        assert not set(info) & set(trial.extra), "a reader's extra fields must not hide ours"
        text = encode(json.dumps(info | trial.extra, ensure_ascii=False, sort_keys=True))
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"{where} comes with {len(text)} bytes of text where {MAX_JSON_BYTES} are the most")
        eeg, error, power = encode_eeg(trial.eeg, self.config.eeg_dtype, where)
        record.squared_error += error
        record.squared_signal += power
        if (spread := trial.eeg.std(axis=1))[spread > 0].size:
            known = record.sizes.setdefault(str(trial.subject), [0, 0.0])
            known[:] = known[0] + 1, known[1] + float(np.log(np.median(spread[spread > 0])))
        return {"__key__": trial.key, "eeg": eeg, extension: picture, "json": text}

    def _picture(self, trial: Trial, record: Record) -> tuple[str, bytes]:
        """Extension and bytes as stored."""
        where = trial.image if isinstance(trial.jpeg, bytes) else str(trial.jpeg)
        data, file = (trial.jpeg, ["", 0, 0]) if isinstance(trial.jpeg, bytes) else read_picture(trial.jpeg)
        digest = hashlib.sha256(data).hexdigest()
        if record.images.setdefault(trial.image, [digest, trial.key, *file])[0] != digest:
            raise ValueError(other_picture(trial.key, trial.image))
        extension, done, kept = self.known.get(digest, ("", (), False))
        stored = data if kept else self.anew.get(digest)
        if stored is None:
            extension, stored, done = store_picture(data, where, self.config)
            self.known[digest] = extension, done, stored is data
            if stored is not data and len(stored) <= self.room:
                self.anew[digest] = stored
                self.room -= len(stored)
        if done:
            record.done[trial.image] = list(done)
        return extension, stored

    def pack(self, job: Job, progress: Callable[[], Any]) -> Record:
        """Write a tar and, when it is whole and on the disk, its record; `progress` is called once a trial."""
        record = Record(job.name)
        moments, subjects, keys = Moments.none(self.study.n_chans), set(), set()
        path = self.folder / job.name
        partial = path.with_name(f"{job.name}.{os.getpid()}.partial")
        try:
            with open(partial, "wb") as file:
                hashed = _Hashed(file)
                with wds.TarWriter(hashed, user="", group="", mtime=0, encoder=False) as tar:
                    for i in job.indices:
                        trial = self.study.trial(i)
                        if trial.key in keys:
                            raise ValueError(bad_key(trial.key))
                        keys.add(trial.key)
                        tar.write(self.sample(trial, record))
                        subjects.add(int(trial.subject))
                        if job.split == "train":
                            moments.add(Moments.of(trial.eeg))
                        progress()
                file.flush()
                os.fsync(file.fileno())  # the record must not outlive a power cut that its tar does not
            for row in scan_tar(partial, job.number):
                places = [row[member].tolist() for member in ("eeg", "picture", "json")]
                record.rows.append([row["key"].decode(), bool(row["png"]), *places])
            record.bytes, record.sha256 = partial.stat().st_size, hashed.digest.hexdigest()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        record.subjects = sorted(subjects)
        record.moments = [moments.count, moments.mean.tolist(), moments.m2.tolist()]
        write_json(record_path(self.folder, job.name), dataclasses.asdict(record))
        return record


def bad_key(key: str) -> str:
    return f"trial {key}: a key is 1 to 90 of A-Z a-z 0-9 _ -, and unique in its study"


def other_picture(key: str, image: str) -> str:
    return f"trial {key}: image {image} is not the same picture as in an earlier trial: rename one"


def record_path(folder: Path, name: str) -> Path:
    """Where the record of a tar is kept until all tars are whole."""
    return folder / "unfinished" / f"{name}.json"


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(encode(json.dumps(content, ensure_ascii=False, indent=1) + "\n"))
    os.replace(partial, path)


class Died(ValueError):
    """A packing process ended that was not asked to."""


def _work(config: "ShardsConfig", folder: Path, known: str, pipe: connection.Connection) -> None:
    """A packing process: opens the study, then packs the tars it is sent. Ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent answers it
    torch.set_num_threads(1)

    def send(content: Any) -> None:
        try:
            pipe.send(content)
        except OSError:  # the parent is gone
            os._exit(1)

    def receive() -> Job:
        try:
            return pipe.recv()
        except (OSError, EOFError):
            os._exit(1)

    try:
        study = open_study(config)
        if fingerprint(study) != known:
            raise ValueError("the input changed while it was packed: give the same command again")
        packer = Packer(study, config, folder)
        send(None)  # ready
        while True:
            send(packer.pack(receive(), lambda: send(1)))
    except OSError as error:
        plain = error.errno is None  # the others are made anew: not each comes through a pipe as it was
        send(OSError(str(error)) if plain else OSError(error.errno, error.strerror, error.filename))
    except ValueError as error:
        send(ValueError(str(error)))
    except BaseException:
        send(RuntimeError(traceback.format_exc()))


def pack_in_processes(packer: Packer, todo: list[Job], processes: int) -> Generator[Record | None, None, None]:
    """What `packer` would do, by processes that take whole tars: records as they come, and None for each trial.

    The processes open the study themselves. To fork them from this one would spare that, but a fork copies the locks
    of torch's, mne's and BLAS's threads as they are at that moment, without the threads: now and then one waits for
    ever. So they are forked from a server, which has imported what they need once and never starts a thread. What the
    readers map (a 3 GB .pth) is one copy in memory for all processes; what they hold is not.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    waiting, known = list(reversed(todo)), fingerprint(packer.study)
    workers = {}
    try:
        for _ in range(processes):
            here, there = context.Pipe()
            worker = context.Process(target=_work, args=(packer.config, packer.folder, known, there), daemon=True)
            worker.start()
            there.close()  # or the end of the worker would not be seen
            workers[here] = worker
        missing = len(todo)
        while missing:
            for pipe in connection.wait(list(workers)):
                assert isinstance(pipe, connection.Connection)
                try:
                    said = pipe.recv()
                    if isinstance(said, Exception):
                        raise said
                    if said != 1 and waiting:
                        pipe.send(waiting.pop())
                except (EOFError, BrokenPipeError, ConnectionResetError):
                    raise Died(_death(workers[pipe])) from None
                if isinstance(said, Record):
                    missing -= 1
                if said is not None:
                    yield said if isinstance(said, Record) else None
    finally:
        for worker in workers.values():
            worker.kill()  # idle, or its work is no longer wanted
        for pipe, worker in workers.items():
            worker.join()
            pipe.close()


def _death(worker: Any) -> str:
    worker.join(10)
    how = f"by signal {-worker.exitcode}" if (worker.exitcode or 0) < 0 else f"with exit code {worker.exitcode}"
    reason = ", as when memory runs out" if worker.exitcode == -signal.SIGKILL else ""
    return f"a packing process was ended {how}{reason}: the same command continues; processes=1 needs least memory"
