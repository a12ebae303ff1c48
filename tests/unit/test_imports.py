"""What a trainer's data path imports: not the libraries that read studies, nor those of diffusion models."""

import subprocess
import sys
from pathlib import Path

import pytest

OURS = ("batches.stream", "batches.pictures", "run.run", "shards.format", "pixel.losses", "sample.encoder")
TRAINERS = (  # not the diffusion's
    *("pixel_features", "pixel_saliency", "sample_semantics", "contrastive", "brain2image", "neurovision"),
)
# torchmetrics imports transformers and scipy.signal by itself; torch, accelerate and webdataset none of these.
FOREIGN = ("transformers", "diffusers", "mne", "scipy.signal", "torchmetrics", "neuroimagen.studies.signal")


@pytest.mark.parametrize("modules", [[f"neuroimagen.{name}" for name in OURS], TRAINERS], ids=["library", "trainers"])
def test_the_data_path_imports_no_foreign_library(modules):
    script = f"import sys; sys.path.append({str(Path(__file__).parents[2] / 'trainers')!r})\n"
    script += f"import {', '.join(modules)}\nprint(*(name for name in {FOREIGN} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
