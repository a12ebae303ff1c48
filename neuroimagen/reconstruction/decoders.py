"""What reconstruction can draw, row by row, and the trained models it takes: stages 1 and 2, and the baselines."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn import functional as F

from neuroimagen.baselines.brain2image import Brain2Image
from neuroimagen.baselines.neurovision import NeuroVision
from neuroimagen.contrastive.encoder import ContrastiveEncoder
from neuroimagen.errors import load_trained
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.pixel.saliency import Generator
from neuroimagen.reconstruction.reconstructor import Reconstructor
from neuroimagen.rows import ROWS, RUNS, SEMANTICS
from neuroimagen.run.directory import open_run
from neuroimagen.sample.captions import embed_captions
from neuroimagen.sample.encoder import SampleEncoder
from neuroimagen.shards.format import ShardSplit


def stage_run(field: str, directory: str | None, rows: list[str]) -> Path:
    """The finished stage run that a config field names, or a ValueError that says what is wrong with it."""
    if directory is None:
        raise ValueError(f"rows {', '.join(rows)} need {field}=RUN_DIR, a run of trainers/{RUNS[field]}.py")
    return open_run(directory, field)


class Decoders:
    """f_θ and G, M_s for each kind of captions, a contrastive run and the baselines, as far as the rows need them.

    runs: {a name in RUNS: run directory of that stage, or None}
    """

    def __init__(
        self, rows: Sequence[str], runs: Mapping[str, str | None], split: ShardSplit, device: Any = "cpu"
    ) -> None:
        """Raises ValueError for a run that is not there, not done, or not of this EEG."""

        def load(kind: Any, directory: Path) -> Any:
            with contextlib.redirect_stdout(None):  # the hub library prints where it loads from
                model = load_trained(kind, directory)
            model = model.to(device).requires_grad_(False).eval()
            given = (split.manifest.n_chans, split.manifest.n_times)
            if kind is not Generator and (model.n_chans, model.n_times) != given:
                shape = f"{model.n_chans} x {model.n_times}"
                raise ValueError(f"{directory} takes EEG of {shape}, but {split.folder} holds {given[0]} x {given[1]}")
            return model

        self.rows = list(rows)
        self.f_theta: Any = None
        self.g: Any = None
        self.m_s: dict[str, SampleEncoder] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.retrieval: str | None = None  # the M_s in whose embeddings the nearest picture is looked for
        if "retrieval" in rows:
            self.retrieval = "label" if runs.get("semantics_label") or not runs.get("semantics_blip") else "blip"
        if wanted := [row for row in rows if "saliency" in ROWS[row].needs]:
            run = stage_run("saliency", runs.get("saliency"), wanted)
            self.f_theta = load(FeatureExtractor, run / "model" / "features")
            self.g = load(Generator, run / "model" / "generator")
        for kind, letter in SEMANTICS.items():
            field, retrieves = f"semantics_{kind}", ["retrieval"] * (self.retrieval == kind)
            others = [row for row in rows if row != "retrieval" and field in ROWS[row].needs]
            if wanted := others + retrieves:
                run = stage_run(field, runs.get(field), wanted)
                self.configs[kind] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
                captions = self.configs[kind]["captions"]
                if (captions == "label") != (kind == "label"):
                    raise ValueError(
                        f"{field}={run} was trained with captions={captions}, so it is not for rows with {letter}"
                    )
                self.m_s[kind] = load(SampleEncoder, run / "model")
        self.contrastive: Any = None
        if wanted := [row for row in rows if ROWS[row].image == "decoded"]:
            run = stage_run("contrastive", runs.get("contrastive"), wanted)
            self.contrastive = load(ContrastiveEncoder, run / "model")
            if self.contrastive.standardise == "none":
                raise ValueError(
                    f"contrastive={run} was trained with standardise=none, so nothing says how long features are"
                )
            self.named = f"contrastive={run}"
        self.target = ""  # which of the features that it decodes the image prompt takes
        self.baselines: dict[str, Any] = {}  # by config field
        for row, field in ((row, ROWS[row].by) for row in rows if ROWS[row].kind == "baseline"):
            run = stage_run(field, runs.get(field), [row])
            model = load(NeuroVision if field == "neurovision" else Brain2Image, run / "model")
            if isinstance(model, Brain2Image) and model.variant != ("vae" if field == "brain2image_vae" else "gan"):
                raise ValueError(f"{field}={run} was trained with variant={model.variant}, so it is not for row {row}")
            self.baselines[field] = model
            self.configs[field] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))

    @torch.inference_mode()
    def features(self, eeg: torch.Tensor, subject: torch.Tensor) -> torch.Tensor:
        """EEG (B, C, T), standardised, of subjects (B,) -> decoded features of the picture seen (B, D), on the CPU.

        Contrast says a direction from the mean of the train features, and of no length: they are made as long as the
        train features are from it, in root mean square, where the encoder measured both.
        """
        model, at = self.contrastive, list(self.contrastive.targets).index(self.target)
        mean, std = (x.split(model.widths)[at] for x in (model.mean, model.std))
        offset = F.normalize((model(eeg, subject)[self.target] - mean) / std, dim=1) * len(mean) ** 0.5
        return (mean + std * offset).float().cpu()

    def check(self, diffusion: Reconstructor) -> None:
        """Raise ValueError unless every M_s speaks the language of the pipeline's text encoder."""
        if self.contrastive and diffusion.image_prompt:
            self.target = diffusion.image_prompt.fitting(self.contrastive.targets, self.named)
        for kind, m_s in self.m_s.items():
            diffusion.check_embedding(m_s.n_tokens, m_s.width, f"what semantics_{kind} decodes")
            trained_with = self.configs[kind]["pipeline"]
            if trained_with != diffusion.name and Path(trained_with).is_dir():
                theirs = embed_captions(trained_with, [""]).to(diffusion.empty)
                if not torch.allclose(theirs, diffusion.empty, atol=1e-2):
                    other = f"the text encoder of {trained_with}, not {diffusion.name}"
                    raise ValueError(f"semantics_{kind} was trained for {other}")
