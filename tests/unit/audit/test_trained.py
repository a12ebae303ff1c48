"""What stage 2 names on test, by variant and seed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_pipeline, tiny_shards, tiny_stage_runs

from neuroimagen.audit.audit import balanced, named, trained
from neuroimagen.errors import load_trained
from neuroimagen.sample.captions import embed_captions
from neuroimagen.sample.encoder import SampleEncoder
from neuroimagen.shards.format import ShardSplit


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as launch/audit.sh leaves it: two runs of `honest`, one of `shuffled`, and one that is not finished."""
    root = tmp_path_factory.mktemp("audited")
    pipeline = tiny_pipeline(root / "pipeline")
    run = tiny_stage_runs(root / "runs", pipeline)["semantics_label"]
    model = load_trained(SampleEncoder, Path(run) / "model")
    model.output.weight.data *= 300  # so that it matters what EEG it gets
    model.save_pretrained(str(Path(run) / "model"))
    for variant, seeds in {"honest": (2, 10), "shuffled": (0,)}.items():
        shards = tiny_shards(root / "audit" / variant / "shards")
        manifest = json.loads((shards / "manifest.json").read_text())
        manifest |= {"channel_mean": [0.5, 0, 1, -2], "channel_std": [1, 2, 3, 0.5]}
        (shards / "manifest.json").write_text(json.dumps(manifest))
        for seed in seeds:
            shutil.copytree(run, root / "audit" / variant / f"seed-{seed}")
    shutil.copytree(run, root / "audit" / "shuffled" / "seed-1")
    (root / "audit" / "shuffled" / "seed-1" / "DONE").unlink()
    (root / "audit" / "jobs").mkdir()
    return root / "audit"


def test_scores_are_distances_to_the_captions_of_the_classes(audited: Path) -> None:
    """By hand, of one trial, with the statistics of the manifest."""
    scores, labels = named(audited / "honest/seed-2", audited / "honest/shards")
    split = ShardSplit(audited / "honest/shards", "test")
    assert scores.shape == (len(split), len(split.manifest.classes))
    model = load_trained(SampleEncoder, audited / "honest/seed-2/model").eval()
    i, about = len(split) - 1, split.manifest
    eeg = (split.eeg(i).T - about.channel_mean) / about.channel_std
    with torch.no_grad():
        h_clip = model(torch.tensor(eeg.T[None], dtype=torch.float32))[0]
    for known in about.classes:
        target = embed_captions(audited.parent / "pipeline", [f"An image of {known['name']}"])[0]
        distance = (h_clip - target).square().sum().sqrt().item()
        assert np.isclose(scores[i, known["label"]], -distance, rtol=1e-4)
    assert labels[i] == split.info(i)["label"]


def test_classes_count_alike() -> None:
    """Class 0: 3 of 4 right; class 2: 0 of 1; class 1 is not in test."""
    label, guess = np.array([0, 0, 0, 0, 2]), [0, 0, 0, 1, 0]
    assert balanced(np.eye(3)[guess], label) == pytest.approx(0.75 / 2)


def test_finished_runs_by_variant_and_seed(audited: Path, tmp_path: Path) -> None:
    found = trained(audited)
    assert list(found) == ["honest", "shuffled"]
    assert [found[name]["seeds"] for name in found] == [[2, 10], [0]]
    values = found["honest"]["values"]
    assert values[0] == values[1] == found["honest"]["value"] == found["shuffled"]["value"]  # the same model, thrice
    assert found["honest"]["spread"] == 0 and found["shuffled"]["spread"] is None
    split = ShardSplit(audited / "honest/shards", "test")
    labels = {split.info(i)["label"] for i in range(len(split))}
    assert (found["honest"]["chance"], found["honest"]["n"]) == (1 / len(labels), len(split))
    assert trained(tmp_path) == {}
