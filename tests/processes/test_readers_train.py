"""Shards made of any study train the first stage with nothing but the config changed."""

import json
from pathlib import Path

import eeg_imagenet_files
import lab_files
import pytest
import things_files

from neuroimagen.cli import main
from neuroimagen.shards.format import ShardSplit, read_manifest

REPO = Path(__file__).parents[2]

STUDIES = {
    "things_eeg2": lambda folder: things_files.write_study(folder, flavour="bare", longer=50, n_times=250, sfreq=250.0),
    "eeg_imagenet": lambda folder: eeg_imagenet_files.write_study(folder, per_class=10),
    "epochs": lambda folder: lab_files.write_epochs(folder),
}


@pytest.mark.parametrize("dataset", STUDIES)
def test_shards_of_a_study_train(dataset, start, tmp_path):
    STUDIES[dataset](tmp_path)
    overlay, shards = f"config={REPO}/configs/{dataset}.yaml", tmp_path / "shards"
    files = [f"eeg={tmp_path}/eeg", f"images={tmp_path}/images", "subject=0", f"out={shards}"]
    if dataset == "epochs":  # 3 files of 0.4 s at 100 Hz, in place of the template's
        files += [f"trials={tmp_path}/trials.csv", "splits=by_image", "resample=200", "band=[]", "window=[]"]
    assert main(["shards", overlay, *files]) == 0
    size = ["max_steps=2", "validate_every=2", "log_every=1", "global_batch_size=8", "workers=0", "encoder=conv"]
    size += ["classes_per_batch=2", "trials_per_class=4"]
    command = ["trainers/pixel_features.py", "config=configs/pixel_features.yaml", overlay, f"shards={shards}", *size]
    processes = start([*command, f"run_dir={tmp_path}/run"], world=1)
    assert processes.wait() == [0], processes.log.read_text()[-2000:]
    logged = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == [1, 2]
    assert any("val/knn_accuracy" in line for line in logged)
    made, manifest = json.loads((tmp_path / "run" / "model" / "config.json").read_text()), read_manifest(shards)
    assert (made["n_chans"], made["n_times"]) == (manifest.n_chans, manifest.n_times)
    splits = {name: ShardSplit(shards, name) for name in ("train", "val", "test")}
    labels = {name: {own.info(i)["label"] for i in range(len(own))} for name, own in splits.items()}
    assert labels["val"] <= labels["train"]
    assert labels["test"].isdisjoint(labels["train"]) == (dataset == "things_eeg2")  # zero-shot
