"""The networks that launch/audit.sh trained, on the test split of their own variant: beside the linear decoders.

OUT/<variant>/shards holds a variant, OUT/<variant>/seed-<k> a finished run of stage 2 on its train split, with the
names of the classes as captions.
"""

from pathlib import Path
from typing import Any, NamedTuple

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


class Named(NamedTuple):
    """Of test trials. scores: (n, n_classes), minus the distance of h_clip to each class's caption; the rest: (n,)"""

    scores: np.ndarray
    label: np.ndarray
    image: np.ndarray
    subject: np.ndarray


@torch.no_grad()
def named(run: Path, shards: Path) -> Named:
    """What a finished run decodes from the test split of its shards. ValueError if either cannot be read."""
    split = ShardSplit(shards, "test")
    about = split.manifest
    config = yaml.safe_load((open_run(run, "semantics_label") / "config.yaml").read_text(encoding="utf-8"))
    names = {c["label"]: c["name"] for c in about.classes}
    captions = embed_captions(config["pipeline"], [label_caption(names[label]) for label in sorted(names)]).flatten(1)
    model = load_trained(SampleEncoder, run / "model").eval()
    mean, std = (np.array(x)[:, None] for x in (about.channel_mean, about.channel_std))
    scores = np.full((len(split), max(names) + 1), -np.inf)
    infos = [split.info(i) for i in range(len(split))]
    for rows in np.split(np.arange(len(split)), range(BATCH, len(split), BATCH)):
        eeg = np.stack([(split.eeg(int(i)) - mean) / std for i in rows]).astype(np.float32)
        h_clip = model(torch.from_numpy(eeg), torch.tensor([infos[i]["subject"] for i in rows])).flatten(1)
        scores[np.ix_(rows, sorted(names))] = -torch.cdist(h_clip, captions).numpy()
    return Named(scores, *(np.array([info[key] for info in infos]) for key in Named._fields[1:]))


def balanced(found: Named) -> float:
    """Mean over the classes of test of the share of a class's trials whose largest score is its own."""
    return float(averaged(found.scores.argmax(1) == found.label, found.label)[0].mean())


def trained(out: Path) -> dict[str, dict[str, Any]]:
    """Variant -> balanced accuracy of its finished runs, by seed, their mean, spread and chance; {}: there are none."""
    found: dict[str, dict[str, Any]] = {}
    for shards in sorted(out.glob("*/shards")):
        runs = {int(run.parent.name.removeprefix("seed-")): run.parent for run in shards.parent.glob("seed-*/DONE")}
        each = [named(runs[seed], shards) for seed in sorted(runs)]
        if each:
            values, label = [balanced(one) for one in each], each[0].label
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            about = {"seeds": sorted(runs), "values": values, "value": float(np.mean(values)), "spread": spread}
            found[shards.parent.name] = about | {"chance": 1 / len(np.unique(label)), "n": len(label)}
    return found
