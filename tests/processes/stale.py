"""Run a script on a network file system that shows one rank an older listing: `stale.py script.py arguments`.

STALE is JSON: "rank", "root" and "known", the paths below root that this rank has heard of. All others are hidden from
it, for "seconds" after it first missed one (none: for ever), unless it made them itself. With "reads" it finds the
content of that older checkpoint in every checkpoint. "patience" is how long the others wait for it.
"""

import builtins
import io
import json
import os
import runpy
import sys
import time
from pathlib import Path

from accelerate import Accelerator

from neuroimagen.run import collectives


def become_stale(root: str, known: list[str], seconds: float | None) -> None:
    seen, own, missed = {root, *known}, set(), []

    def hidden(path) -> bool:
        if isinstance(path, int):
            return False
        name = os.path.abspath(os.fspath(path))
        if not name.startswith(root) or name in seen or name in own or not real_exists(name):
            return False
        if missed and seconds is not None and time.monotonic() > missed[0] + seconds:
            return False
        missed.append(time.monotonic())
        return True

    def hiding(real):
        def look(path=".", *args, **kwargs):
            if hidden(path):
                raise FileNotFoundError(2, "No such file or directory (stale)", str(path))
            return real(path, *args, **kwargs)

        return look

    def opening(real):
        def open(path, mode="r", *args, **kwargs):
            if mode[0] != "r" and not isinstance(path, int):
                own.add(os.path.abspath(os.fspath(path)))
            elif hidden(path):
                raise FileNotFoundError(2, "No such file or directory (stale)", str(path))
            return real(path, mode, *args, **kwargs)

        return open

    class Scan:
        """os.scandir"""

        def __init__(self, path="."):
            if hidden(path):
                raise FileNotFoundError(2, "No such file or directory (stale)", str(path))
            self.entries = scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.entries.close()

        def __iter__(self):
            return (entry for entry in self.entries if not hidden(entry.path))

    def listdir(path="."):
        with Scan(path) as entries:
            return [entry.name for entry in entries]

    real_stat, scandir = os.stat, os.scandir

    def real_exists(name: str) -> bool:
        try:
            real_stat(name)
        except OSError:
            return False
        return True

    os.stat, os.lstat, os.scandir, os.listdir = hiding(os.stat), hiding(os.lstat), Scan, listdir
    builtins.open = io.open = opening(open)


if __name__ == "__main__":
    stale = {"reads": None, "known": [], "seconds": None} | json.loads(os.environ["STALE"])
    collectives.PATIENCE = stale["patience"]
    if os.environ["RANK"] == str(stale["rank"]):
        if older := stale["reads"]:
            load_state = Accelerator.load_state
            Accelerator.load_state = lambda self, directory: load_state(self, older)
        else:
            become_stale(stale["root"], stale["known"], stale["seconds"])
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
