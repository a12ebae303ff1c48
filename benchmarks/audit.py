"""Does the audit tell five simulated worlds apart? Whether its verdicts are the truth, by world, over many seeds.

    python benchmarks/audit.py [SEEDS] [FIRST] [OUT.md]        20 0

Each world is a study by `neuroimagen simulate` (6 classes of 24 pictures, 4 people, no high-pass), read by `neuroimagen
audit quick=true`. Two processes at a time. The rules (neuroimagen/audit/questions.yaml) were tried on seeds from 100
on; seeds 0 to 19 are what is reported.
"""

import contextlib
import io
import os
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy: two processes, one thread each
    os.environ.setdefault(name, "1")

WORLDS: dict[str, dict[str, Any]] = {
    "signal": {"snr": 0.1, "order": "random"},
    "drift": {"snr": 0.0, "drift": 10.0, "order": "blocks"},
    "both": {"snr": 0.1, "drift": 10.0, "order": "blocks"},
    "neither": {"snr": 0.0, "order": "random"},
    "signature": {"snr": 0.0, "signature": 4.0},
}
SIZE: dict[str, Any] = {"classes": "6", "images_per_class": 24, "n_subjects": 4, "picture_size": 32, "band": "raw"}
CHANNELS = [str(channel) for channel in range(0, 128, 2)]  # every other one, for time
# World -> is it vision, does it hold for new people, is drift called out
TRUTH = {"signal": (1, 1, 0), "drift": (0, 0, 1), "both": (1, 1, 1), "neither": (0, 0, 0), "signature": (0, 0, 0)}


def one(world: str, seed: int) -> tuple[str, int, tuple[int, ...], dict[str, float], float]:
    """The verdicts of one world and seed: 1 supported, 0 not, -1 cannot be told; some accuracies; seconds of CPU."""
    from neuroimagen.audit.audit import audit
    from neuroimagen.audit.trials import AuditConfig
    from neuroimagen.simulation.study import SimulateConfig, simulate

    os.environ["TQDM_DISABLE"] = "1"
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        study = Path(folder) / "study"
        simulate(SimulateConfig(out=str(study), seed=seed, **SIZE, **WORLDS[world]))
        files = {"eeg": study / "eeg.pth", "images": study / "images", "splits_file": study / "splits.pth"}
        files |= {"out": Path(folder) / "audit"}
        report = audit(
            AuditConfig(dataset="perceivelab", quick=True, picks=CHANNELS, **{k: str(v) for k, v in files.items()})
        )
    answers = {question["name"]: question["answer"] for question in report["questions"]}
    said = [{"supported": 1, "not supported": 0}.get(answers[name], -1) for name in ("vision", "people")]
    values = {
        name: report["parts"][name]["value"] for name in ("real", "before", "people", "within", "shuffled", "surrogate")
    }
    return world, seed, (*said, int(bool(report["drift"]))), values, time.process_time() - start


def main() -> None:
    seeds, first = (int(word) for word in (sys.argv[1:3] + ["20", "0"][len(sys.argv[1:3]) :]))
    jobs = [(world, seed) for seed in range(first, first + seeds) for world in WORLDS]
    found: dict[str, list[Any]] = defaultdict(list)
    start = time.monotonic()
    with ProcessPoolExecutor(2) as pool:
        for world, seed, said, values, seconds in pool.map(one, *zip(*jobs, strict=True)):
            found[world].append((said, values, seconds))
            if said != TRUTH[world]:
                print(f"{world}, seed {seed}: {said} instead of {TRUTH[world]}, {values}", flush=True)
    head = [
        "world",
        "vision",
        "new people",
        "drift called out",
        "all three",
        "accuracy",
        "before 50 ms",
        "new people, accuracy",
    ]
    lines = [head + ["within class, two-way", "s of CPU"], ["---"] * 10]
    for world, results in found.items():
        right = [sum(said[i] == TRUTH[world][i] for said, *_ in results) for i in range(3)]
        truth = [f"{'yes' if t else 'no'}: {n} of {seeds}" for t, n in zip(TRUTH[world], right, strict=True)]
        row = [world, *truth, f"{sum(said == TRUTH[world] for said, *_ in results)} of {seeds}"]
        for name in ("real", "before", "people", "within"):
            row.append(f"{100 * sum(values[name] for _, values, _ in results) / seeds:.1f} %")
        lines.append([*row, f"{sum(seconds for *_, seconds in results) / seeds:.0f}"])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(f"{table}\n\n{len(jobs)} studies in {time.monotonic() - start:.0f} s, two processes")
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text(f"{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
