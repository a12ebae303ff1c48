"""The one door to the file system: whole files, locks, hashes, limits; and which errors are the machine's own."""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

try:
    import fcntl
    import resource
except ImportError:  # Windows has neither: no locks, no such limits (docs/platforms.md)
    fcntl = resource = None  # type: ignore[assignment]

from neuroimagen.text_files import encode

# More than any study needs, whoever reads it; what claims more is refused before it is read or decoded.
MAX_PICTURE_BYTES = 64 << 20  # of a JPEG or PNG file
MAX_PICTURE_PIXELS = 50_000_000  # width x height
FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: there is no room on the disk
# An OSError with one of these tells of the file that was asked for: it is not there. Those of decoders have none.
OF_THE_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


def pass_on(error: BaseException) -> None:
    """Raise an OSError if `error` tells of this machine and nothing of the file that was being read: never damage.

    Few files or little memory, a disk or network that does not answer, lacking rights. Call it before an error of
    reading becomes a sentence about the file.
    """
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and "out of memory" in str(error)):  # PIL's
        code = errno.ENOMEM
    if code in OF_THE_FILE:
        return
    said = getattr(error, "strerror", None) or os.strerror(code or 0)
    if code == errno.EMFILE and resource:
        said += f", ulimit -n is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} here: raise it"
    raise OSError(code, said, getattr(error, "filename", None)) from None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside names `path`, whatever it named: which disk is full."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def replacing(path: Path, own: bool = False) -> Iterator[Path]:
    """Where to write a file or make a directory: it takes the place of `path` when the block ends well, else it goes.

    So a reader, or a kill, sees the old or the new one whole. own: another process may be doing the same at this time.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if own else f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # it was a directory, or the file system cannot be written
            partial.unlink()
        raise


def write_atomic(path: Path, content: str | bytes, own: bool = False) -> None:
    """Write a file by `replacing`; text as UTF-8."""
    with naming(path), replacing(path, own) as partial:
        partial.write_bytes(encode(content) if isinstance(content, str) else content)


class Taken(Exception):
    """Another process has the lock: "process 7 on node1"."""


def claim(path: Path, advice: str) -> int:
    """A descriptor of `path`, locked for this process until that is closed or this ends, however it ends. Or Taken.

    A POSIX record lock: the kernel drops it with the process, children do not inherit it, and NFS knows it; where it
    cannot be had, a warning with `advice`. (To wait for another process there is filelock.FileLock.)
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.stat(path), os.fstat(file))  # or its holder has removed it since
    except (BlockingIOError, PermissionError, FileNotFoundError):
        mine = False
    except OSError as error:
        print(f"warning: {path} cannot be locked here ({error.strerror}): {advice}", file=sys.stderr)
        mine = True
    if not mine:
        holder = os.read(file, 200).decode(errors="replace") or "another process"
        os.close(file)
        raise Taken(holder)
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
    return file


@contextlib.contextmanager
def busy(path: Path) -> Iterator[None]:
    """`claim` a file while it lasts, for `holder` alone to see; where that cannot be had, nothing is shown."""
    lock = None
    with contextlib.suppress(Taken, OSError):
        lock = claim(path, "neuroimagen status will not see that it is used")
    try:
        yield
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)
            os.close(lock)


def holder(path: Path) -> tuple[bool | None, str]:
    """Whether a process has what `claim` locks, and who has it or had it last, "process 7 on node1", or "".

    It only asks, so no claim is ever refused for it; not for the holder itself, whose lock would go with the closing.
    None: this machine cannot tell, for the file was locked on another one, whose locks a file system may keep to
    itself, or knows no locks, or none that it can ask about.
    """
    if sys.platform != "linux":
        return (None if path.exists() else False), ""
    try:
        with open(path, "rb") as file:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock, 64 bit
            found = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))[0]
            who = file.read(200).decode(errors="replace")
    except FileNotFoundError:
        return False, ""
    except OSError:
        return None, ""
    here = who.endswith(f" on {platform.node()}")
    return (True if found != fcntl.F_UNLCK else False if here else None), who


def content_of(path: Path) -> dict[str, Any]:
    """Of a YAML or JSON file of ours; {} if it is not there, or not whole."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def allow_open(wanted: int) -> int:
    """Let this process open so many files, if it may; how many it may, `wanted` where there is no limit."""
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft


def sha256(path: Path, progress: Callable[[int], Any] = lambda n: None) -> str:
    """SHA-256 of a file; `progress` is told each number of bytes read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Package -> its version, or "not installed"."""
    found = dict.fromkeys(packages, "not installed")
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def share_weights(folder: Path) -> None:
    """Give the weights below `folder` the rights that any other new file gets there; safetensors makes them private."""
    probe = folder / ".rights"
    probe.touch()
    rights = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*.safetensors"):
        path.chmod(rights)
