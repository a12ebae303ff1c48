"""Processes that begin where the imports have ended: forked off one that has imported what the trainers import.

A rank spends two to six seconds on imports, and the tests start some hundreds of them, most to look at what comes
after. Such a rank is a process like any other, with its own signals, exit code and connections; only the hash seed is
shared.

Run as a script this file is the process they are forked off: it reads {"arguments", "environment", "log"} as lines of
JSON and writes "started PID" and "ended PID STATUS". Those under DeepSpeed have one of their own, which imports it too;
so have those with another HF_HOME, which is read on import.
"""

import atexit
import functools
import gc
import importlib
import itertools
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).parents[1]
TRAINERS = sorted(REPO.glob("trainers/*.py"))
COMMANDS = ["neuroimagen.report.tables", "neuroimagen.sample.captions"]  # those that run on several processes


class Forked:
    """What the tests use of subprocess.Popen(["python", *arguments]), for a script or `-m` module."""

    origins: dict[tuple[bool, str], subprocess.Popen] = {}  # with DeepSpeed or without, and HF_HOME
    codes: dict[int, int | None] = {}
    changed = threading.Condition()
    starting = threading.Lock()

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path, cwd: Path = REPO) -> None:
        with Forked.starting:
            kind = ("ACCELERATE_USE_DEEPSPEED" in environment, environment.get("HF_HOME", ""))
            if kind not in Forked.origins:
                Forked.origins[kind] = Forked._start_origin(*kind)
            origin = Forked.origins[kind]
            assert origin.stdin
            known = set(Forked.codes)
            asked = {"arguments": arguments, "environment": environment, "log": str(log), "cwd": str(cwd)}
            origin.stdin.write(json.dumps(asked) + "\n")
            origin.stdin.flush()
            with Forked.changed:
                assert Forked.changed.wait_for(lambda: set(Forked.codes) - known, timeout=900), "nothing was forked"
            (self.pid,) = set(Forked.codes) - known

    @staticmethod
    def _start_origin(deepspeed: bool, hf_home: str) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "yes", "PYTHONPATH": str(REPO)}
        if hf_home != os.environ.get("HF_HOME", ""):
            environment |= {"HF_HOME": hf_home, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, *COMMANDS]
        if deepspeed:
            environment["DS_ACCELERATOR"] = "cpu"
            command.append("deepspeed.runtime.zero.muon.muon_optimizer")  # what its engine imports, with inductor
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        origin = subprocess.Popen(command, cwd=REPO, env=environment, **pipes)  # type: ignore[call-overload]

        def listen() -> None:
            for line in origin.stdout:
                word, pid, *status = line.split()
                with Forked.changed:
                    Forked.codes[int(pid)] = os.waitstatus_to_exitcode(int(status[0])) if word == "ended" else None
                    Forked.changed.notify_all()

        threading.Thread(target=listen, daemon=True).start()
        return origin

    @property
    def returncode(self) -> int | None:
        return Forked.codes[self.pid]

    @staticmethod
    def end() -> None:
        for origin in Forked.origins.values():
            assert origin.stdin
            origin.stdin.close()
            origin.wait(60)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        with Forked.changed:
            if not Forked.changed.wait_for(lambda: self.returncode is not None, timeout):
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def main() -> None:
    for trainer in TRAINERS:
        runpy.run_path(str(trainer), run_name="imported")  # up to its `if __name__ == "__main__"`
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()  # or each rank walks, and so copies, all of it
    living = 0
    while True:
        readable, _, _ = select.select([0], [], [], 0.02 if living else None)
        if readable:
            line = b""
            while not line.endswith(b"\n"):
                byte = os.read(0, 1 << 16)
                if not byte:
                    return
                line += byte
            for request in line.splitlines():
                pid = os.fork()
                if pid == 0:
                    return end_after(functools.partial(become, **json.loads(request)))
                living += 1
                print("started", pid, flush=True)
        while living and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            living -= 1
            print("ended", *ended, flush=True)


def become(arguments: list[str], environment: dict[str, str], log: str, cwd: str) -> None:
    """Go on as `python *arguments` in `cwd`, to the end."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for stream, (path, how) in enumerate(((os.devnull, os.O_RDONLY), (log, os.O_WRONLY | os.O_APPEND | os.O_CREAT))):
        opened = os.open(path, how)
        os.dup2(opened, stream)
        os.close(opened)
    os.dup2(1, 2)
    hold_where_told()
    module = arguments[0] == "-m"
    sys.argv = arguments[module:]
    sys.path[0] = os.getcwd() if module else str(Path(arguments[0]).resolve().parent)
    if module:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")


def end_after(task: Callable[[], None]) -> None:
    """The end of a process whose `task` ends well: all but taking apart what was imported, the work of 0.3 s.

    One that ends otherwise, or in a process group, ends by the interpreter.
    """
    code = 0
    try:
        task()
    except SystemExit as stop:
        code = stop.code or 0
    distributed = sys.modules["torch.distributed"]
    if not isinstance(code, int) or distributed.is_initialized():
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def hold_where_told() -> None:
    """With HOLD=module:function:N in the environment, wait after call N of that function for SIGTERM or SIGUSR1.

    So a test has all the time it needs between what it sees and what it does, on however busy a machine.
    """
    if not (told := os.environ.pop("HOLD", "")):
        return
    from neuroimagen.run.processes import stop_requested

    module, path, calls = told.split(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function, count, released = getattr(owner, name), itertools.count(1), threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: released.set())

    @functools.wraps(function)
    def held(*args, **kwargs):
        result = function(*args, **kwargs)
        if next(count) == int(calls):
            while not (released.is_set() or stop_requested()):
                time.sleep(0.01)
        return result

    setattr(owner, name, held)


if __name__ == "__main__":
    main()
