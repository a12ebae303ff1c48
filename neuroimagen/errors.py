"""How a command ends: its exit code, and one sentence for an error that the user can do something about; and how
libraries load in silence, so that what is printed is ours."""

import contextlib
import errno
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
BUG = 70  # EX_SOFTWARE of sysexits.h; not python's 1, which says that a check found faults
ELSEWHERE = "take another place, or ask its owner for the right"
REMEDIES = {
    errno.ENOENT: "name one that is there, or a place that can be written",
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.EROFS: "take a place that can be written",
    errno.ENOSPC: "make room and give the same command",
    errno.EDQUOT: "make room and give the same command",
    errno.EISDIR: "a folder is where a file is needed",
    errno.ENOTDIR: "a file is where a folder is needed",
    errno.EEXIST: "remove it, or take another place",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.ELOOP: "mend the link, which leads back to itself",
    errno.EMFILE: "allow more open files: ulimit -n 4096",
    errno.ENFILE: "close other programs: this machine has no more open files to give",
}
NO_MEMORY = re.compile("out of memory|can't allocate memory|_ALLOC_FAILED")
NO_PEER = re.compile(r"gloo/|Connection (closed|reset) by peer")  # gloo's; NCCL and torch's store have a class
NO_ORDER = " does not have a deterministic implementation"
# Modules whose errors are about a file or a host, without a base in common.
READERS = {"safetensors", "safetensors_rust", "huggingface_hub", "httpx", "json", "yaml", "pickle", "_pickle"}
READERS |= {"zipfile", "tarfile", "zlib", "lzma", "_lzma", "struct", "_csv", "PIL"}


def exit_code(work: Callable[[], Any]) -> int:
    """Do `work`; the code that it returns, or 0. 130 after Ctrl-C.

    2, and a sentence, for what the user can change: a mistake (ValueError), a file, the disk, memory, a library, the
    network; BUG, and the traceback, for anything else. NEUROIMAGEN_TRACEBACK=1 shows where a sentence came from.
    """
    try:
        code = work()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads our output has seen enough: cli.main
        raise
    except Exception as error:
        said = sentence(error)
        if said is None or os.environ.get("NEUROIMAGEN_TRACEBACK"):
            traceback.print_exc()
        rank = os.environ.get("RANK", "0")
        shown = said or "this is a bug of neuroimagen, not your mistake: please report the lines above"
        print(f"error{'' if rank == '0' else f' (rank {rank})'}: {shown}", file=sys.stderr, flush=True)
        return 2 if said else BUG


def sentence(error: Exception) -> str | None:
    """What to tell the user of `error`; None if it is a bug."""
    text = " ".join(str(error).split()) or type(error).__name__
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(text)):
        return (
            f"out of memory ({text[:200]}): a smaller batch_size or chunk, fewer workers or processes, or in a trainer "
            "a larger accumulate, need less"
        )
    if "EADDRINUSE" in text:
        return f"{text[:200]}: another run has MASTER_PORT, launch with another one"
    if isinstance(error, RuntimeError) and (type(error).__module__ == "torch.distributed" or NO_PEER.search(text)):
        return (
            f"the processes of this run do not reach each other ({text[:200]}): see which ended first and what it "
            "said, then give the same command; unset RANK and WORLD_SIZE if only one was launched"
        )
    if isinstance(error, RuntimeError) and NO_ORDER in text:
        what = text.partition(NO_ORDER)[0]
        return f"deterministic=true, but torch's {what}{NO_ORDER} on this device: leave it out"
    if isinstance(error, RuntimeError) and "determine home directory" in text:  # of pathlib, which the hub asks
        return "this user has no home directory, where the hub's files are kept: set HOME, or HF_HOME"
    if isinstance(error, ImportError) and not (error.name or "").startswith("neuroimagen"):
        return f"{text}: pip install -U {error.name.partition('.')[0]}" if error.name else text
    if isinstance(error, OSError) and error.errno and error.strerror == os.strerror(error.errno):
        place = _file_of(error) if error.filename is None else os.fsdecode(error.filename)
        remedy = REMEDIES.get(error.errno, "try again, or take a copy elsewhere")
        return f"{place or 'a file'}: {error.strerror}; {remedy}"
    if library in READERS or isinstance(error, (EOFError, UnicodeError)):
        place = _file_of(error)
        return f"{place}: {text}: it may be damaged or of another kind; copy or make it again" if place else text
    if isinstance(error, OSError):  # its own words, or those of a library, which may take many lines
        return error.strerror or text
    return (str(error) or text) if isinstance(error, ValueError) else None


def _file_of(error: BaseException) -> str:
    """The file that an error without a name is about: one at hand where it was raised, or where we called for that."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for value in reversed(frame.f_locals.values()):
            name = str(value if isinstance(value, (str, Path)) else getattr(value, "name", ""))
            if os.sep in name and len(name) < 4096 and os.path.lexists(name) and not os.path.isdir(name):
                return name
        if frame.f_globals.get("__name__", "").startswith("neuroimagen."):
            break
    return ""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without what transformers, diffusers and huggingface_hub say while they load a model; downloads keep their bars.

    For models that load well: what is wrong with one is raised.
    """
    loaded = [sys.modules.get(f"{name}.utils.logging") for name in ("transformers", "diffusers")]
    talkers: list[Any] = [library for library in loaded if library]
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in talkers]
    for library in talkers:
        library.set_verbosity_error()
        library.disable_progress_bar()  # of transformers the hub's too, for as long
    hub: Any = sys.modules.get("huggingface_hub.utils")
    if hub and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        hub.enable_progress_bars()
    try:
        with contextlib.redirect_stdout(None), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, (verbosity, bars) in zip(talkers, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def load_trained(kind: Any, directory: str | Path) -> Any:
    """`kind.from_pretrained` of one of our models; ValueError with its directory if it is damaged."""
    try:
        with quiet_libraries():
            return kind.from_pretrained(str(directory))
    except Exception as error:  # a damaged model can raise anything
        reason = " ".join(str(error).split())[:300].rstrip()
        raise ValueError(f"{directory} cannot be loaded ({reason}): copy it anew, or train it again") from None


def load_published(model: str, load: Callable[[], T]) -> T:
    """`load()` of somebody's model, a hub id or directory; ValueError, `model=` with what is wrong, if it cannot."""
    if not Path(model).is_dir() and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise ValueError(f"model={model} is neither a directory nor a hub id (owner/name)")
    try:
        with quiet_libraries():
            return load()
    except Exception as error:  # a damaged model can raise anything
        raise ValueError(f"model={model} cannot be loaded: {' '.join(str(error).split())[:300].rstrip()}") from None
