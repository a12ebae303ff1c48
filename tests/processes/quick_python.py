"""`python`, `neuroimagen` and `accelerate` for shells: the same processes without the seconds that their imports take.

As a script this is each of the three, by the name it is called with: it asks the test, through the socket QUICK_PYTHON,
to fork the process (tests/forked.py), prints what that printed and ends with its code. `commands` is the test's side.
Where the variable QUICK_OVERLAY names one, it is the last of the overlays that a command is given.
"""

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

AS = {"python": [], "neuroimagen": ["-m", "neuroimagen.cli"], "accelerate": [__file__, "launcher"]}


@contextlib.contextmanager
def commands(folder: Path) -> Iterator[dict[str, str]]:
    """The three commands in folder/bin while it lasts; the variables by which a shell finds them."""
    from forked import Forked

    (folder / "bin").mkdir(parents=True)
    for name in AS:
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -ISE {__file__} {name} "$@"\n')
        script.chmod(0o755)
    server = socket.socket(socket.AF_UNIX)
    address = Path(tempfile.mkdtemp()) / "socket"  # a path in pytest's folders may be too long for a socket
    server.bind(str(address))
    server.listen()

    def answer(client: socket.socket) -> None:
        with client, client.makefile("rw") as channel:
            asked = json.loads(channel.readline())
            process = Forked(asked["arguments"], asked["environment"], Path(asked["log"]), Path(asked["cwd"]))
            channel.write(f"{process.wait()}\n")

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed below
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "QUICK_PYTHON": str(address)}
    finally:
        server.close()
        address.unlink()
        address.parent.rmdir()


def main(name: str, *arguments: str) -> int:
    if name == "launcher":  # a process forked as `accelerate`: the launcher itself, whose ranks are forked as well
        from accelerate.commands.accelerate_cli import main as accelerate

        sys.executable = str(shutil.which("python"))
        sys.argv = ["accelerate", *arguments]
        return accelerate() or 0
    with (
        tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as log,
        socket.socket(socket.AF_UNIX) as s,
    ):
        s.connect(os.environ["QUICK_PYTHON"])
        words = [*AS[name], *arguments[arguments[:1] == ("-u",) :]]  # torchrun's: unbuffered
        if name != "accelerate" and any(word.startswith("config=") for word in words):
            words += [f"config={file}" for file in [os.environ.get("QUICK_OVERLAY")] if file]
        asked = {"arguments": words, "environment": dict(os.environ), "log": log.name}
        with s.makefile("rw") as channel:
            channel.write(json.dumps(asked | {"cwd": os.getcwd()}) + "\n")
            channel.flush()
            code = int(channel.readline())
        print(log.read(), end="", flush=True)
        return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
