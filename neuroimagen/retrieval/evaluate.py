"""`neuroimagen evaluate RUN` of a contrastive run: is the picture that was seen found among all those of the split?

Writes RUN/retrieval.json and RUN/retrieval.html; of split=val, to choose by, RUN/retrieval.val.json and .html. What
each number is: docs/retrieval.md.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from neuroimagen.config import Limited, option, path_option
from neuroimagen.files import busy, write_atomic
from neuroimagen.pages import render
from neuroimagen.retrieval import ranks
from neuroimagen.retrieval.page import write_page
from neuroimagen.retrieval.queries import KINDS, K, Queries
from neuroimagen.run import inputs
from neuroimagen.run.collectives import decided_by_main
from neuroimagen.run.processes import leave_process_group, make_accelerator
from neuroimagen.scores.classifiers import pick_device
from neuroimagen.scores.intervals import bootstrap_means

VERSION = 1  # of retrieval.json
ALIKE = {"csls_top1": "top1", "csls_top5": "top5", "matched": "top1"}  # whose chance it has
MOST_MATCHED = 5000  # pictures of transductive scores, which hold the whole matrix


@dataclasses.dataclass
class RetrievalConfig(Limited):
    run: str = path_option(help="a finished run of trainers/contrastive.py; retrieval.json and .html are written there")
    split: Literal["test", "val"] = option("test", "val, to choose by, is written to retrieval.val.json and .html")
    shards: str = path_option("", "where the run's shards are now, if they have moved")
    features: list[str] = path_option([], "where the run's features files are now, all of them, if they have moved")
    transductive: bool = option(False, "also scores that use all queries at once, as no real decoder can")
    batch_size: int = option(256, "queries at once through the encoder, for speed alone", at_least=1)
    device: str = option("auto", "auto | cpu | cuda")


def estimates(
    values: ranks.Found, gallery: ranks.Gallery, pictures: np.ndarray, null: np.ndarray | None = None
) -> dict[str, dict[str, Any]]:
    """Metric -> mean of its values (n,), its interval over pictures (n,), chance and, of some, p."""
    names = list(values)
    means = bootstrap_means(np.stack([*values.values()], 1), pictures, [name != "rank" for name in names])
    found = {name: mean._asdict() for name, mean in zip(names, means, strict=True)}
    if "rank" in found:
        found["median"] = {"value": float(np.median(values["rank"])), "low": None, "high": None, "n": means[0].n}
    chance = gallery.chance
    if gallery.shared:
        chance = chance | {"map": float(gallery.chance_of_class[gallery.of_class[pictures]].mean())}
    for name, p in ranks.p_values(null).items() if null is not None else ():
        found[name]["p"] = p
    return {name: e | {"chance": chance.get(ALIKE.get(name, name))} for name, e in found.items()}


def numbers(queries: Queries, asked: ranks.Found, found: dict[str, ranks.Found]) -> dict[str, Any]:
    """What retrieval.json holds, but for config and inputs."""
    kind, picture, who = asked["kind"], queries.picture[asked["trial"]], queries.subject[asked["trial"]]
    people, own = len(queries.people), queries.own
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    values = {target: gallery.values(found[target]) for target, gallery in queries.galleries.items()}
    for target, gallery in queries.galleries.items():
        rows[target] = {KINDS[k]: {} for k in queries.kinds}
        for k in queries.kinds:
            null = found[target]["null"][k * people : (k + 1) * people]
            groups = {"all": (kind == k, null.sum(0))}
            if k != 3 and people > 1:
                each = enumerate(queries.people)
                groups |= {f"subject {name}": ((kind == k) & (who == s), null[s]) for s, name in each}
            for group, (mask, sums) in groups.items():
                if mask.any():
                    chosen = {name: v[mask] for name, v in values[target].items()}
                    rows[target][KINDS[k]][group] = estimates(chosen, gallery, picture[mask], sums)
    gallery, m = queries.galleries[own], len(queries.labels)
    repetitions = []
    for k in [1, *queries.ks] if queries.ks else []:
        mask = kind == (K + k if k > 1 else 0)
        chosen = {name: values[own][name][mask] for name in ("top1", "top5") if name in values[own]}
        repetitions.append({"k": k, "queries": int(mask.sum())} | estimates(chosen, gallery, picture[mask]))
    sizes = [2**i for i in range(1, m.bit_length()) if 2**i < m] + [m]
    curves = {}
    for k in queries.kinds:
        above, tied = (found[own][name][kind == k] for name in ("above", "tied"))
        curves[KINDS[k]] = [[n, float(ranks.expected(ranks.n_way_table(m, n), above, tied).mean())] for n in sizes]
    retrieved = found[own]["retrieved"][:people].sum(0)
    hubs = [
        {"picture": int(p), "name": queries.names[p], "n": float(retrieved[p])} for p in np.argsort(-retrieved)[:10]
    ]
    manifest = queries.split.manifest
    return {
        "format": "neuroimagen-retrieval",
        "version": VERSION,
        "simulated": manifest.simulated,
        **({"mark": manifest.mark} if manifest.mark else {}),
        "dataset": manifest.dataset,
        "protocol": manifest.protocol,
        "split": queries.config.split,
        "gallery": m,
        "classes": len(set(queries.labels.tolist())),
        "trials": len(queries.split),
        "subjects": people,
        "repetitions": queries.most,
        "averaged": queries.averaged,
        "map_by": "class" if gallery.shared else "picture",
        "targets": {name: {"weights": w} for name, w in queries.targets.items()},
        "own": own,
        "permutations": ranks.PERMUTATIONS,
        "interval": "95 % bootstrap over pictures, as in scores.json; the gallery stays whole",
        "rows": rows,
        "curves": {"repetitions": repetitions, "gallery": curves},
        "hubness": ranks.hubness(retrieved, gallery.k) | {"hubs": hubs, "even": float(retrieved.mean())},
        **({"transductive": transductive(queries, asked)} if queries.config.transductive else {}),
    }


def transductive(queries: Queries, asked: ranks.Found) -> dict[str, dict[str, Any]]:
    """Of each kind that asks for a picture once a person: metric -> estimate, over all people's sets of queries."""
    kind, picture, who = asked["kind"], queries.picture[asked["trial"]], queries.subject[asked["trial"]]
    gallery, rows = queries.galleries[queries.own], {}
    vectors, z = gallery.vectors.cpu(), torch.from_numpy(asked["z"])
    for k in queries.kinds[1 in queries.kinds :]:  # without "trial", where a person saw a picture twice
        people = range(1 if k == 3 else len(queries.people))
        sets = [np.flatnonzero((kind == k) & ((who == s) | (k == 3))) for s in people]
        each = [ranks.transductive(z[i], vectors, picture[i]) for i in sets]
        values = {name: np.concatenate([found[name] for found in each]) for name in each[0]}
        rows[KINDS[k]] = estimates(values, gallery, picture[np.concatenate(sets)])
    return rows


def evaluate(config: RetrievalConfig) -> dict[str, Any]:
    """The command. Under `accelerate launch` the processes share the trials; the first writes. Collective: every rank.

    Returns what retrieval.json holds.
    """
    device, alone = pick_device(config.device), int(os.environ.get("WORLD_SIZE", 1)) == 1
    accelerator = None if alone else make_accelerator("fp32")
    if accelerator and config.device == "auto":
        device = accelerator.device
    path, ending = Path(config.run), "" if config.split == "test" else f".{config.split}"
    with busy(path / "evaluate.lock"):
        queries = Queries(config, device)
        if config.transductive and len(queries.labels) > MOST_MATCHED:
            raise ValueError(
                f"transductive=true: {len(queries.labels)} pictures are more than {MOST_MATCHED}: leave it out"
            )
        asked, found = queries.ask()

        def write() -> dict[str, Any]:
            report = numbers(queries, asked, found)
            report |= {"config": vars(config), "made_of": inputs.digests(queries.made_of)}
            write_atomic(path / f"retrieval{ending}.json", json.dumps(report, indent=1) + "\n")
            write_page(path / f"retrieval{ending}.html", report, queries, asked, found[queries.own])
            shown = {"report": report, "page": path / f"retrieval{ending}.html"}
            print(render("retrieval/templates/summary.j2", **shown), end="")
            return report

        report = decided_by_main(write)
    if accelerator:
        leave_process_group()
    return report
