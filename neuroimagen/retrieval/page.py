"""RUN/retrieval.html: what was asked, what was found, and the numbers. It needs no other file.

Which queries are shown follows rules that the page states; nothing is picked for its looks.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neuroimagen.batches.decode import load_picture
from neuroimagen.files import write_atomic
from neuroimagen.pages import data_address, render
from neuroimagen.retrieval.queries import Queries
from neuroimagen.retrieval.ranks import Found

EACH, SIDE, SEED = 6, 112, 0


def write_page(path: Path, report: dict[str, Any], queries: Queries, asked: Found, found: Found) -> None:
    """found: of the run's own score."""
    trials = np.flatnonzero(asked["kind"] == 0)
    rank = found["above"][trials] + (found["tied"][trials] + 1) / 2
    keys = [queries.split.keys[i] for i in asked["trial"][trials]]
    order, n = np.lexsort((keys, rank)), len(trials)
    each = max(1, min(EACH, n // 4))
    middle, drawn = (n - each) // 2, np.random.default_rng(SEED).permutation(n)[:each]
    groups = {
        "Best": (f"the first {each} of {n} trials in the order of the rank", order[:each]),
        "Median": (f"the {each} in the middle of that order", order[middle : middle + each]),
        "Worst": (f"the last {each}, the last one first", order[::-1][:each]),
        "Random": (f"drawn among all {n} with seed {SEED}", drawn),
    }
    addresses: dict[int, str] = {}

    def picture(p: int) -> str:
        if p not in addresses:
            pixels = load_picture(queries.split.picture(int(queries.first[p])), SIDE)
            buffer = io.BytesIO()
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "WEBP", quality=85)
            addresses[p] = data_address(buffer.getvalue(), "webp")
        return addresses[p]

    shown = {}
    for name, (rule, chosen) in groups.items():
        lines = []
        for i in chosen.tolist():
            trial = int(asked["trial"][trials[i]])
            seen, near = int(queries.picture[trial]), found["nearest"][trials[i]].tolist()
            line = {"seen": seen, "near": near, "subject": queries.people[queries.subject[trial]], "key": keys[i]}
            lines.append(line | {"rank": f"{rank[i]:g}"})
        shown[name] = (rule, lines)
    values = {"report": report, "groups": shown, "picture": picture, "names": queries.names, "path": queries.path}
    write_atomic(path, render("retrieval/templates/page.j2", **values))
