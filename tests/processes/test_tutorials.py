"""Every command of every tutorial in docs/start is run, on small files of the format that the page is about.

The commands are the page's, word for word, and what `neuroimagen new` writes is left as it is. What the tests make
smaller stands around them: data/ holds random files in the published formats; every command that is given overlays is
given `QUICK` as the last one (quick_python.py); the hub's cache holds small random models under the names that the
configs ask for; processes begin after their imports; there is no GPU. How pages are read and held: tests/tutorials.py.

SIZES=own leaves `QUICK` out, so that everything runs at the sizes that `neuroimagen new` wrote: an hour and more.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import eeg_imagenet_files
import numpy as np
import perceivelab_files
import pytest
import quick_python
import things_files
import yaml
from perceivelab_files import WNIDS
from tiny_models import tiny_blip2
from tutorials import REPO, START, absent, blocks, look_at, promised, unlike

from neuroimagen.studies.epochs_table import COLUMNS

LIMIT = 900 if os.environ.get("SIZES") != "own" else 7200  # s for a block
EEG = {"encoder_width": 8, "n_features": 16}
STEPS = {"max_steps": 2, "validate_every": 2, "workers": 0, "log_every": 1}
BATCH = {"global_batch_size": 8}
QUICK = {  # what a laptop's minute allows: an overlay
    "simulate": {"classes": 4, "images_per_class": 15, "n_subjects": 2, "picture_size": 64},
    "pixel_features": EEG | STEPS,
    "pixel_saliency": STEPS | BATCH | {"image_size": 16, "z_dim": 8, "generator_width": 4, "discriminator_width": 4},
    "sample_semantics": EEG | STEPS | BATCH,
    "brain2image": EEG | STEPS | BATCH | {"classifier_steps": 1, "image_size": 16, "width": 4, "norm": "group"},
    "neurovision": EEG | STEPS | BATCH | {"classifier_steps": 1, "phase_steps": 1, "image_size": 16, "width": 4},
    "reconstruct": {"samples": 1, "num_inference_steps": 2},
}
QUICK["neurovision"] |= {"max_width": 8, "max_steps": 6}


def perceivelab(data: Path) -> None:
    perceivelab_files.write_study(data, n_chans=128)
    (data / "eeg.pth").rename(data / "eeg_5_95_std.pth")
    (data / "splits.pth").rename(data / "block_splits_by_image_all.pth")
    (data / "images").rename(data / "imageNet_images")


def things_eeg2(data: Path) -> None:
    """17 channels at 100 Hz, as published."""
    concepts = {"training": [f"concept{i:03d}" for i in range(40)], "test": ["aircraft_carrier", "tick", "zebra"]}
    sizes = {"per_concept": 2, "repetitions": (4, 3), "n_chans": 17}
    things_files.write_study(data, subjects=(1, 2), concepts=concepts, **sizes)
    (data / "eeg").rename(data / "things_eeg2")
    (data / "images").rename(data / "things_images")


def eeg_imagenet(data: Path) -> None:
    eeg_imagenet_files.write_study(data, per_class=10, n_chans=62)
    (data / "eeg").rename(data / "eeg_imagenet")
    (data / "images").rename(data / "imageNet_images")


def own_recordings(data: Path) -> None:
    """The same 20 pictures as mne.Epochs of 1.2 s, as a BIDS data set, and as tables that tell two classes apart."""
    lab_files = pytest.importorskip("lab_files", reason="a lab's own files are read by mne (an extra)")
    lab_files.write_bids(data, rate=250.0)
    for seed, name in enumerate(("sub-01_run-1", "sub-01_run-2", "sub-02_run-1")):
        path = data / "epochs" / f"{name}-epo.fif"
        lab_files.write_epochs_file(path, seed, lab_files.shuffled_names(seed), tmin=-0.2, seconds=1.2)
    (data / "images").rename(data / "pictures")
    for folder, name in {"0": "houses", "1": "faces"}.items():
        (data / "pictures" / folder).rename(data / "pictures" / name)
    table = (data / "trials.csv").read_text("utf-8")
    (data / "trials.csv").write_text(table.replace(",0/", ",houses/").replace(",1/", ",faces/"), "utf-8")
    write_tables(data / "tables")


def write_tables(folder: Path, seconds: int = 44, rate: int = 256) -> None:
    """Two runs of one person, four channels; marker 1 or 2 every second."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for run in (1, 2):
        rows = ["timestamps,TP9,AF7,AF8,TP10,Marker0"]
        for i in range(seconds * rate):
            marker = 1 + i // rate % 2 if i % rate == 0 and 2 <= i // rate < seconds - 2 else 0
            rows.append(",".join([f"{i / rate:.4f}", *(f"{x:.3f}" for x in rng.normal(0, 20, 4)), str(marker)]))
        (folder / f"subject1_run{run}.csv").write_text("\n".join(rows) + "\n")


def no_data(data: Path) -> None:
    """`make demo` finds its environment made."""
    (data.parent / ".venv" / "bin").mkdir(parents=True)
    (data.parent / ".venv" / "demo-ready").touch()
    (data.parent / ".venv" / "bin" / "activate").touch()


# For the commands of a cluster: `sbatch` runs a job at once, as a task of one node, and numbers it; tests/slurm submits
# to real daemons. `module` is what site.example.sh loads CUDA with.
SLURM = {
    "module": "",
    "srun": 'while case $1 in --*) true ;; *) false ;; esac; do shift; done; exec "$@"',
    "sbatch": """
number=$(($(cat "$0.jobs" 2>/dev/null || echo 100) + 1)); echo $number >"$0.jobs"
output=slurm-%j.out array= parsable=
while case $1 in launch/*) false ;; esac; do
    case $1 in
        --output=*) output=${1#*=} ;;
        --array=*) array=${1#*=} ;;
        --parsable) parsable=yes ;;
        -N) shift ;;
        --*=* | -*) ;;
        *) echo "sbatch: $1 is no option" >&2; exit 1 ;;
    esac
    shift
done
output=${output/\\%j/$number} tasks=${array:+$(seq ${array/-/ })}
export SLURM_JOB_ID=$number SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=n1 SLURM_CPUS_ON_NODE=1
for task in ${tasks:-none}; do
    [ $task = none ] || export SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=$task
    bash "$@" >>"$output" 2>&1 || { cat "$output" >&2; exit 1; }
done
if [ $parsable ]; then echo $number; else echo Submitted batch job $number; fi
""",
}


def cluster(data: Path) -> None:
    perceivelab(data)
    no_data(data)
    for name, text in SLURM.items():
        script = data.parent / ".venv" / "bin" / name
        script.write_text(f"#!/bin/bash\n{text}\n")
        script.chmod(0o755)


DOORS = {  # files -> the pages that one reader follows with them
    perceivelab: ("perceivelab", "reviewer"),
    things_eeg2: ("things_eeg2",),
    eeg_imagenet: ("eeg_imagenet",),
    own_recordings: ("own_recordings",),
    no_data: ("no_data",),
    cluster: ("cluster",),
}
NOT_RUN = {"cluster": 2, "no_data": 1}  # blocks of these pages that are looked at only: each says why


def hub(home: Path) -> None:
    """The hub's cache with small models under the names of the configs and of the defaults."""
    from transformers import ViTConfig, ViTForImageClassification

    def place(name: str) -> Path:
        repository = home / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        (repository / "snapshots").mkdir()
        return repository / "snapshots" / ("0" * 40)

    shutil.copytree(REPO / "neuroimagen" / "embedded" / "diffusion", place("CompVis/stable-diffusion-v1-4"))
    tiny_blip2(place("Salesforce/blip2-opt-2.7b"))
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = {i: WNIDS[i] if i < len(WNIDS) else f"class {i}" for i in range(1000)}
    vit = ViTForImageClassification(ViTConfig(**size, image_size=32, patch_size=8, id2label=names, num_labels=1000))
    vit.save_pretrained(where := place("google/vit-base-patch16-224"))
    (where / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "size": 32}')


class Desk:
    """A folder as the reader's checkout: the repository's files, data/, and a shell that keeps its variables."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("configs", "launch", "trainers"):
            shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "site.sh"))
        for name in ("neuroimagen", "benchmarks", "Makefile", "setup.cfg", "constraints.txt"):
            (folder / name).symlink_to(REPO / name)
        (folder / "data").mkdir()
        machine = {"ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1", "TORCH_HOME": str(folder / "none")}
        quick = folder.parent / "quick.yaml"
        quick.write_text(yaml.safe_dump({} if os.environ.get("SIZES") == "own" else QUICK), encoding="utf-8")
        machine["QUICK_OVERLAY"] = str(quick)
        path = f"{folder / '.venv' / 'bin'}:{variables['PATH']}"
        self.variables = {**os.environ, **machine, **variables, "PATH": path}

    def __call__(self, commands: str) -> subprocess.CompletedProcess[str]:
        kept = shlex.quote(str(self.folder.parent / "variables"))  # as in the reader's one shell
        script = f"[ ! -e {kept} ] || source {kept}\n{commands}\nexport -p > {kept}"
        shell = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(
            shell, cwd=self.folder, env=self.variables, text=True, timeout=LIMIT, stdout=-1, stderr=subprocess.STDOUT
        )

    def follow(self, page: Path) -> None:
        """Do what the page says; AssertionError where it and the program part ways."""
        printed = ""
        for block in blocks(page):
            here = f"{page.name}, line {block.line}"
            if block.kind == "files":
                for line in block.text.splitlines():
                    path = re.split(r"\s{2,}", line)[0]
                    assert not absent(path, self.folder), f"{here}: {path} is not there"
            elif block.kind in ("yaml", "py"):
                path = self.folder / block.text.splitlines()[0].removeprefix("# ")
                path.write_text(block.text, encoding="utf-8")
            elif block.kind == "csv":
                assert set(block.text.splitlines()[0].split(",")) <= set(COLUMNS), here
            elif block.kind == "text":
                missing = unlike(block.text, printed)
                assert not missing, f"{here}: nothing (more) like\n{missing}\nin\n{printed}"
            elif block.not_run:
                look_at(block.text)
            else:
                done = self(block.text)
                printed = done.stdout
                if os.environ.get("SHOW"):
                    print(f"=== {here}\n{block.text}---\n{printed}")
                assert done.returncode == 0, f"{here}: exit code {done.returncode} of\n{block.text}\n{printed[-4000:]}"
        lacking = [path for path in promised(page) if absent(path, self.folder)]
        assert not lacking, f"{page.name}: nothing made these"


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("shell")
    hub(folder / "hub")
    with quick_python.commands(folder) as found:
        yield {**found, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_every_command_does_what_its_page_says(door, variables, tmp_path):
    desk = Desk(tmp_path / "desk", variables)
    door(desk.folder / "data")
    for page in DOORS[door]:
        desk.follow(START / f"{page}.md")


def test_every_tutorial_is_run():
    followed = [page for pages in DOORS.values() for page in pages]
    assert sorted(followed) == sorted(path.stem for path in START.glob("*.md"))
    pages = {page: blocks(START / f"{page}.md") for page in followed}
    assert {page: n for page, own in pages.items() if (n := sum(bool(b.not_run) for b in own))} == NOT_RUN
    assert all(any(block.kind == "sh" and not block.not_run for block in own) for own in pages.values())
    assert max(len((START / f"{page}.md").read_text(encoding="utf-8").splitlines()) for page in followed) <= 120


def test_a_page_that_parts_ways_is_noticed(tmp_path):
    assert unlike("no fault in 60 trials\n...\nfine:", "x\nno fault in 1,043 trials\n  fine:\n") == ""
    assert unlike("fine:\nno fault in 60 trials", "no fault in 60 trials\nfine:") == "no fault in 60 trials"
    assert unlike("no faults in 60 trials", "no fault in 60 trials") != ""
    (tmp_path / "sub-12").mkdir()
    assert not absent("sub-01", tmp_path) and absent("sub_01", tmp_path)
    assert look_at("neuroimagen check runs/shards report=doctor  # all\ntrue\n") == 1
    with pytest.raises(ValueError, match="Did you mean: 'report'"):
        look_at("neuroimagen check runs/shards rport=doctor")
    with pytest.raises(AssertionError):
        look_at("if true; then")
