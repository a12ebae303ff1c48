"""A small study whose EEG is a code of the picture and noise, and a finished contrastive run on it, untrained."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from tiny_models import tiny_features

from neuroimagen.contrastive.encoder import ContrastiveEncoder
from neuroimagen.features.format import read_features
from neuroimagen.run import inputs
from neuroimagen.shards.pack import ShardsConfig, make_shards

WNIDS = ["n02389026", "n03888257", "n03584829", "n02607072"]


def make_shards_of(folder: Path, repetitions=((3, 2), (2, 3)), in_test=4, noise=1.0, seed=0) -> Path:
    """4 classes, of each 2 pictures in train, 2 in val and `in_test` in test. repetitions: of each person, in turn for
    even and odd pictures."""
    rng = np.random.default_rng(seed)
    each = 4 + in_test
    images = [f"{wnid}_{i}" for wnid in WNIDS for i in range(each)]
    codes = rng.standard_normal((len(images), 4, 500)).astype(np.float32)
    trials = [
        {"image": p, "label": p // each, "subject": subject, "eeg": torch.from_numpy(codes[p] + noise * eeg)}
        for subject, times in enumerate(repetitions, 1)
        for p in range(len(images))
        for eeg in rng.standard_normal((times[p % 2], 4, 500)).astype(np.float32)
    ]
    trials = [trials[i] for i in rng.permutation(len(trials))]
    study, shards = folder / "study", folder / "shards"
    for image in images:
        file = study / "images" / image.partition("_")[0] / f"{image}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        colours = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((60, 60), Image.Resampling.BICUBIC).save(file)
    torch.save({"dataset": trials, "labels": WNIDS, "images": images}, study / "eeg.pth")
    place = [trial["image"] % each for trial in trials]
    parts = {"train": (0, 2), "val": (2, 4), "test": (4, each)}
    splits = {name: [i for i, p in enumerate(place) if a <= p < b] for name, (a, b) in parts.items()}
    torch.save({"splits": [splits]}, study / "splits.pth")
    files = {"eeg": str(study / "eeg.pth"), "splits_file": str(study / "splits.pth"), "images": str(study / "images")}
    make_shards(ShardsConfig(out=str(shards), **files, splits="official", n_chans=4))
    return shards


def make_run(folder: Path, shards: Path, kinds=(("picture", 24, "image"),), name="run", **config) -> Path:
    """kinds: name, width and kind of each features file, random numbers unless it is there; config: the run's."""
    run = folder / name
    files = {file: folder / f"{file}.safetensors" for file, _, _ in kinds}
    for file, width, kind in kinds:
        if not files[file].exists():
            tiny_features(files[file], shards, width, kind)
    found = {file: read_features(path) for file, path in files.items()}
    torch.manual_seed(0)
    targets = {file: f.about | {"width": f.width, "place": i} for i, (file, f) in enumerate(found.items())}
    model = ContrastiveEncoder(4, 440, targets, encoder="conv", encoder_width=4, n_features=16).eval()
    vectors = torch.cat([f.vectors for f in found.values()], 1)
    model.set_targets(vectors, torch.ones(len(vectors)))
    model.save_pretrained(run / "model")
    by_kind = {k: [str(files[file]) for file, _, kind in kinds if kind == k] for k in ("image", "text")}
    content = {"shards": str(shards), "features": by_kind["image"], "text_features": (by_kind["text"] or [""])[0]}
    (run / "config.yaml").write_text(yaml.safe_dump(content | config))
    kept = {"shards": {"path": str(shards), "content": inputs.of_shards(shards)}}
    (run / "inputs.json").write_text(json.dumps(kept))
    (run / "DONE").touch()
    return run
