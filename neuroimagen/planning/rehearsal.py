"""A few real steps of the real trainers, on random data of the study's shape, in a folder that is removed again."""

import dataclasses
import io
import itertools
import multiprocessing
import os
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
from neuroimagen.planning.status import steps_logged
from neuroimagen.shards.format import write_json
from neuroimagen.shards.pack import manifest_of
from neuroimagen.shards.tars import Job, Packer, ShardsConfig
from neuroimagen.studies.study import Facts, Study, Trial

QUIET = {"trackers": "none", "workers": 0, "log_every": 1, "checkpoint_every": 0, "validate_every": 0}
SHORT = {"warmup": 0, "classes_per_batch": 0, "trials_per_class": 0, "captions": "label"}  # the same work


class Noise(Study):
    """Random EEG of a study's shape, with a picture of 256 px."""

    dataset, simulated, units, protocol = "noise", True, "", ""

    def __init__(self, counts: Counts, trials: dict[str, int]) -> None:
        super().__init__()
        self.n_chans, self.n_times, n_classes = counts.shape.values()
        self.sfreq, self.inputs, self.rng = counts.sfreq, [], np.random.default_rng(0)
        self.channels = counts.channels
        self.classes = [{"label": label, "wnid": "n0", "name": "noise"} for label in range(n_classes)]
        places = iter(range(sum(trials.values())))
        self.splits = {name: list(itertools.islice(places, n)) for name, n in trials.items()}
        picture = io.BytesIO()
        Image.fromarray(self.rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(picture, format="JPEG")
        self.jpeg = picture.getvalue()

    def trial(self, index: int) -> Trial:
        eeg = self.rng.standard_normal((self.n_chans, self.n_times), dtype=np.float32)
        return self.make_trial(f"{index}", eeg, Facts(1, f"{index}", index % len(self.classes), picture=self.jpeg), {})


def random_shards(folder: Path, counts: Counts, trials: dict[str, int]) -> None:
    """Shards of Noise."""
    study, config = Noise(counts, trials), ShardsConfig()
    packer, jobs = Packer(study, config, folder), [Job(split, 0, own) for split, own in study.splits.items()]
    jobs[0].record(folder).parent.mkdir(parents=True)
    manifest = manifest_of(study, config, [(job, packer.pack(job, lambda: None)) for job in jobs], folder)
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
    runs: Mapping[str, tuple[Callable[[Any], int], Any, int]], counts: Counts, budget: float
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name -> what it logged of each step, nothing if there was no time for two, or it does not run here.

    runs: name -> a trainer's main, config and processes; each gets its share of what is left of `budget` seconds.
    """
    deadline = time.monotonic() + budget
    if not runs:
        return
    with tempfile.TemporaryDirectory(prefix="neuroimagen-plan-") as where:
        folder, most = Path(where), max(config.global_batch_size for _, config, _ in runs.values())
        random_shards(folder / "shards", counts, {"train": max(most, counts.shape["n_classes"]), "val": 8, "test": 8})
        if "pixel_features" in runs:  # as stage 1a would leave it for 1b, which does not wait for that here
            f_theta = networks("pixel_features", runs["pixel_features"][1], counts, device="cpu").trained[0]
            f_theta.save_pretrained(str(folder / "features" / "model"))
            for name in ("config.yaml", "DONE"):
                (folder / "features" / name).touch()
        context = multiprocessing.get_context("fork")  # what was imported is not imported again
        for number, (name, (main, config, processes)) in enumerate(runs.items()):
            process = context.Process(target=_quietly, args=(main, _short(config, folder, name, processes)))
            process.start()
            process.join(max(0.0, deadline - time.monotonic()) / (len(runs) - number))
            process.kill()
            process.join()
            lines = steps_logged(folder / name)
            yield name, lines if len(lines) > 1 else []


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
