"""What a terminal or a notebook shows: a model in ten lines, and what it drew as a grid of pictures."""

import base64
import dataclasses
import html
import io
from typing import Any

import torch
from PIL import Image

from neuroimagen.rows import FULL

MOST_TRIALS, SIDE = 24, 128  # of a grid: trials, and px of the longer side of a picture


def describe(model: Any) -> str:
    """A NeuroImagen in ten lines."""
    about = model.about
    data = [model.eeg.dataset + (" (SIMULATED)" if about.get("simulated") else "")]
    data += [f"{len(about[name])} {name}" for name in ("subjects", "classes") if about.get(name)]
    parts = [] if model.g is None else [f"saliency maps of {model.g.image_size} px"]
    parts += [f"embeddings of {m.n_tokens} x {m.width} learnt from {kind} captions" for kind, m in model.m_s.items()]
    size = sum(parameter.numel() for parameter in model.parameters())
    metrics, rows = (about.get("scores") or {}).get("metrics", {}), (about.get("scores") or {}).get("rows", {})
    row = FULL if FULL in rows else next(iter(rows), "")
    found = {name: cell["value"] for name, cell in rows.get(row, {}).items() if cell.get("value") is not None}
    said = {name: metrics.get(name, {}) for name in found}
    scores = [
        f"{m.get('head', name)} {found[name] * m.get('scale', 1):.{m.get('digits', 3)}f}" for name, m in said.items()
    ]
    more = f" and {len(scores) - 4} more" * (len(scores) > 4)
    lines = {
        "trained on": ", ".join(data),
        "takes": f"EEG of {model.eeg}",
        "decodes": "; ".join(parts) or "nothing",
        "parameters": f"{size:,} of the decoders, in fp32",
        "draws with": f"{model.place}, in {model.precision}, {'loaded' if model._diffusion else 'not loaded yet'}",
        "rows": f"{', '.join(model.rows)} (the best first)",
        "settings": ", ".join(f"{name}={value}" for name, value in model.settings.items()),
        "scores": f"row {row}: {', '.join(scores[:4])}{more}" if scores else "not scored",
        "device": str(model.device),
    }
    return "\n".join([f"NeuroImagen {about.get('name', '')}".rstrip(), *(f"  {k:<11} {v}" for k, v in lines.items())])


@dataclasses.dataclass(repr=False)
class Reconstruction:
    """What `NeuroImagen.reconstruct` gives; a notebook shows it as a grid.

    images: [trial][sample], RGB; maps: the saliency map M_p(x) of each trial, [] if the model has none
    embeddings: (n_trials, L, D_s) float32, what M_s(x) told the diffusion model; None for rows without semantics
    device, precision: what the diffusion model drew on and in, such as "cuda:0" and "bf16"
    """

    images: list[list[Image.Image]]
    maps: list[Image.Image]
    embeddings: torch.Tensor | None
    keys: list[str]
    row: str
    device: str = ""
    precision: str = ""

    def __repr__(self) -> str:
        samples = len(self.images[0]) if self.images else 0
        return (
            f"Reconstruction of {len(self.images)} trials, {samples} pictures each, row {self.row}, "
            f"on {self.device} in {self.precision}"
        )

    def _repr_html_(self) -> str:
        """A line a trial: its key, its map, its pictures, made smaller."""
        samples = len(self.images[0]) if self.images else 0
        heads = ["trial", *["saliency map"] * bool(self.maps), *(f"picture {i}" for i in range(samples))]
        lines = [heads]
        for i, (key, pictures) in enumerate(zip(self.keys[:MOST_TRIALS], self.images, strict=False)):
            lines.append([html.escape(key), *map(_thumbnail, [*self.maps[i : i + 1], *pictures])])
        table = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
        left = len(self.images) - MOST_TRIALS
        rest = f"; {left} more trials are not shown" if left > 0 else ""
        return f"<table><caption>{html.escape(repr(self))}{rest}</caption>{table}</table>"


def _thumbnail(image: Image.Image) -> str:
    small, data = image.copy(), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(data, format="PNG")
    return f'<img alt="" width="{SIDE}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'
