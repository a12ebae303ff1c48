"""Several processes that write the tars of a study, and how many of them pay."""

import contextlib
import functools
import hashlib
import json
import os
import re
import signal
import traceback
from collections.abc import Callable
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import torch

from neuroimagen.shards.format import SPLITS
from neuroimagen.shards.tars import Job, Packer, Record, ShardsConfig
from neuroimagen.studies.open import open_study
from neuroimagen.studies.study import Study

MOST_PROCESSES = 16  # unless asked for more: then the disk, not the processor, is what one waits for
IMPORT_SECONDS = 4.0  # of a new process, until it can open the study


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


def _work(config: ShardsConfig, folder: Path, known: str, pipe: connection.Connection) -> None:
    """A packing process: opens the study, then packs the tars it is sent. Ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent answers it
    torch.set_num_threads(1)

    def parent(call: Callable[..., Any], *what: Any) -> Any:
        try:
            return call(*what)
        except (OSError, EOFError):  # it is gone
            os._exit(1)

    send = functools.partial(parent, pipe.send)
    try:
        study = open_study(config)
        if fingerprint(study) != known:
            raise ValueError("the input changed while it was packed: give the same command again")
        packer = Packer(study, config, folder)
        send(None)  # ready
        while True:
            send(packer.pack(parent(pipe.recv), lambda: send(1)))
    except OSError as error:
        plain = error.errno is None  # the others are made anew: not each comes through a pipe as it was
        send(OSError(str(error)) if plain else OSError(error.errno, error.strerror, error.filename))
    except ValueError as error:
        send(ValueError(str(error)))
    except BaseException:
        send(RuntimeError(traceback.format_exc()))


def pack_in_processes(packer: Packer, todo: list[Job], processes: int, progress: Callable[[], Any]) -> list[Record]:
    """What `packer` would do, by processes that take whole tars; `progress` is called once a trial.

    The processes open the study themselves: to fork them from this one would copy the locks of torch's, mne's and
    BLAS's threads without the threads, and now and then one waits for ever. So they are forked from a server, which has
    imported what they need and never starts a thread. What the readers map (a 3 GB .pth) is in memory once.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    waiting, known = list(reversed(todo)), fingerprint(packer.study)
    workers, records = {}, list[Record]()
    try:
        for _ in range(processes):
            here, there = context.Pipe()
            worker = context.Process(target=_work, args=(packer.config, packer.folder, known, there), daemon=True)
            worker.start()
            there.close()  # or the end of the worker would not be seen
            workers[here] = worker
        while len(records) < len(todo):
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
                if said == 1:
                    progress()
                elif isinstance(said, Record):
                    records.append(said)
        return records
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
