"""Variables of the environment that would change the numbers of a run: refused, or recorded."""

import os
import re
from collections.abc import Mapping

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


def refuse_variables(harmless: Mapping[str, tuple[str, ...]], effect: str) -> None:
    """Raise ValueError if the environment has one of these with a value that is not harmless."""
    for name, values in harmless.items():
        if (value := os.environ.get(name, "")).lower() not in values:
            raise ValueError(f"the environment has {name}={value}, {effect}: unset it")


def variables() -> dict[str, str]:
    """The environment's variables that may change numbers; of secrets only that they are there."""
    found = {name: value for name, value in sorted(os.environ.items()) if READ_BY_LIBRARIES.fullmatch(name)}
    return {name: "(set)" if SECRET.search(f"{name}={value}") else value for name, value in found.items()}
