"""Shards behind a URL: fetched once, whole and verified, through servers that fail; else one sentence."""

import contextlib
import http.server
import os
import threading
import time
import urllib.parse
from pathlib import Path

import fsspec
import numpy as np
import pytest
from perceivelab_files import write_shards, write_study

from neuroimagen.batches.stream import train_batches
from neuroimagen.cli import main
from neuroimagen.shards import remote
from neuroimagen.shards.format import ShardSplit, read_manifest
from neuroimagen.shards.pack import ShardsConfig, make_shards


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("study"), shard_size=16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; what this process remembers of manifests is forgotten."""
    monkeypatch.setenv("NEUROIMAGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    remote.cached_folder.cache_clear()
    yield tmp_path / "cache"
    remote.cached_folder.cache_clear()


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder on this machine; `wrong(name, n)` may answer the n-th request for a file in another way."""

    def __init__(self, folder: Path, wrong=lambda name, n: None) -> None:
        requests: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def translate_path(self, path: str) -> str:
                return str(folder / urllib.parse.urlsplit(path).path.rpartition("/")[2])

            def do_GET(self) -> None:
                name = urllib.parse.urlsplit(self.path).path.rpartition("/")[2]
                requests.append(name)
                kind = wrong(name, requests.count(name))
                if kind is None:
                    return super().do_GET()
                if isinstance(kind, int):
                    return self.send_error(kind)
                data = (folder / name).read_bytes()
                self.send_response(200)
                if kind not in ("unsized", "endless"):
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if kind == "flipped":
                    data = bytes([data[0] ^ 1]) + data[1:]
                if kind != "endless":
                    return self.wfile.write(data[: len(data) // 2] if kind in ("cut", "unsized") else data)
                with contextlib.suppress(OSError):
                    while True:
                        self.wfile.write(bytes(1 << 20))

            def log_message(self, *rest) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = requests
        self.url = f"http://127.0.0.1:{self.server_address[1]}/shards"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *rest) -> None:
        self.shutdown()
        self.server_close()


def same(shards: str, made: Path) -> None:
    assert read_manifest(shards) == read_manifest(made)
    for name in ("train", "val", "test"):
        there, here = ShardSplit(shards, name), ShardSplit(made, name)
        assert there.keys == here.keys
        for i in range(len(here)):
            np.testing.assert_array_equal(there.eeg(i), here.eeg(i))
            assert there.picture(i) == here.picture(i) and there.info(i) == here.info(i)


def test_over_http_each_file_once(made, cache):
    with Server(made) as server:
        same(server.url, made)
        batch = next(train_batches(server.url, batch_size=8))
        np.testing.assert_array_equal(batch["eeg"], next(train_batches(made, batch_size=8))["eeg"])
        ShardSplit(server.url, "train")
        assert sorted(server.requests) == sorted(path.name for path in made.iterdir())
    (folder,) = cache.iterdir()
    assert {path.name for path in folder.iterdir()} == {path.name for path in made.iterdir()} | {"locks"}


def test_a_server_that_fails_twice(made):
    with Server(made, lambda name, n: 503 if n < 3 else None) as server:
        same(server.url, made)
        assert set(map(server.requests.count, server.requests)) == {3}


@pytest.mark.parametrize("kind", ["cut", "unsized", "flipped", "endless"])
def test_what_arrives_wrong_is_fetched_again(made, kind):
    with Server(made, lambda name, n: kind if name == "train-000001.tar" and n < 3 else None) as server:
        same(server.url, made)
        assert server.requests.count("train-000001.tar") == 3


@pytest.mark.parametrize(
    "kind, reason, attempts",
    [
        ("cut", r"\(it ended after \d+ of \d+ bytes\)", 5),
        ("flipped", r"\(its SHA-256 is not that of the manifest\)", 5),
        ("endless", r"\(it has more than the \d+ bytes expected\)", 5),
        (500, r"\(HTTP 500 Internal Server Error\)", 5),
        (403, r"\(HTTP 403 Forbidden\)", 1),
    ],
)
def test_attempts_are_bounded_and_the_shard_and_url_named(made, cache, kind, reason, attempts):
    with Server(made, lambda name, n: kind if name == "val-000000.tar" else None) as server:
        sentence = rf"^val-000000\.tar could not be fetched from {server.url} in {attempts} attempts? {reason}$"
        with pytest.raises(ValueError, match=sentence):
            ShardSplit(server.url + "?signature=secret", "val")
        assert server.requests.count("val-000000.tar") == attempts
    assert not list(cache.rglob("*.partial")) and not list(cache.rglob("val-*.tar"))


def test_a_server_that_is_gone_and_files_that_are_missing(made):
    with Server(made, lambda name, n: 404 if name == "val-000000.tar" else None) as server:
        with pytest.raises(ValueError, match=rf"val-000000\.tar is missing at {server.url}: copy"):
            ShardSplit(server.url, "val")
        train = ShardSplit(server.url, "train")
        folder = train.folder
    with pytest.raises(ValueError, match="manifest.json could not be fetched from .* in 5 attempts .*refused"):
        read_manifest(server.url + "/other")
    os.remove(folder / "train-000001.tar")  # someone cleans the cache, and the server is gone
    i = int(np.flatnonzero(train.index["tar"] == 1)[0])
    with pytest.raises(OSError, match=r"train-000001\.tar could not be fetched from .* in 5 attempts"):
        train.eeg(i)  # no trial's fault
    with pytest.raises(ValueError, match=r"train-000001\.tar could not be fetched from .* in 5 attempts"):
        next(train_batches(server.url, batch_size=len(train), max_bad_samples=20))


def test_removed_or_cut_in_the_cache_it_is_fetched_again(made):
    with Server(made) as server:
        train = ShardSplit(server.url, "train")
        os.remove(train.paths[1])
        os.truncate(train.paths[0], 100)
        same(server.url, made)
        os.remove(train.paths[2])
        train.eeg(len(train) - 1)
        assert server.requests.count("train-000001.tar") == server.requests.count("train-000000.tar") == 2


def test_made_again_under_the_same_url_nothing_is_mixed(made, tmp_path):
    write_study(tmp_path / "study", seed=5)
    files = {"eeg": "eeg.pth", "images": "images", "splits_file": "splits.pth"}
    fields = {key: str(tmp_path / "study" / name) for key, name in files.items()}
    make_shards(ShardsConfig(out=str(tmp_path / "new"), n_chans=4, shard_size=16, **fields))
    place = tmp_path / "place"
    place.symlink_to(made)
    with Server(place) as server:
        same(server.url, made)
        place.unlink()
        place.symlink_to(tmp_path / "new")
        same(server.url, made)  # this process goes on with what it began with
        remote.cached_folder.cache_clear()
        same(server.url, tmp_path / "new")


def test_many_processes_one_fetch(made, start, tmp_path):
    (tmp_path / "reader.py").write_text(
        "import os, sys, time; from pathlib import Path; from neuroimagen.shards.format import ShardSplit\n"
        "here = Path(__file__).parent; (here / f'up-{os.getpid()}').touch()\n"
        "while len(list(here.glob('up-*'))) < 2: time.sleep(0.005)  # they begin together\n"
        "for name in ('train', 'val', 'test'): ShardSplit(sys.argv[1], name).eeg(0)"
    )
    with Server(made, lambda name, n: time.sleep(0.2)) as server:
        processes = start([str(tmp_path / "reader.py"), server.url], 2)
        assert processes.wait() == [0, 0], processes.log.read_text()
        tars = [name for name in server.requests if name != "manifest.json"]
        assert sorted(tars) == sorted(path.name for path in made.iterdir() if path.name != "manifest.json")


@pytest.mark.parametrize("scheme", ["file", "memory", "pipe"])
def test_other_schemes(made, scheme):
    if scheme == "memory":
        memory = fsspec.filesystem("memory")
        memory.put(str(made), "/study/shards", recursive=True)
    same({"file": f"file://{made}", "memory": "memory://study/shards", "pipe": f"pipe:cat {made}/{{}}"}[scheme], made)


@pytest.mark.parametrize(
    "url, sentence",
    [
        ("s3://bucket/shards", r"s3:// needs a package that is not installed: pip install s3fs"),
        ("gs://bucket/shards", r"gs:// needs a package that is not installed: pip install gcsfs"),
        ("quux://bucket/shards", r"quux:// is not known; there are s3, gs, https, file and pipe:"),
        ("file:///no/such/folder", r"manifest.json is missing at file:///no/such/folder"),
        ("pipe:cat /x", r"needs \{\} where a file's name goes"),
        ("pipe:exit 3 {}", r"in 5 attempts \(the command ended with code 3\)"),
        ("http://user:secret@127.0.0.1:1/x", r"from http://127\.0\.0\.1:1/x in 5 attempts"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(url, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        ShardSplit(url, "train")
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written(made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEUROIMAGEN_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        ValueError, match=r"cannot write to the cache .*: set NEUROIMAGEN_CACHE to a folder of your own"
    ):
        read_manifest(f"file://{made}")


def test_check_fetches_and_examines(made, cache, capsys):
    with Server(made) as server:
        assert main(["check", server.url]) == 0
    assert f"{len(ShardSplit(made, 'train')):,} trials" in capsys.readouterr().out
