"""The networks of each stage at the size that its config gives them, to count their numbers; of most none is drawn.

They are made as the trainers make them; tests/processes/test_plan.py holds the counts to what trainers save.
"""

import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from neuroimagen.baselines import brain2image, neurovision
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.pixel.saliency import Discriminator, Generator
from neuroimagen.sample.encoder import SampleEncoder


@dataclass
class Networks:
    """trained: by an optimizer of the Adam kind; averaged: of which a second copy is kept (EMA), and which is exported,
    or else what is trained is; frozen: used alone."""

    trained: list[Any]
    averaged: list[Any] = field(default_factory=list)
    frozen: list[Any] = field(default_factory=list)

    @property
    def exported(self) -> list[Any]:
        return self.averaged or self.trained


def numbers(modules: list[nn.Module], buffers: bool = False) -> int:
    """Parameters of some networks, and their buffers."""
    kinds = [module.parameters() for module in modules] + [module.buffers() for module in modules if buffers]
    return sum(tensor.numel() for kind in kinds for tensor in kind)


def _made(kind: Any, config: Any, device: str = "meta", **given: Any) -> Any:
    """A network whose arguments are given, or are fields of the config by the same name."""
    names = inspect.signature(kind.__init__).parameters
    with torch.device(device):
        return kind(**{name: getattr(config, name) for name in names if hasattr(config, name)} | given)


def networks(
    trainer: str,
    config: Any,
    shape: dict[str, int],
    features: Any = None,
    text: tuple[int, int] = (77, 768),
    device: str = "meta",
) -> Networks:
    """Of trainers/<trainer>.py. shape: n_chans, n_times, n_classes; features: the config of stage 1a; text: (L, D_s)"""
    eeg: dict[str, Any] = {name: shape[name] for name in ("n_chans", "n_times")}

    def f_theta(config: Any) -> nn.Module:
        return _made(FeatureExtractor, config, device, **eeg, width=config.encoder_width)

    if trainer == "pixel_features":
        return Networks([f_theta(config)])
    if trainer == "pixel_saliency":
        f, n = f_theta(features), features.n_features
        g = _made(Generator, config, n_features=n, width=config.generator_width)
        # Spectral norm multiplies as it is made: on meta torch imports its compiler for that, which takes 20 s.
        d = _made(Discriminator, config, "cpu", n_features=n, width=config.discriminator_width)
        return Networks([g, d, f], [g, f]) if config.finetune_features else Networks([g, d], [g, f], [f])
    if trainer == "sample_semantics":
        return Networks([_made(SampleEncoder, config, **eeg, n_tokens=text[0], width=text[1])])
    n_classes = shape["n_classes"]
    if trainer == "brain2image":
        model = _made(brain2image.Brain2Image, config, **eeg, n_classes=n_classes)
        judge = _made(brain2image.Discriminator, config, n_classes=n_classes)
        return Networks([model], [model], [judge]) if config.variant == "vae" else Networks([model, judge], [model])
    model = _made(neurovision.NeuroVision, config, **eeg, n_classes=n_classes)
    return Networks([model, _made(neurovision.Discriminator, config, n_classes=n_classes)], [model])


def _config_of(pipeline: str, part: str) -> dict[str, Any]:
    """A config.json of a diffusion model that is a directory, or in this machine's cache; {} if it is not."""
    local = Path(pipeline) / part if Path(pipeline).is_dir() else try_to_load_from_cache(pipeline, part)
    try:
        return json.loads(Path(local).read_text(encoding="utf-8"))  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError):
        return {}


def of_pipeline(pipeline: str) -> dict[str, Any]:
    """text (L, D_s), size (px) and n (numbers, if it is a directory) of a diffusion model, as far as it is here."""
    encoders = [_config_of(pipeline, f"text_encoder{end}/config.json") for end in ("", "_2")]
    unet, vae = (_config_of(pipeline, f"{part}/config.json") for part in ("unet", "vae"))
    found: dict[str, Any] = {}
    if encoders[0]:
        width = sum(encoder.get("hidden_size", 0) for encoder in encoders)
        found["text"] = encoders[0].get("max_position_embeddings", 77), width
    if unet.get("sample_size") and vae:
        levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0] * 4
        found["size"] = unet["sample_size"] * 2 ** (len(levels) - 1)
    if Path(pipeline).is_dir():
        found["bytes"] = sum(path.stat().st_size for path in Path(pipeline).rglob("*.safetensors"))
    return found
