"""What a machine may lack, or bring along: rights, room, open files, memory; variables that change numbers."""

import contextlib
import errno
import os
import re
import resource
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from neuroimagen.text_files import encode

# An OSError with one of these tells of the file that was asked for: it is not there. Those of decoders have none.
OF_THE_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)

# Variable -> the values that ask for nothing. What asks accelerate for another way to train than the config's:
WAYS = ("USE_FSDP", "USE_MEGATRON_LM", "USE_PARALLELISM_CONFIG", "USE_SAGEMAKER", "FP8_BACKEND")
OTHER_WAYS = dict.fromkeys([f"ACCELERATE_{way}" for way in WAYS], ("", "0", "false", "no"))
# ... and what lets oneDNN multiply fp32 with fewer bits.
FEWER_BITS = dict.fromkeys(("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"), ("", "strict"))
# Variables by which libraries choose kernels, threads, algorithms or sources, which may change the last bits or more.
READ_BY_LIBRARIES = re.compile(
    r"(ACCELERATE|AT|ATEN|BLIS|CUBLAS\w*|CUDA|CUDNN|DEEPSPEED|DIFFUSERS|(ONE)?DNNL?|DS|FBGEMM|FLASH_ATTENTION|FSDP|GLOO"
    r"|GOMP|GOPEN|HF|HIP\w*|HSA|HUGGINGFACE|KMP|MEGATRON_LM|MIOPEN|MKL|MKLDNN|MNE|NCCL|NPY|NUMBA|NUMEXPR|NUMPY|NVIDIA|OMP"
    r"|OPENBLAS|PARALLELISM_CONFIG|PYTORCH|ROCBLAS|SCIPY|TORCH\w*|TRANSFORMERS|TRITON|USE_HUB|VECLIB|WDS|XLA)_.+"
    r"|PYTHONHASHSEED|PYTHONOPTIMIZE|LD_PRELOAD|LD_LIBRARY_PATH"
)
SECRET = re.compile(r"\A\w*(TOKEN|KEY|SECRET|PASSW|CREDENTIAL)\w*=|://[^/]*@")


def pass_on(error: BaseException) -> None:
    """Raise an OSError if `error` tells of this machine and nothing of the file that was being read.

    So running out of files or memory, a disk or network that does not answer, and rights that are lacking are never
    taken for damage. Call it before an error of reading is turned into a sentence about the file.
    """
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and "out of memory" in str(error)):  # PIL's
        code = errno.ENOMEM
    if code in OF_THE_FILE:
        return
    said = getattr(error, "strerror", None) or os.strerror(code or 0)
    if code == errno.EMFILE:
        said += f", ulimit -n is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} here: raise it"
    raise OSError(code, said, getattr(error, "filename", None)) from None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside names `path`, if it names nothing: which disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old or the new content whole; text as UTF-8."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(encode(content) if isinstance(content, str) else content)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # of a file system that cannot be written
            partial.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def share_weights(folder: Path) -> None:
    """Give the weights below `folder` the rights that any other new file gets there; safetensors makes them private."""
    probe = folder / ".rights"
    probe.touch()
    rights = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*.safetensors"):
        path.chmod(rights)


def refuse_variables(harmless: Mapping[str, tuple[str, ...]], effect: str) -> None:
    """Raise ValueError if the environment has one of these with a value that is not harmless."""
    for name, values in harmless.items():
        if (value := os.environ.get(name, "")).lower() not in values:
            raise ValueError(f"the environment has {name}={value}, {effect}: unset it")


def variables() -> dict[str, str]:
    """The environment's variables that may change numbers; of secrets only that they are there."""
    found = {name: value for name, value in sorted(os.environ.items()) if READ_BY_LIBRARIES.fullmatch(name)}
    return {name: "(set)" if SECRET.search(f"{name}={value}") else value for name, value in found.items()}
