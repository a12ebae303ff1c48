"""The trained decoders of stages 1 and 2 as reconstruction needs them: EEG to saliency maps and prompt embeddings."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from neuroimagen.data.shards import ShardSplit
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.pixel.saliency import Generator
from neuroimagen.reconstruction.reconstructor import Reconstructor
from neuroimagen.sample.captions import embed_captions
from neuroimagen.sample.encoder import SampleEncoder
from neuroimagen.seeds import seed_from

# name: (semantics, with the map). The paper's models 1 to 5, and what the diffusion model draws when told nothing.
ROWS: dict[str, tuple[str | None, bool]] = {
    "I": (None, True),
    "L": ("label", False),
    "B": ("blip", False),
    "B+I": ("blip", True),
    "L+I": ("label", True),
    "none": (None, False),
}


def stage_run(field: str, directory: str | None, rows: list[str], trainer: str) -> Path:
    """The finished stage run that a config field names, or a ValueError that says what is wrong with it."""
    if directory is None:
        raise ValueError(f"rows {', '.join(rows)} need {field}=RUN_DIR, a run of trainers/{trainer}.py")
    if not (Path(directory) / "config.yaml").exists():
        raise ValueError(f"{field}={directory} is not a run; run trainers/{trainer}.py run_dir={directory} first")
    if not (Path(directory) / "DONE").exists():
        raise ValueError(f"{field}={directory} is not finished (no DONE); run its command again to continue it")
    return Path(directory)


def decode(
    eeg: torch.Tensor, keys: Sequence[str], f_theta: Any, g: Any, m_s: Mapping[str, Any], seed: int
) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
    """EEG (B, C, T) -> maps (B, 3, h, w) in [0, 1], None without `g`, and the embeddings (B, L, D_s) of each of `m_s`.

    (seed, key) fixes the noise z of a map.
    """
    maps = None
    if g is not None:
        noises = [torch.Generator().manual_seed(seed_from(seed, "map", key)) for key in keys]
        z = torch.stack([torch.randn(g.z_dim, generator=noise) for noise in noises]).to(eeg.device)
        maps = g(z, f_theta(eeg)).add(1).div(2)  # M_p(x) = G(z, f_θ(x))
    return maps, {kind: model(eeg) for kind, model in m_s.items()}


class Decoders:
    """f_θ and G, and M_s for each kind of captions, as far as the rows of Table 3 need them.

    runs: {"saliency" | "semantics_label" | "semantics_blip": run directory of that stage, or None}
    seed: with a trial's key it fixes the noise z of its map
    """

    def __init__(
        self,
        rows: Sequence[str],
        runs: Mapping[str, str | None],
        split: ShardSplit,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """Raises ValueError for a run that is not there, not done, or not of this EEG."""

        def load(kind: Any, directory: Path) -> Any:
            with contextlib.redirect_stdout(None):  # the hub library prints where it loads from
                model = kind.from_pretrained(str(directory)).to(device).requires_grad_(False).eval()
            given = (split.manifest.n_chans, split.manifest.n_times)
            if kind is not Generator and (model.n_chans, model.n_times) != given:
                shape = f"{model.n_chans} x {model.n_times}"
                raise ValueError(f"{directory} takes EEG of {shape}, but {split.folder} holds {given[0]} x {given[1]}")
            return model

        self.device, self.seed = device, seed
        self.f_theta: Any = None
        self.g: Any = None
        self.m_s: dict[str, SampleEncoder] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        if wanted := [row for row in rows if ROWS[row][1]]:
            run = stage_run("saliency", runs["saliency"], wanted, "pixel_saliency")
            self.f_theta = load(FeatureExtractor, run / "model" / "features")
            self.g = load(Generator, run / "model" / "generator")
        for kind in ("label", "blip"):
            if wanted := [row for row in rows if ROWS[row][0] == kind]:
                field = f"semantics_{kind}"
                run = stage_run(field, runs[field], wanted, "sample_semantics")
                self.configs[kind] = yaml.safe_load((run / "config.yaml").read_text())
                captions = self.configs[kind]["captions"]
                if (captions == "label") != (kind == "label"):
                    raise ValueError(
                        f"{field}={run} was trained with captions={captions}, so it is not for rows with {wanted[0][0]}"
                    )
                self.m_s[kind] = load(SampleEncoder, run / "model")

    def check(self, diffusion: Reconstructor) -> None:
        """Raise ValueError unless every M_s speaks the language of the pipeline's text encoder."""
        for kind, m_s in self.m_s.items():
            diffusion.check_embedding(m_s.n_tokens, m_s.width, f"what semantics_{kind} decodes")
            trained_with = self.configs[kind]["pipeline"]
            if trained_with != diffusion.name and Path(trained_with).is_dir():
                theirs = embed_captions(trained_with, [""]).to(diffusion.empty)
                if not torch.allclose(theirs, diffusion.empty, atol=1e-2):
                    raise ValueError(
                        f"semantics_{kind} was trained for the text encoder of {trained_with}, not {diffusion.name}"
                    )

    @torch.inference_mode()
    def __call__(self, eeg: torch.Tensor, keys: Sequence[str]) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """EEG (B, C, T) -> maps (B, 3, h, w) in [0, 1] or None, and {"label" | "blip": embeddings (B, L, D_s)}."""
        return decode(eeg.to(self.device), keys, self.f_theta, self.g, self.m_s, self.seed)
