"""What is reported on val is what the exported model finds there, computed anew by numpy."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_features, tiny_shards

from neuroimagen.batches.stream import Batcher
from neuroimagen.config import load_config
from neuroimagen.contrastive.encoder import ContrastiveEncoder
from neuroimagen.contrastive.targets import Targets
from neuroimagen.features.format import picture_digests, read_features
from neuroimagen.shards.format import ShardSplit

TRAINER = Path(__file__).parents[3] / "trainers" / "contrastive.py"


@pytest.mark.parametrize("held_out", [0, 1])
def test_retrieval_on_val(held_out, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    shards = tiny_shards(tmp_path / "shards")
    paths = [tiny_features(tmp_path / f"{name}.safetensors", shards, width) for name, width in (("a", 5), ("b", 3))]
    main = runpy.run_path(str(TRAINER), run_name="imported")["main"]
    given = [f"shards={shards}", f"features=[{paths[0]},{paths[1]}]", f"run_dir={tmp_path}/run", "max_steps=3"]
    given += ["encoder=conv", "encoder_width=4", "n_features=6", "global_batch_size=8", f"held_out_classes={held_out}"]
    assert main(load_config(main.__annotations__["config"], given, "contrastive")) == 0
    (said,) = [json.loads(line) for line in (tmp_path / "run/stats.jsonl").read_text().splitlines() if "val/" in line]

    model = ContrastiveEncoder.from_pretrained(str(tmp_path / "run/model")).eval()
    split, files = ShardSplit(shards, "val"), [read_features(path) for path in paths]
    asked = np.flatnonzero(Targets(dict(zip("ab", files, strict=True)), str(shards), held_out, 0).truth >= 0)
    batch, digests = Batcher(split, None)(asked), [picture_digests(split)[i] for i in asked]
    pictures = sorted(set(digests))
    with torch.no_grad():
        predicted = model(batch["eeg"])
    cosine = np.zeros((len(asked), len(pictures)))
    means = np.zeros((len(pictures), len(pictures)))
    for name, file in zip("ab", files, strict=True):
        place = slice(0, 5) if name == "a" else slice(5, 8)
        mean, std = model.mean[place].numpy(), model.std[place].numpy()
        z, v = ((x.numpy() - mean) / std for x in (predicted[name], file.vectors[file.rows(pictures)]))
        z, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, v))
        cosine += z @ v.T
        means += np.stack([z[[digest == picture for digest in digests]].mean(0) for picture in pictures]) @ v.T
    own = cosine[np.arange(len(asked)), [pictures.index(digest) for digest in digests]]
    nearer = (cosine > own[:, None]).sum(1)
    of_means = (means > means.diagonal()[:, None]).sum(1)
    n = len(pictures)
    expected = {"top1": (nearer < 1).mean(), "top5": (nearer < 5).mean(), "mean_top1": (of_means < 1).mean()}
    expected |= {"mean_top5": (of_means < 5).mean(), "chance_top1": 1 / n, "chance_top5": min(1, 5 / n)}
    expected |= {"new_classes": held_out}
    assert {key.removeprefix("val/"): value for key, value in said.items() if key != "step"} == pytest.approx(expected)
    assert (n, len(asked)) == ((1, 2) if held_out else (3, 6))
