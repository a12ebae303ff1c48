"""Exit codes, and the sentence that each kind of error becomes."""

import errno
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from neuroimagen.cli import main
from neuroimagen.errors import BUG, REMEDIES, exit_code


def said(error: BaseException, capsys) -> tuple[int, str]:
    def work():
        raise error

    code = exit_code(work)
    return code, capsys.readouterr().err


@pytest.mark.parametrize("result, code", [(None, 0), (0, 0), (1, 1), (143, 143), ({"a": 1}, 0)])
def test_the_code_of_the_work_is_kept(result, code):
    assert exit_code(lambda: result) == code


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_the_system_is_a_sentence_with_file_and_remedy(number, capsys):
    error = OSError(number, os.strerror(number), "/some/file")
    if isinstance(error, BrokenPipeError):
        return
    code, text = said(error, capsys)
    remedy = REMEDIES.get(number, "try again, or take a copy elsewhere")
    assert (code, text) == (2, f"error: /some/file: {os.strerror(number)}; {remedy}\n")


class FromTheHub(OSError):
    """As hub libraries speak: many lines, no errno."""


@pytest.mark.parametrize(
    "error, sentence",
    [
        (ValueError("a sentence of ours"), "a sentence of ours"),
        (OSError(errno.ENOSPC, "the disk of out is full: make room"), "the disk of out is full: make room"),
        (OSError(errno.EACCES, "Permission denied", b"/a/b"), "/a/b: Permission denied; " + REMEDIES[errno.EACCES]),
        (FromTheHub("no x\n  in\ny"), "no x in y"),
        (MemoryError(), "out of memory (MemoryError): a smaller batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "a larger accumulate, need less"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory (DefaultCPUAllocator"),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]"), "see which ended first"),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), "see which ended first"),
        (torch.distributed.DistStoreError("Timed out waiting for clients. 1/2 clients joined."), "unset RANK"),
        (torch.distributed.DistNetworkError("port: 29500, name: EADDRINUSE"), "launch with another one"),
        (ModuleNotFoundError("No module named 'mne'", name="mne"), "No module named 'mne': pip install -U mne"),
        (ModuleNotFoundError("No module named 'a.b'", name="a.b"), "No module named 'a.b': pip install -U a\n"),
        (ImportError("BLIP needs\nthe x library: `pip install x`"), "BLIP needs the x library: `pip install x`"),
        (RuntimeError("Could not determine home directory."), "set HOME, or HF_HOME"),
        (SafetensorError("header too large"), "header too large"),
        (EOFError(), "EOFError"),
        (zlib.error("incorrect header check"), "incorrect header check"),
        (zipfile.BadZipFile("File is not a zip file"), "File is not a zip file"),
        (struct.error("unpack requires"), "unpack requires"),
        (yaml.YAMLError("while\nparsing"), "while parsing"),
        (ConnectionRefusedError("refused"), "refused"),
        (TimeoutError("timed out"), "timed out"),
    ],
)
def test_what_the_user_can_change_is_one_sentence(error, sentence, capsys):
    code, text = said(error, capsys)
    assert code == 2 and text.startswith("error: ") and sentence in text and text.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [TypeError("x"), KeyError("x"), AttributeError("x"), IndexError("x"), ZeroDivisionError(), AssertionError()]
    + [RuntimeError("shapes"), NotImplementedError(), RecursionError(), StopIteration(), Exception("x")]
    + [ModuleNotFoundError("No module named 'neuroimagen.x'", name="neuroimagen.x")],
)
def test_a_bug_shows_its_traceback_and_is_no_fault_of_a_check(error, capsys):
    code, text = said(error, capsys)
    assert code == BUG == 70 and text.startswith("Traceback") and "please report" in text.splitlines()[-1]


def test_ctrl_c_is_quiet(capsys):
    assert said(KeyboardInterrupt(), capsys) == (130, "")


def test_where_a_sentence_came_from_can_be_seen(capsys, monkeypatch):
    monkeypatch.setenv("NEUROIMAGEN_TRACEBACK", "1")
    code, text = said(ValueError("a sentence"), capsys)
    assert code == 2 and text.startswith("Traceback") and text.endswith("error: a sentence\n")


@pytest.mark.parametrize("rank, head", [("0", "error: x"), ("3", "error (rank 3): x")])
def test_the_rank_is_named(rank, head, capsys, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    assert said(ValueError("x"), capsys)[1] == head + "\n"


def test_the_file_is_named_where_a_library_does_not(tmp_path, capsys):
    weights, table = tmp_path / "model.safetensors", tmp_path / "rows.json"
    weights.write_bytes(b"\xff" * 100)
    table.write_text('{"a": ')

    def read_json():
        path = table
        return json.loads(path.read_text())

    for work, path in ((lambda: load_file(str(weights)), weights), (read_json, table)):
        assert exit_code(work) == 2
        assert capsys.readouterr().err.startswith(f"error: {path}: ")


def test_a_disk_that_is_full_is_named(tmp_path, capsys):
    def fill():
        path = tmp_path / "full"
        path.symlink_to("/dev/full")
        path.write_text("x")

    assert exit_code(fill) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/full: No space left on device; make room and give the same command\n"
    )


def test_a_full_standard_output_is_a_sentence():
    with open("/dev/full", "w", encoding="utf-8") as full:
        call = [sys.executable, "-m", "neuroimagen.cli", "simulate", "--help"]
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "error: " in done.stderr and "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_that_cannot_be_imported(monkeypatch, capsys):
    """E.g. torch for another CUDA."""
    monkeypatch.setitem(sys.modules, "neuroimagen.simulation.study", None)
    assert main(["simulate", "out=x"]) == BUG
    assert "Traceback" in capsys.readouterr().err
