"""Encoders and ways of learning on one simulated study whose test concepts are unseen, each with the same budget.

    python benchmarks/zoo.py [FOLDER] [SEEDS] [STEPS]        runs/zoo 1 200

A THINGS-like study (`neuroimagen simulate format=things_eeg2`), features of its pictures (`model=embedded`), then
trainers/contrastive.py in each way of WAYS, and stage 2 (LSTM, Eq. 7), whose query is the caption embedding that it
decodes; all with the same steps, batches and learning rate. Scored on test by `neuroimagen evaluate`, stage 2 by the
same ranks. Last, one way on a study without any signal. Runs that are there are kept: the same command goes on. Prints
the table of docs/zoo.md; nothing is chosen on these numbers.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml

STUDY = ["format=things_eeg2", "concepts=200", "test_concepts=50", "images_per_concept=5", "n_subjects=2", "n_chans=17"]
STUDY += ["train_repetitions=2", "test_repetitions=10", "picture_size=64"]
BUDGET = ["global_batch_size=256", "validate_every=0", "workers=0", "learning_rate=1e-3", "n_features=256"]
BUDGET += ["trackers=none", "checkpoint_every=0", "log_every=10"]
WAYS = {  # of trainers/contrastive.py
    **{name: [f"encoder={name}"] for name in ("lstm", "conv", "projection", "tsconv", "atm")},
    "simpleconv, 64 wide": ["encoder=simpleconv", "encoder_width=64"],  # 320 would take hours on a CPU
    "projection, SigLIP": ["encoder=projection", "loss=siglip"],
    "projection, MSE + InfoNCE": ["encoder=projection", "mse_weight=1", "weights=[0.5]"],
    "projection, a layer of each person": ["encoder=projection", "subject_layer=channels"],
}
EQ7, SILENT = "LSTM and Eq. 7 (stage 2)", "projection, snr=0"


def call(*words: object) -> float:
    """Seconds of a command of this repository."""
    start = time.monotonic()
    environment = os.environ | {"ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: {done.stderr[-2000:]}")
    return time.monotonic() - start


def prepared(folder: Path, snr: float) -> Path:
    """The study's folder, with shards/ and features."""
    about = ["dataset=things_eeg2", f"eeg={folder}/study", f"images={folder}/study/images", "val_concepts=20"]
    call("-m", "neuroimagen.cli", "simulate", f"out={folder}/study", f"snr={snr}", *STUDY)
    call("-m", "neuroimagen.cli", "shards", *about, f"out={folder}/shards")
    call("-m", "neuroimagen.cli", "features", f"shards={folder}/shards", f"out={folder}/image.safetensors")
    return folder


def contrastive(study: Path, run: Path, budget: list[str], way: list[str]) -> dict[str, dict[str, float]]:
    """Metric of `neuroimagen evaluate` -> its estimate, by the mean EEG of a person's trials of a picture."""
    given = [f"shards={study}/shards", f"features=[{study}/image.safetensors]", f"run_dir={run}"]
    call("trainers/contrastive.py", *given, *BUDGET, *budget, *way)
    call("-m", "neuroimagen.cli", "evaluate", run)
    report = json.loads((run / "retrieval.json").read_text(encoding="utf-8"))
    return {name: report["rows"][report["own"]][name]["all"] for name in ("trial", "average")}


@torch.no_grad()
def eq7(study: Path, run: Path, budget: list[str]) -> dict[str, dict[str, float]]:
    """The same of stage 2: the picture of the nearest caption embedding, of offsets from the mean train caption."""
    from neuroimagen.batches.stream import Batcher
    from neuroimagen.features.format import picture_digests
    from neuroimagen.retrieval import ranks
    from neuroimagen.retrieval.evaluate import estimates
    from neuroimagen.sample.captions import embed_captions
    from neuroimagen.sample.encoder import SampleEncoder
    from neuroimagen.shards.format import ShardSplit
    from neuroimagen.studies.captions import read_captions

    pipeline, captions = "neuroimagen/embedded/diffusion", f"{study}/study/captions.jsonl"
    given = [f"shards={study}/shards", f"captions={captions}", f"pipeline={pipeline}", f"run_dir={run}"]
    call("trainers/sample_semantics.py", *given, *BUDGET, *budget, "encoder=lstm")
    model, split = SampleEncoder.from_pretrained(run / "model").eval(), ShardSplit(study / "shards", "test")
    infos, said = [split.info(i) for i in range(len(split))], read_captions(captions)
    _, first, picture = np.unique([d.hex() for d in picture_digests(split)], return_index=True, return_inverse=True)
    embedded = embed_captions(pipeline, [said[infos[i]["image"]] for i in first])
    unit = torch.nn.functional.normalize
    gallery = ranks.Gallery(unit((embedded - model.mean).flatten(1)), np.array([infos[i]["label"] for i in first]))
    eeg, subject = Batcher(split, None)(np.arange(len(split)))["eeg"], np.array([info["subject"] for info in infos])
    pairs, pair = np.unique(np.stack([subject, picture]), axis=1, return_inverse=True)
    means = torch.stack([eeg[torch.from_numpy(pair == i)].mean(0) for i in range(pairs.shape[1])])
    found = {}
    for name, x, own in (("trial", eeg, picture), ("average", means, pairs[1])):
        z = torch.cat([unit((model(part) - model.mean).flatten(1)) for part in x.split(256)])
        seen = ranks.deal(np.zeros(len(first), int), 1)
        values = gallery.values(gallery.search(z, own, seen, np.zeros(len(own), int), 1))
        found[name] = estimates(values, gallery, own)
    return found


def main() -> None:
    words = [*sys.argv[1:], *["runs/zoo", "1", "200"][len(sys.argv) - 1 :]]
    folder, seeds, steps = Path(words[0]), int(words[1]), int(words[2])
    kept = folder / "found.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    studies = {snr: prepared(folder / f"snr-{snr}", snr) for snr in (0.5, 0.0)}
    for seed in range(seeds):
        for name in [*WAYS, EQ7, SILENT]:
            key, run = f"{name} | {seed}", folder / f"seed-{seed}" / name.replace(" ", "-").replace(",", "")
            if key in found:
                continue
            budget = [f"max_steps={steps}", f"seed={seed}"]
            if name == EQ7:
                scores = eq7(studies[0.5], run, budget)
            else:
                study = studies[0.0 if name == SILENT else 0.5]
                scores = contrastive(study, run, budget, WAYS.get(name, ["encoder=projection"]))
            logged = [json.loads(line) for line in (run / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
            pace = [line["step_seconds"] for line in logged if "step_seconds" in line]
            weights = sum(path.stat().st_size for path in run.glob("model/*.safetensors")) / 4
            found[key] = {"scores": scores, "numbers": weights, "seconds": steps * float(np.median(pace))}
            kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
            print(
                key, {name: round(100 * scores["average"][name]["value"], 1) for name in ("top1", "top5")}, flush=True
            )
    print("\n| way | top-1, one trial | top-1, mean of 10 | top-5, mean of 10 | parameters | trials/s | s |")
    print("|---|---|---|---|---|---|---|")
    for name in [*WAYS, EQ7, SILENT]:
        runs = [found[f"{name} | {seed}"] for seed in range(seeds)]
        cells = []
        for row, metric in (("trial", "top1"), ("average", "top1"), ("average", "top5")):
            each = [run["scores"][row][metric] for run in runs]
            low, high = (100 * np.mean([e[end] for e in each]) for end in ("low", "high"))
            cells.append(f"{100 * np.mean([e['value'] for e in each]):.1f} [{low:.1f}, {high:.1f}]")
        seconds = np.mean([run["seconds"] for run in runs])
        cells += [f"{runs[0]['numbers'] / 1e6:.2f} M", f"{256 * steps / seconds:,.0f}", f"{seconds:.0f}"]
        print("|", " | ".join([name, *cells]), "|")
    print(f"\nchance: top-1 2.0, top-5 10.0; {yaml.safe_dump(STUDY, default_flow_style=True, width=1000).strip()}")


if __name__ == "__main__":
    main()
