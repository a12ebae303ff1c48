"""`neuroimagen plan`: what it says is what comes to be, and nothing that is wrong waits for its stage."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neuroimagen.pixel.saliency import Discriminator
from neuroimagen.planning.counts import numbers, of_shards, of_study
from neuroimagen.planning.plan import Plan, PlanConfig
from neuroimagen.planning.rehearsal import whole

REPO = Path(__file__).parents[2]
NETWORK = "encoder: conv, encoder_width: 32, global_batch_size: 8, workers: 0"
OVERLAY = """\
shards: {{dataset: perceivelab, eeg: {study}/study/eeg.pth, images: {study}/study/images, splits: by_image}}
pixel_features: {{{network}, max_steps: 4, checkpoint_every: 2}}
pixel_saliency: {{image_size: 32, z_dim: 8, generator_width: 16, discriminator_width: 16, global_batch_size: 8,
                 max_steps: 3, checkpoint_every: 2, workers: 0, finetune_features: {finetune}}}
sample_semantics: {{{network}, pipeline: {study}/pipeline, max_steps: 2, checkpoint_every: 0}}
brain2image: {{{network}, image_size: 32, width: 16, norm: group, classifier_steps: 1, max_steps: 2}}
neurovision: {{{network}, image_size: 16, z_dim: 16, width: 32, max_width: 64, classifier_steps: 1, phase_steps: 1,
              max_steps: 6}}
reconstruct: {{pipeline: {study}/pipeline, samples: 2, num_inference_steps: 2, limit: 3, chunk: 3}}
"""


@pytest.fixture
def planned(study, tmp_path, monkeypatch):
    """planned(**what differs in OVERLAY) -> the config of a plan"""
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("CAPTIONS", f"{study.folder}/study/captions.jsonl")
    monkeypatch.setenv("LAUNCH", "python")

    def config(overlay: str = OVERLAY, finetune: str = "false", **fields) -> PlanConfig:
        text = overlay.format(study=study.folder, network=NETWORK, finetune=finetune)
        (tmp_path / "overlay.yaml").write_text(text)
        return PlanConfig([str(tmp_path / "overlay.yaml")], runs=str(tmp_path / "runs"), **fields)

    return config


def size(*folders: Path) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("finetune", ["false", "true"])
def test_the_disk_that_is_planned_is_the_disk_that_is_filled(planned, finetune, start, tmp_path, monkeypatch):
    if finetune == "true":  # what it changes, alone
        monkeypatch.setenv("BASELINES", "")
    plan = Plan(planned(finetune=finetune))
    assert plan.faults == []
    rows, runs = {row.name: row for row in plan.rows()}, tmp_path / "runs"
    assert not runs.exists()
    for step in plan.steps:
        if step.name in rows and step.name not in ("evaluate", "report"):
            command = [*step.words] if step.words[0].endswith(".py") else ["-m", "neuroimagen.cli", *step.words[1:]]
            processes = start(command, 1)
            assert processes.wait() == [0], processes.log.read_text()[-3000:]
    for name, row in rows.items():
        if "steps" in row.work:
            assert row.disk == pytest.approx(size(runs / name / "checkpoints", runs / name / "model"), rel=0.1), name
    assert rows["shards"].disk == pytest.approx(size(runs / "shards"), rel=0.1)
    drawn = len(list((runs / "reconstruct" / "images").rglob("*.png")))
    assert rows["reconstruct"].work == f"{drawn} pictures of 64 px"
    assert plan.counts and plan.counts.png(64) == pytest.approx(size(runs / "reconstruct" / "truth") / 3, rel=0.1)

    again = Plan(planned(finetune=finetune))  # now by what lies there
    assert again.counts and (again.counts.trials, again.counts.shape) == (plan.counts.trials, plan.counts.shape)
    told = {row.name: row for row in again.rows()}
    assert all(told[name].source == "done" and told[name].seconds for name, row in rows.items() if "steps" in row.work)
    pictures = size(*(runs / "reconstruct" / part for part in ("images", "truth", "maps")))
    assert told["reconstruct"].disk == pytest.approx(pictures, rel=0.1)


def test_what_is_wrong_in_a_late_stage_is_said_before_the_first_one_starts(planned, tmp_path):
    wrong = OVERLAY.replace("limit: 3", "limit: 0") + "evaluate: {{n_wayy: 3}}\n"
    wrong = wrong.replace("norm: group, classifier_steps: 1", "norm: group, classifier_steps: 9, eeg_shift: 2")
    faults = Plan(planned(wrong)).faults
    assert [fault.partition(":")[0] for fault in faults] == [
        "brain2image",
        "brain2image_vae",
        "reconstruct",
        "evaluate",
    ]
    assert "classifier_steps=9" in faults[0] and "limit=0" in faults[2] and "'n_way'" in faults[3]
    (fault,) = set(Plan(planned(OVERLAY.replace("max_steps: 4,", "max_steps: 4, eeg_shift: 2,"))).faults)
    assert fault.startswith("pixel_features: eeg_shift=2 s is not within a trial")
    assert not (tmp_path / "runs").exists()


def test_what_is_not_there_is_said(planned, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPTIONS", "none.jsonl")
    monkeypatch.setenv("LAUNCH", "accelerate launch --config_file launch/one_node.yaml --num_processes 3")
    faults = Plan(planned(OVERLAY.replace("eeg.pth", "other.pth"))).faults
    assert len(faults) == 2 and "other.pth does not exist" in faults[1]
    assert faults[0].startswith("captions: please give images=")  # there is no such file, so BLIP would write it
    monkeypatch.setenv("CAPTIONS", "none")
    faults = Plan(planned()).faults
    assert "pixel_features: global_batch_size=8 does not divide among 3 processes" in faults
    monkeypatch.setenv("BASELINES", "vae")
    with pytest.raises(ValueError, match="BASELINES names vae"):
        Plan(planned())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="root of the repository"):
        Plan(planned())


def test_how_many_processes_there_will_be(planned, tmp_path, monkeypatch):
    def processes(mode: str) -> dict[str, int | None]:
        return {step.name: step.processes for step in Plan(planned(mode=mode)).steps}

    monkeypatch.setenv("RECONSTRUCT_LAUNCH", "accelerate launch --config_file launch/one_node.yaml")
    local = processes("local")
    assert (local["shards"], local["pixel_features"], local["reconstruct"], local["report"]) == (1, 1, 2, 1)
    (tmp_path / "site.sh").write_text('TRAIN_OPTIONS="-N 2 --gpus-per-node=a100:4"\n')
    monkeypatch.setenv("SITE", str(tmp_path / "site.sh"))
    slurm = processes("slurm")
    assert (slurm["shards"], slurm["pixel_features"], slurm["evaluate"]) == (1, 8, 8)
    monkeypatch.setenv("SITE", str(tmp_path / "none"))
    assert processes("slurm")["pixel_features"] is None  # SLURM says it


def test_shards_and_their_study_are_counted_alike(planned, study):
    from_files, from_shards = of_study(Plan(planned()).configs["shards"]), of_shards(study.shards)
    for name in ("title", "shape", "sfreq", "trials"):
        assert getattr(from_files, name) == getattr(from_shards, name)
    assert from_files.shards == pytest.approx(from_shards.shards, rel=0.1)


def test_steps_are_measured_and_nothing_is_left_of_it(planned, tmp_path):
    config = planned()
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "neuroimagen.cli", "plan", *config.overlays, f"runs={config.runs}", "measure=2000"]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "temporary")}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if " steps of " in line}
    assert len(lines) == 7 and all(line[-1] == "m" and ">=" not in line for line in lines.values()), done.stdout
    assert not (tmp_path / "runs").exists() and not list((tmp_path / "temporary").iterdir())
    commands = done.stdout.partition("launch/paper.sh would give:\n")[2].splitlines()
    assert commands[1].startswith("python trainers/pixel_features.py config=") and len(commands) == 12


def test_a_schedule_that_changes_is_counted_part_by_part():
    plain = SimpleNamespace(max_steps=10)
    assert whole(plain, [9.0, 1.0, 3.0, 1.0]) == 10.0
    two_parts = SimpleNamespace(max_steps=10, classifier_steps=4)
    assert whole(two_parts, [9.0, 1.0, 8.0, 2.0]) == 4 * 1.0 + 6 * 2.0
    growing = SimpleNamespace(max_steps=40, classifier_steps=4, phase_steps=5, image_size=16)  # 5 phases: 25 steps
    assert whole(growing, [9.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]) == 4 * 1.0 + 5 * 13.0 + 11 * 4.0
    assert whole(growing, [9.0, 1.0, 1.0, 2.0]) is None  # cut off before the last one


def test_spectral_norms_are_counted():
    network = Discriminator(8, 16, 4)
    saved = sum(tensor.numel() for tensor in network.state_dict().values() if tensor.dtype == torch.float32)
    assert numbers([network], buffers=True) == saved
