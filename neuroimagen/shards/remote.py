"""Shards elsewhere: a URL or a pipe in the place of a shard directory, and the local cache it is read through.

    s3://bucket/shards  gs://...  file://...   whatever fsspec reads; the first two need s3fs and gcsfs
    https://host/shards  http://...            a plain web server; a query (a signed URL) goes to every file
    pipe:COMMAND {}                            run by the shell, {} is a file's name; its output is the file

What the cache promises: docs/shards.md. The manifest is fetched once by each process, and its content is part of the
directory's name: shards made again under the same URL never mix with what was there before.
"""

import contextlib
import functools
import hashlib
import http.client
import os
import random
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

import fsspec
from filelock import FileLock
from tqdm import tqdm

from neuroimagen.files import FULL, replacing

ATTEMPTS = 5  # to fetch a file
PAUSE = 1.0  # seconds before the second attempt; twice as long before each further one
TIMEOUT = 60.0  # seconds without a byte from a web server
LOCK_TIMEOUT = 3600.0  # seconds to wait for another process that fetches the same file
BLOCK = 1 << 20
CONNECTIONS = 4  # of a process at a time
NOT_RETRIED = (FileNotFoundError, PermissionError, IsADirectoryError)


def is_remote(shards: str | Path) -> bool:
    """Whether `shards` is a URL or a pipe and not a directory here."""
    return isinstance(shards, str) and bool(re.match(r"pipe:|[a-z][a-z0-9+.-]*://", shards))


def shown(url: str) -> str:
    """A URL without what may be secret in it: the query and the password."""
    if url.startswith("pipe:"):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def url_of(shards: str, name: str) -> str:
    """The URL (or pipe) of the file `name` of a shard directory."""
    if shards.startswith("pipe:"):
        if "{}" not in shards:
            raise ValueError(f"shards={shards} needs {{}} where a file's name goes, as in shards='pipe:cat /data/{{}}'")
        return shards.replace("{}", name)
    parts = urlsplit(shards)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def cache_folder() -> Path:
    try:
        return Path(os.environ.get("NEUROIMAGEN_CACHE") or Path.home() / ".cache" / "neuroimagen")
    except RuntimeError:
        raise ValueError("this user has no home for the cache: set NEUROIMAGEN_CACHE to a folder of your own") from None


@contextlib.contextmanager
def _open(url: str) -> Iterator[IO[bytes]]:
    """The bytes behind a URL. OSError for a failure that another attempt may mend."""
    scheme = url.partition(":")[0]
    if scheme == "pipe":
        with subprocess.Popen(url[len("pipe:") :], shell=True, stdout=subprocess.PIPE) as process:
            assert process.stdout
            try:
                yield process.stdout
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise OSError(f"the command ended with code {process.returncode}")
    elif scheme in ("http", "https"):  # fsspec would need aiohttp for this
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                yield response
        except urllib.error.HTTPError as error:
            error.close()
            kind = {404: FileNotFoundError, 410: FileNotFoundError, 401: PermissionError, 403: PermissionError}
            raise kind.get(error.code, OSError)(f"HTTP {error.code} {error.reason}") from None
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from None
    else:
        try:
            opened = fsspec.open(url, "rb")
        except ImportError as error:
            package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(scheme)
            what = f"pip install {package}" if package else str(error)
            raise ValueError(f"{scheme}:// needs a package that is not installed: {what}") from None
        except ValueError:
            raise ValueError(
                f"{shown(url)}: {scheme}:// is not known; there are s3, gs, https, file and pipe:"
            ) from None
        with opened as file:
            yield file


def _copy(url: str, out: IO[bytes], size: int | None, most: int) -> str:
    """Write what is behind `url` to `out`; its SHA-256. OSError if it has not `size` bytes, or more than `most`."""
    digest, n = hashlib.sha256(), 0
    with _open(url) as file:
        while block := file.read(BLOCK):
            n += len(block)
            if n > most:
                raise OSError(f"it has more than the {most} bytes expected")
            digest.update(block)
            out.write(block)
    if size is not None and n != size:
        raise OSError(f"it ended after {n} of {size} bytes")
    return digest.hexdigest()


def _download(shards: str, name: str, partial: Path, size: int | None, digest: str | None, most: int) -> None:
    """A file of a remote directory, verified, to `partial`. FileNotFoundError if it is not there."""
    url = url_of(shards, name)
    for attempt in range(1, ATTEMPTS + 1):
        with open(partial, "wb") as out:
            try:
                if (found := _copy(url, out, size, most)) != (digest or found):
                    raise OSError("its SHA-256 is not that of the manifest")
                return
            except (FileNotFoundError, ValueError):
                raise
            except Exception as error:  # each back end of fsspec has errors of its own
                if getattr(error, "errno", None) in FULL:
                    raise
                reason = getattr(error, "reason", None) or str(error) or type(error).__name__
                if attempt == ATTEMPTS or isinstance(error, NOT_RETRIED):
                    tries = "1 attempt" if attempt == 1 else f"{attempt} attempts"
                    raise ValueError(
                        f"{name} could not be fetched from {shown(shards)} in {tries} ({reason})"
                    ) from None
        time.sleep(PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1))  # ranks shall not come back all at once


def fetch(shards: str, path: Path, size: int | None, digest: str | None, most: int) -> None:
    """Have the file of the remote directory `shards` that is called so at `path`; one process fetches, others wait.

    size, digest: bytes and SHA-256 that it must have, as far as known; most: bytes that it may have.
    Raises ValueError, in one sentence, if it is not there, or after ATTEMPTS failures.
    """
    if _whole(path, size):
        return
    try:
        locks = path.parent / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{path.name}.lock", timeout=LOCK_TIMEOUT):
            if not _whole(path, size):  # or another process was faster
                with replacing(path) as partial:
                    _download(shards, path.name, partial, size, digest, most)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing at {shown(shards)}: copy the shards there again") from None
    except OSError as error:
        room = "make room, or " if error.errno in FULL else ""
        raise ValueError(
            f"cannot write to the cache {path.parent} ({error.strerror or error}): "
            f"{room}set NEUROIMAGEN_CACHE to a folder of your own"
        ) from None


@functools.cache
def cached_folder(shards: str, most: int) -> Path:
    """The local directory that stands for a remote one, with its manifest.json (of at most `most` bytes) in it."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", shown(shards))[-40:].strip("-")
    fresh = cache_folder() / f"{stem}-{os.getpid()}-{random.getrandbits(64):x}" / "manifest.json"
    try:
        fetch(shards, fresh, None, None, most)
        content = fresh.read_bytes()
        place = cache_folder() / f"{stem}-{hashlib.sha256(shown(shards).encode() + content).hexdigest()[:16]}"
        place.mkdir(exist_ok=True)
        os.replace(fresh, place / "manifest.json")
    finally:
        shutil.rmtree(fresh.parent, ignore_errors=True)
    return place


def fetch_tar(shards: str, folder: Path, tar: dict[str, Any]) -> None:
    """Have one tar of the manifest in the cache."""
    fetch(shards, folder / tar["name"], tar["bytes"], tar["sha256"], tar["bytes"])


def fetch_split(shards: str, folder: Path, name: str, split: dict[str, Any], most: int) -> None:
    """Have a split's index, of at most `most` bytes, and its tars in the cache, CONNECTIONS at a time.

    All of it when the split is opened, not tar by tar as trials are asked for: the train order is one permutation of
    the whole split, so that the first batches touch every tar, one slow fetch after the other.
    """
    if digest := split.get("index_sha256"):
        fetch(shards, folder / f"{name}.index.npy", None, digest, most)
    tars = [tar for tar in split["shards"] if not _whole(folder / tar["name"], tar["bytes"])]
    random.Random(os.getpid()).shuffle(tars)  # several processes begin with different ones instead of waiting
    total = sum(tar["bytes"] for tar in tars)
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=f"fetch {name}", disable=None if tars else True)
    with bar, ThreadPoolExecutor(CONNECTIONS) as pool:
        waiting = {pool.submit(fetch_tar, shards, folder, tar): tar for tar in tars}
        try:
            for done in as_completed(waiting):
                done.result()
                bar.update(waiting[done]["bytes"])
        except BaseException:
            pool.shutdown(cancel_futures=True)  # none of those that wait is begun
            raise


def _whole(path: Path, size: int | None) -> bool:
    return path.is_file() and (size is None or path.stat().st_size == size)
