"""Packing a study into shards (`neuroimagen shards`); shards/format.py says what a shard directory is.

Work goes on in OUT.partial, which is renamed when it is whole. It holds the tars that are whole, and in unfinished/ a
record of each and plan.json: the command, the input and the versions they were made with. So the same command goes on
after the last whole tar, however it was stopped, and any other one starts afresh. A command that is refused, for what
is wrong in the data, leaves nothing.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from neuroimagen.files import FULL, Taken, claim, content_of, sha256, versions
from neuroimagen.pages import render
from neuroimagen.pictures import LAID, TOLD_TO_LIE, TURNED, described
from neuroimagen.shards.format import INDEX, SPLITS, Manifest, ShardSplit, read_manifest, write_json
from neuroimagen.shards.tars import Job, Packer, Record, ShardsConfig, bad_key, other_picture, people_apart, pooled
from neuroimagen.shards.workers import Died, fingerprint, how_many, pack_in_processes
from neuroimagen.studies.open import PATHS, SourceConfig, chosen, listed, open_study
from neuroimagen.studies.study import Study

SOME = 32  # trials that tell of all
FREE = ("out", "processes")  # fields that change no byte of the shards
OURS = re.compile(r"unfinished|manifest\.json.*|(train|val|test)(-\d{6}\.tar.*|\.index\.npy)")  # in OUT.partial
OF_THE_STUDY = (
    *("dataset", "simulated", "n_chans", "n_times", "sfreq", "channels", "units", "classes", "split_by", "control"),
    *("protocol", "before", "recorded"),
)


def make_shards(config: ShardsConfig) -> None:
    """Pack a study. OUT appears whole or not at all; made again with the same config and input, nothing is done.

    The same config and input give the same bytes, whatever `processes` is and however often it was stopped between.
    """
    out = Path(config.out).absolute()
    packing = dataclasses.asdict(config).keys() - {field.name for field in dataclasses.fields(SourceConfig)}
    resolved = dataclasses.asdict(chosen(config))
    resolved |= {key: value for key, value in dataclasses.asdict(config).items() if key in packing and key not in FREE}
    resolved |= {key: str(Path(resolved[key]).absolute()) for key in PATHS & resolved.keys() if resolved[key]}
    if _is_made(out, resolved):
        return
    partial = out.with_name(out.name + ".partial")
    with _alone(partial, out):
        if _is_made(out, resolved):  # by another process, just now
            return
        strange = [path for path in partial.glob("*") if not OURS.fullmatch(path.name)]
        if strange:
            raise ValueError(f"{strange[0]} is not of neuroimagen shards, which works in {partial}: move it elsewhere")
        try:
            manifest = _pack(config, resolved, partial)
            os.replace(partial, out)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise OSError(
                error.errno, f"the disk of {out} is full: make room, and the same command goes on where it was"
            ) from None
    print(summary(out, manifest), end="")


def summary(folder: Path, manifest: Manifest) -> str:
    """What a shard directory holds, for a terminal."""
    flat = [channel for channel, std in enumerate(manifest.channel_std) if not std > 0]
    return render("shards/templates/summary.j2", folder=folder, m=manifest, flat=flat)


def _is_made(out: Path, resolved: dict[str, Any]) -> bool:
    """Whether `out` holds the whole result of this config; ValueError if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    _made_before(out, resolved)
    print(f"{out} is complete and was made by this very command: nothing to do")
    return True


def _made_before(out: Path, resolved: dict[str, Any]) -> Manifest:
    """ValueError unless `out` holds the whole result of this config on inputs that have not changed since."""
    if not (out / "manifest.json").is_file():
        raise ValueError(f"out={out} exists and is not a shard directory: give another out=, or remove it")
    manifest = read_manifest(out)
    # A field that there was not yet when they were made had the effect of its default.
    defaults = dataclasses.asdict(ShardsConfig())
    was = {key: manifest.config.get(key, defaults[key]) for key in resolved}
    other = ", ".join(f"{key}={was[key]}" for key in resolved if was[key] != resolved[key])
    if other:
        raise ValueError(f"out={out} was made with {other}: give another out=, or remove it")
    for path, digest in (manifest.inputs | (manifest.pictures or {})).items():
        if Path(path).is_file() and _hash_with_progress(Path(path)) != digest:
            raise ValueError(f"out={out} was made before {path} changed: give another out=, or remove it")
    for split in SPLITS:
        ShardSplit(out, split)
    return manifest


@contextlib.contextmanager
def _alone(partial: Path, out: Path) -> Iterator[None]:
    """Refuse a second packer of `out`."""
    path = partial.with_name(partial.name + ".lock")  # not inside: the directory is renamed
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = claim(path, f"pack {out} by one command at a time")
    except Taken as holder:
        raise ValueError(f"out={out} is being packed by {holder}: wait for it, or give another out=") from None
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ValueError(f"cannot write to {path.parent} ({error.strerror}): give another out=") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _pack(config: ShardsConfig, resolved: dict[str, Any], partial: Path) -> Manifest:
    """Have the whole shard directory in `partial`, with nothing else in it."""
    unfinished = partial / "unfinished"
    if (partial / "manifest.json").is_file() and not (unfinished / "plan.json").is_file():
        with contextlib.suppress(ValueError):
            manifest = _made_before(partial, resolved)  # stopped just before it was renamed
            shutil.rmtree(unfinished, ignore_errors=True)
            return manifest
    start = time.monotonic()
    study = open_study(config)
    opening = time.monotonic() - start
    inputs = _inputs(study, unfinished / "plan.json")
    packer = Packer(study, config, partial)
    sizes, seconds, _ = sampled(packer)
    trials = config.shard_size or max(1, int(config.shard_mb * 1e6 * len(sizes) / max(1, sum(sizes))))  # in a tar
    jobs = []
    for split in SPLITS:
        indices = [int(i) for i in study.splits[split]]
        if not indices:
            raise ValueError(f"split {split!r} of the study holds no trial")
        jobs += [Job(split, n, indices[i : i + trials]) for n, i in enumerate(range(0, len(indices), trials))]
    plan = {"config": resolved, "inputs": inputs, "study": fingerprint(study), "trials": trials}
    plan["versions"] = versions("neuroimagen", "numpy", "scipy", "mne", "pillow", "torch")
    records = _go_on(partial, plan, jobs)
    try:
        _write_tars(packer, jobs, records, opening, sum(seconds) / max(1, len(seconds)))
        for name, (size, changed, _) in inputs.items():
            if _stamp(Path(name)) != [size, changed]:
                raise ValueError(f"{name} changed while it was packed: give the same command again")
        manifest = manifest_of(study, config, [(job, records[job.name]) for job in jobs], partial)
    except Died:
        raise
    except ValueError:  # this command cannot succeed: it leaves nothing
        shutil.rmtree(partial)
        raise
    manifest.inputs = {name: digest for name, (_, _, digest) in inputs.items()}
    shown = [picture for job in jobs for picture in records[job.name].images.values()]
    manifest.pictures = {file: digest for digest, _, file, *_ in shown if file}
    own = chosen(config)
    unlisted = dataclasses.asdict(own).keys() - listed(own)
    manifest.config = {name: resolved[name] for name in [*listed(own), *resolved] if name not in unlisted}
    listing = dataclasses.asdict(manifest)
    if not manifest.control:
        del listing["control"]  # as before there were any
    write_json(partial / "manifest.json", listing)
    (unfinished / "plan.json").unlink()  # from here on the manifest is what says that all is there
    shutil.rmtree(unfinished)
    return manifest


def _write_tars(
    packer: Packer, jobs: list[Job], records: dict[str, Record], opening: float, trial_seconds: float
) -> None:
    """Write the tars that have no record yet, and add their records."""
    todo = [job for job in jobs if job.name not in records]
    n, left = (sum(len(job.indices) for job in some) for some in (jobs, todo))
    processes = min(packer.config.processes or how_many(opening, left * trial_seconds), max(1, len(todo)))
    with tqdm(total=n, initial=n - left, unit="trial", desc="shards", disable=None) as progress:
        if processes == 1:
            made = [packer.pack(job, progress.update) for job in todo]
        else:
            made = pack_in_processes(packer, todo, processes, progress.update)
    records |= {record.name: record for record in made}


def _stamp(path: Path) -> list[int]:
    known = path.stat()
    return [known.st_size, known.st_mtime_ns]


def _hash_with_progress(path: Path) -> str:
    with tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, delay=2, disable=None) as progress:
        return sha256(path, progress.update)


def _inputs(study: Study, plan: Path) -> dict[str, list[Any]]:
    """Path -> [size, time of change, SHA-256] of each input; one that looks as it did for `plan` is not read again."""
    before = content_of(plan).get("inputs", {})
    found = {}
    for path in study.inputs:
        name, stamp = str(path.absolute()), _stamp(path)
        known = before.get(name, [])
        found[name] = known if known[:2] == stamp else [*stamp, _hash_with_progress(path)]
    return found


def _go_on(partial: Path, plan: dict[str, Any], jobs: list[Job]) -> dict[str, Record]:
    """The records of the tars that an earlier, stopped command left whole; none, and an empty `partial`, otherwise."""
    unfinished = partial / "unfinished"
    before = content_of(unfinished / "plan.json")
    if config := before.get("config"):  # an older plan names the fields of all data sets, and not the newer ones
        usual = dataclasses.asdict(ShardsConfig())
        before["config"] = {name: config.get(name, usual[name]) for name in plan["config"]}

    def without_stamps(plan: dict[str, Any]) -> dict[str, Any]:
        return plan | {"inputs": {name: digest for name, (_, _, digest) in plan["inputs"].items()}}

    if not before or without_stamps(before) != without_stamps(json.loads(json.dumps(plan))):
        if before:
            changed = ", ".join(key for key in plan if before.get(key) != plan[key])
            print(f"{partial} is left over from another command ({changed} differ): starting afresh")
        shutil.rmtree(partial, ignore_errors=True)
        unfinished.mkdir(parents=True)
    write_json(unfinished / "plan.json", plan)
    records = {job.name: record for job in jobs if (record := _true_record(partial, job))}
    for path in [*partial.glob("*.tar*"), *unfinished.glob("*.tar.json")]:
        if path.name.removesuffix(".json") not in records:
            path.unlink()
    if before and records:
        print(f"{partial}: {len(records)} of {len(jobs)} tars are whole, going on with the others")
    return records


def _true_record(partial: Path, job: Job) -> Record | None:
    """The record of a tar, if the tar is there and the picture files in it are those of today."""
    try:
        record = Record(**content_of(job.record(partial)))
        if (partial / job.name).stat().st_size != record.bytes:
            return None
        pictures = [(file, stamp) for _, _, file, *stamp in record.images.values() if file]
        return record if all(_stamp(Path(file)) == stamp for file, stamp in pictures) else None
    except (OSError, TypeError, ValueError):
        return None


def sampled(packer: Packer) -> tuple[list[int], list[float], list[bytes]]:
    """Bytes in a tar and seconds of each of SOME trials that are spread over the study, and the pictures stored."""
    every = [int(i) for split in SPLITS for i in packer.study.splits[split]]
    sizes, seconds, pictures = [], [], []
    for place in sorted({*np.linspace(0, len(every) - 1, SOME).astype(int).tolist()}) if every else []:
        start = time.monotonic()
        members = packer.sample(packer.study.trial(every[place]), Record(""))
        seconds.append(time.monotonic() - start)
        del members["__key__"]
        sizes.append(sum(512 + -(-len(data) // 512) * 512 for data in members.values()))  # as tar pads
        pictures += [data for name, data in members.items() if name not in ("eeg", "json")]
    return sizes, seconds, pictures


def manifest_of(study: Study, config: ShardsConfig, tars: list[tuple[Job, Record]], folder: Path) -> Manifest:
    """The manifest, without inputs and config, and the index files; checks what concerns several tars."""
    keys: set[str] = set()
    side: dict[str, str] = {}  # image -> split
    known: dict[str, str] = {}  # image -> SHA-256 of the picture
    first: dict[str, str] = {}  # SHA-256 of a picture -> the first image that has it
    done: dict[str, list[str]] = {}  # image -> what was done to its picture
    notes, subjects, error, power = list(study.notes), set(), 0.0, 0.0
    sizes: dict[int, np.ndarray] = {}
    listed: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}  # tars
    images: dict[str, set[str]] = {name: set() for name in SPLITS}
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in SPLITS}
    for job, record in tars:
        split = job.split
        for key, png, *places in record.rows:
            if key in keys:
                raise ValueError(bad_key(key))
            keys.add(key)
            rows[split].append((key.encode(), job.number, png, *places))
        for image, (digest, key, *_) in record.images.items():
            if study.split_by == "image" and side.setdefault(image, split) != split:
                raise ValueError(f"image {image} is in both {side[image]} and {split}: use another split")
            if known.setdefault(image, digest) != digest:
                raise ValueError(other_picture(key, image))
            twin = first.setdefault(digest, image)
            if study.split_by == "image" and side[twin] != split and image not in images[split]:
                notes.append(f"{twin} ({side[twin]}) and {image} ({split}) are the same picture")
            images[split].add(image)
        done |= record.done
        subjects.update(record.subjects)
        error, power = error + record.squared_error, power + record.squared_signal
        for subject, size in record.sizes.items():
            sizes[int(subject)] = sizes.get(int(subject), np.zeros(2)) + size
        tar = {"name": record.name, "trials": len(record.rows), "bytes": record.bytes, "sha256": record.sha256}
        listed[split].append(tar)
    moments = (record.moments for _, record in tars)
    count, mean, m2 = pooled((count, np.array(mean), np.array(m2)) for count, mean, m2 in moments)
    if apart := people_apart({subject: float(np.exp(total / n)) for subject, (n, total) in sorted(sizes.items())}):
        raise ValueError(apart)
    splits: dict[str, dict[str, Any]] = {}
    for name in SPLITS:
        np.save(folder / f"{name}.index.npy", np.array(rows[name], INDEX))
        splits[name] = {"trials": len(rows[name]), "images": len(images[name]), "shards": listed[name]}
        splits[name]["index_sha256"] = sha256(folder / f"{name}.index.npy")
    notes += [said for said, _ in described(done)]
    every = {what for some in done.values() for what in some}
    if config.background and LAID not in every:
        notes.append(f"background={config.background} changed nothing: no picture is transparent")
    if config.orientation and not {TURNED, TOLD_TO_LIE} & every:
        notes.append(f"orientation={config.orientation} changed nothing: no picture has an EXIF orientation")
    if config.picture_size:
        kind = f"JPEG of quality {config.picture_quality}" if config.picture_quality else "PNG"
        notes.append(f"larger pictures were resized to a shortest side of {config.picture_size} px, stored as {kind}")
    return Manifest(
        **{name: getattr(study, name) for name in OF_THE_STUDY},
        format="neuroimagen-shards",
        version=1,
        eeg_dtype=config.eeg_dtype,
        subjects=sorted(subjects),
        channel_mean=mean.tolist(),
        channel_std=np.sqrt(m2 / count).tolist(),
        splits=splits,
        notes=notes,
        inputs={},
        config={},
        eeg_error=(error / power) ** 0.5 if power else 0.0,
        tmin=study.tmin or 0.0,
    )
