"""The networks of each stage at the size that its config gives them, to count their numbers; of most none is drawn.

They are made as the trainers make them; tests/processes/test_plan.py holds the counts to what trainers save.
"""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from neuroimagen.baselines import brain2image, neurovision
from neuroimagen.files import content_of
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.pixel.saliency import Discriminator, Generator
from neuroimagen.planning.counts import Counts
from neuroimagen.sample.encoder import SampleEncoder


@dataclass
class Networks:
    """trained: by an optimizer of the Adam kind; averaged: of which a second copy is kept (EMA), and which is exported,
    or, without any, what is trained; frozen: used alone."""

    trained: list[Any]
    averaged: list[Any] = field(default_factory=list)
    frozen: list[Any] = field(default_factory=list)


def numbers(modules: list[nn.Module], buffers: bool = False) -> int:
    """Parameters of some networks, and their buffers."""
    kinds = [module.parameters() for module in modules] + [module.buffers() for module in modules if buffers]
    return sum(tensor.numel() for kind in kinds for tensor in kind)


def networks(
    trainer: str,
    config: Any,
    counts: Counts,
    features: Any = None,
    text: tuple[int, int] = (77, 768),
    device: str = "meta",
) -> Networks:
    """Of trainers/<trainer>.py. counts: of the study; features: the config of stage 1a; text: (L, D_s)"""

    def made(kind: Any, config: Any = config, device: str = device, **given: Any) -> Any:
        """Its arguments are those given, or of the study's shape, or the config's fields of the same name."""
        known, names = vars(config) | counts.shape | given, inspect.signature(kind.__init__).parameters
        found = {name: known[name] for name in names if name in known}
        if "options" in names:
            people = list(range(counts.subjects))  # of all splits: as many layers as there may be
            found |= config.encoder_options(counts.channels, counts.sfreq, lambda: people)
        with torch.device(device):
            return kind(**found)

    if trainer == "pixel_features":
        return Networks([made(FeatureExtractor, width=config.encoder_width)])
    if trainer == "sample_semantics":
        return Networks([made(SampleEncoder, n_tokens=text[0], width=text[1])])
    if trainer == "pixel_saliency":
        f, n = made(FeatureExtractor, features, width=features.encoder_width), features.n_features
        g = made(Generator, n_features=n, width=config.generator_width)
        # Spectral norm multiplies as it is made: on meta torch imports its compiler for that, which takes 20 s.
        d = made(Discriminator, device="cpu", n_features=n, width=config.discriminator_width)
        return Networks([g, d, f], [g, f]) if config.finetune_features else Networks([g, d], [g, f], [f])
    room, name = (brain2image, "Brain2Image") if trainer == "brain2image" else (neurovision, "NeuroVision")
    model, judge = made(getattr(room, name)), made(room.Discriminator)
    without = getattr(config, "variant", "") == "vae"  # which no discriminator trains
    return Networks([model], [model], [judge]) if without else Networks([model, judge], [model])


def of_pipeline(pipeline: str) -> dict[str, Any]:
    """text (L, D_s), size (px) and bytes (if it is a directory) of a diffusion model, as far as it is here."""

    def config_of(part: str) -> dict[str, Any]:
        cached = try_to_load_from_cache(pipeline, f"{part}/config.json") if not Path(pipeline).is_dir() else None
        return content_of(Path(cached) if isinstance(cached, str) else Path(pipeline, part, "config.json"))

    encoders = [config_of(f"text_encoder{end}") for end in ("", "_2")]
    unet, vae, found = config_of("unet"), config_of("vae"), dict[str, Any]()
    if encoders[0]:
        width = sum(encoder.get("hidden_size", 0) for encoder in encoders)
        found["text"] = encoders[0].get("max_position_embeddings", 77), width
    if unet.get("sample_size") and vae:
        levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0] * 4
        found["size"] = unet["sample_size"] * 2 ** (len(levels) - 1)
    if Path(pipeline).is_dir():
        found["bytes"] = sum(path.stat().st_size for path in Path(pipeline).rglob("*.safetensors"))
    return found
