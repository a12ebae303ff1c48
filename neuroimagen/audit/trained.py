"""The networks that launch/audit.sh trained, on the test split of their own variant: beside the linear decoders.

OUT/<variant>/shards holds a variant, OUT/<variant>/seed-<k> a finished run of stage 2 on its train split, with the
names of the classes as captions.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from neuroimagen.audit.statistics import averaged
from neuroimagen.errors import load_trained
from neuroimagen.run.directory import open_run
from neuroimagen.sample.captions import embed_captions
from neuroimagen.sample.encoder import SampleEncoder
from neuroimagen.shards.format import ShardSplit
from neuroimagen.studies.captions import label_caption

BATCH = 64  # trials decoded at once


@torch.no_grad()
def named(run: Path, shards: Path) -> tuple[np.ndarray, np.ndarray]:
    """What a finished run decodes from the test split of its shards, and labels. ValueError if either cannot be read.

    Of n trials (n, n_classes): minus the distance of h_clip to each class's caption; and (n,).
    """
    split = ShardSplit(shards, "test")
    about = split.manifest
    config = yaml.safe_load((open_run(run, "semantics_label") / "config.yaml").read_text(encoding="utf-8"))
    names = {c["label"]: c["name"] for c in about.classes}
    captions = embed_captions(config["pipeline"], [label_caption(names[label]) for label in sorted(names)]).flatten(1)
    model = load_trained(SampleEncoder, run / "model").eval()
    mean, std = (np.array(x)[:, None] for x in (about.channel_mean, about.channel_std))
    scores = np.full((len(split), max(names) + 1), -np.inf)
    for rows in np.split(np.arange(len(split)), range(BATCH, len(split), BATCH)):
        eeg = np.stack([(split.eeg(int(i)) - mean) / std for i in rows]).astype(np.float32)
        h_clip = model(torch.from_numpy(eeg)).flatten(1)
        scores[np.ix_(rows, sorted(names))] = -torch.cdist(h_clip, captions).numpy()
    return scores, np.array([split.info(i)["label"] for i in range(len(split))])


def balanced(scores: np.ndarray, label: np.ndarray) -> float:
    """Mean over the classes of test of the share of a class's trials whose largest score is its own."""
    return float(averaged(scores.argmax(1) == label, label)[0].mean())


def trained(out: Path) -> dict[str, dict[str, Any]]:
    """Variant -> balanced accuracy of its finished runs, by seed, their mean, spread and chance; {}: there are none."""
    found: dict[str, dict[str, Any]] = {}
    for shards in sorted(out.glob("*/shards")):
        runs = {int(run.parent.name.removeprefix("seed-")): run.parent for run in shards.parent.glob("seed-*/DONE")}
        each = [named(runs[seed], shards) for seed in sorted(runs)]
        if each:
            values, label = [balanced(*one) for one in each], each[0][1]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            about = {"seeds": sorted(runs), "values": values, "value": float(np.mean(values)), "spread": spread}
            found[shards.parent.name] = about | {"chance": 1 / len(np.unique(label)), "n": len(label)}
    return found
