"""A few real steps of the real trainers, on random data of the study's shape, in a folder that is removed again."""

import dataclasses
import io
import json
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neuroimagen.pixel.saliency import doublings
from neuroimagen.planning.counts import Counts
from neuroimagen.planning.networks import networks
from neuroimagen.planning.status import logged
from neuroimagen.shards.format import Manifest, write_json
from neuroimagen.studies.study import SPLITS

QUIET = {"trackers": "none", "workers": 0, "log_every": 1, "checkpoint_every": 0, "validate_every": 0}
SHORT = {"warmup": 0, "classes_per_batch": 0, "trials_per_class": 0, "captions": "label"}  # the same work


@dataclasses.dataclass
class Rehearsed:
    """seconds: of each step that was made; memory: GB, the peak of the process"""

    seconds: list[float]
    memory: float


def random_shards(folder: Path, counts: Counts, trials: Mapping[str, int]) -> None:
    """Shards of noise, with pictures of 256 px."""
    rng, labels = np.random.default_rng(0), counts.shape["n_classes"]
    n_chans, n_times = counts.shape["n_chans"], counts.shape["n_times"]
    picture = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(picture, format="JPEG")
    folder.mkdir()
    splits = {}
    for split in SPLITS:
        path = folder / f"{split}-000000.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(trials[split]):
                info = {"subject": 1, "label": i % labels, "wnid": "n0", "class_name": "noise", "image": f"{split}{i}"}
                members = {
                    "eeg": rng.standard_normal((n_chans, n_times), dtype=np.float32).astype("<f2").tobytes(),
                    "jpg": picture.getvalue(),
                    "json": json.dumps(info | {"trial": f"{split}{i}"}).encode(),
                }
                for name, data in members.items():
                    head = tarfile.TarInfo(f"{split}{i}.{name}")
                    head.size = len(data)
                    tar.addfile(head, io.BytesIO(data))
        listed = [{"name": path.name, "trials": trials[split], "bytes": path.stat().st_size, "sha256": ""}]
        splits[split] = {"trials": trials[split], "images": trials[split], "shards": listed}
    about = [{"label": label, "wnid": "n0", "name": "noise"} for label in range(labels)]
    manifest = Manifest(
        format="neuroimagen-shards",
        version=1,
        dataset="noise",
        simulated=True,
        n_chans=n_chans,
        n_times=n_times,
        sfreq=counts.sfreq,
        eeg_dtype="float16",
        channels=None,
        units="",
        classes=about,
        subjects=[1],
        channel_mean=[0.0] * n_chans,
        channel_std=[1.0] * n_chans,
        splits=splits,
        split_by="image",
        protocol="",
        notes=[],
        inputs={},
        config={},
    )
    write_json(folder / "manifest.json", dataclasses.asdict(manifest))


def _phases(config: Any) -> int:
    """Of NeuroVision's growth (Karras et al. 2018): level 0, then the fade-in and the training of each next one."""
    return 2 * doublings(config.image_size) + 1


def _short(config: Any, folder: Path, name: str, processes: int) -> Any:
    """The same run, of few steps of one process's share."""
    fields = {field.name for field in dataclasses.fields(config)}
    changed: dict[str, Any] = {k: v for k, v in (QUIET | SHORT).items() if k in fields}
    changed |= {"run_dir": str(folder / name), "shards": str(folder / "shards"), "max_steps": 4}
    changed["global_batch_size"] = config.global_batch_size // processes
    if "features" in fields:
        changed["features"] = str(folder / "features")
    if "classifier_steps" in fields:
        changed["classifier_steps"] = 2
    if "phase_steps" in fields:
        changed |= {"phase_steps": 1, "max_steps": 2 + _phases(config)}
    return dataclasses.replace(config, **changed)


def _quietly(main: Callable[[Any], int], config: Any) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    main(config)


def rehearse(
    runs: Mapping[str, tuple[Callable[[Any], int], Any]], counts: Counts, processes: Mapping[str, int], budget: float
) -> Iterator[tuple[str, Rehearsed | None]]:
    """Name -> what was measured of it, None if there was no time for two steps, or it does not run here.

    runs: name -> a trainer's main and config; each gets its share of what is left of `budget` seconds.
    """
    deadline = time.monotonic() + budget
    with tempfile.TemporaryDirectory(prefix="neuroimagen-plan-") as where:
        folder, most = Path(where), max((config.global_batch_size for _, config in runs.values()), default=1)
        random_shards(folder / "shards", counts, {"train": max(most, counts.shape["n_classes"]), "val": 8, "test": 8})
        if "pixel_features" in runs:  # as stage 1a would leave it for 1b, which does not wait for that here
            f_theta = networks("pixel_features", runs["pixel_features"][1], counts.shape, device="cpu").trained[0]
            f_theta.save_pretrained(str(folder / "features" / "model"))
            for name in ("config.yaml", "DONE"):
                (folder / "features" / name).touch()
        context = multiprocessing.get_context("fork")  # what was imported is not imported again
        for number, (name, (main, config)) in enumerate(runs.items()):
            process = context.Process(target=_quietly, args=(main, _short(config, folder, name, processes[name])))
            process.start()
            process.join(max(0.0, deadline - time.monotonic()) / (len(runs) - number))
            process.kill()
            process.join()
            lines = [line for line in logged(folder / name) if "step_seconds" in line]
            found = Rehearsed(
                [line["step_seconds"] for line in lines], max([line["memory_gb"] for line in lines] or [0])
            )
            yield name, found if len(lines) > 1 else None


def whole(config: Any, seconds: list[float]) -> float | None:
    """s that all steps of a run take, of the few that `_short` made; None if these do not tell."""
    if not hasattr(config, "classifier_steps"):
        return float(np.median(seconds[1:])) * config.max_steps
    if len(seconds) < 4:
        return None
    first, rest = config.classifier_steps, config.max_steps - config.classifier_steps
    if not hasattr(config, "phase_steps"):
        return first * seconds[1] + rest * seconds[-1]
    phases = seconds[2:]  # one step of each
    if len(phases) < _phases(config):
        return None
    growing = config.phase_steps * sum(phases)
    return first * seconds[1] + growing + max(0, rest - config.phase_steps * len(phases)) * phases[-1]
