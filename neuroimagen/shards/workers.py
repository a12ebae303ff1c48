"""Several processes that write the tars of a study, and how many of them pay."""

import contextlib
import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from neuroimagen.shards.format import SPLITS
from neuroimagen.shards.tars import Job, Packer, Record, ShardsConfig
from neuroimagen.studies.open import open_study
from neuroimagen.studies.study import Study

MOST_PROCESSES = 16  # unless asked for more: then the disk, not the processor, is what one waits for
IMPORT_SECONDS = 4.0  # of a new process, until it can open the study
_HERE: dict[str, Any] = {}  # of a packing process: what it packs, and its packer


def fingerprint(study: Study) -> str:
    """To see that a study opened again is the same one."""
    said = [study.dataset, study.n_chans, study.n_times, study.sfreq, study.units, study.channels, study.classes]
    splits = {name: [int(i) for i in study.splits[name]] for name in SPLITS}
    return hashlib.sha256(json.dumps([*said, study.protocol, study.notes, splits]).encode()).hexdigest()


def how_many(opening: float, work: float) -> int:
    """How many processes to pack with: one, where starting more would cost about what they save (seconds)."""
    most = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MOST_PROCESSES)
    with contextlib.suppress(OSError):  # what the study holds in memory, each process would hold
        held, free = _kilobytes("/proc/self/status", "RssAnon"), _kilobytes("/proc/meminfo", "MemAvailable")
        most = max(1, min(most, free // (2 * max(1, held))))
    return most if opening + IMPORT_SECONDS + work / most < 0.8 * work else 1


def _kilobytes(path: str, name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", Path(path).read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return int(found[1]) if found else 0


class Died(ValueError):
    """A packing process ended that was not asked to."""


def _begin(config: ShardsConfig, folder: Path, known: str) -> None:
    """In a new packing process, which ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent answers it
    torch.set_num_threads(1)
    _HERE.update(config=config, folder=folder, known=known)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _pack(job: Job) -> Record:
    """Pack a tar; the first one of a process opens the study."""
    if "packer" not in _HERE:
        study = open_study(_HERE["config"])
        if fingerprint(study) != _HERE["known"]:
            raise ValueError("the input changed while it was packed: give the same command again")
        _HERE["packer"] = Packer(study, _HERE["config"], _HERE["folder"])
    return _HERE["packer"].pack(job)


def pack_in_processes(packer: Packer, todo: list[Job], processes: int, progress: Callable[[int], Any]) -> list[Record]:
    """What `packer` would do, by processes that take whole tars; `progress` is told the trials of each.

    The processes open the study themselves: to fork them from this one would copy the locks of torch's, mne's and
    BLAS's threads without the threads, and now and then one waits for ever. So they are forked from a server, which has
    imported what they need and never starts a thread. What the readers map (a 3 GB .pth) is in memory once.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    records, others = [], active_children()
    with ProcessPoolExecutor(
        processes, context, _begin, (packer.config, packer.folder, fingerprint(packer.study))
    ) as pool:
        waiting = {pool.submit(_pack, job): job for job in todo}
        try:
            for done in as_completed(waiting):
                records.append(done.result())
                progress(len(waiting[done].indices))
        except BaseException as error:  # what the others do is not wanted any more
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in {*active_children()}.difference(others):
                worker.kill()
            if isinstance(error, BrokenProcessPool):
                ended = "a packing process was ended, as when memory runs out"
                raise Died(f"{ended}: the same command continues; processes=1 needs least memory") from None
            raise
    return records
