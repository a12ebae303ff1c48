"""The published networks of the score book: which metrics need which, and those that are at hand."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import torch

from neuroimagen.run.collectives import gather_objects
from neuroimagen.scores import similarity
from neuroimagen.scores.measure import Judge, PairMeasure
from neuroimagen.scores.metrics import pixcorr_425, ssim, ssim_425
from neuroimagen.scores.networks import NETWORKS, Lpips, NotAvailable, load_lpips, load_network

NEEDED_BY = {
    "alexnet": ("alex2", "alex5"),
    "inception": ("inception",),
    "clip": ("clip", "clip_top1", "clip_top5", "clip_nway"),
    "effnet": ("effnet",),
    "swav": ("swav",),
    "fid": ("fid", "kid", "is_inception"),
    "lpips": ("lpips",),
}
COMPARED = {"alexnet": ("alex2", "alex5"), "inception": ("inception",), "clip": ("clip",), "effnet": ("effnet",),
            "swav": ("swav",)}  # fmt: skip


def _where(name: str, weights: str | None, download: bool) -> str | Path | None:
    """Where to look: what the user named, or else the caches alone, unless downloads are allowed."""
    if weights is not None or download:
        return weights
    if name == "clip":
        hub = NETWORKS[name].url.removeprefix("https://huggingface.co/")
        found = huggingface_hub.try_to_load_from_cache(hub, "model.safetensors")
        if isinstance(found, str):
            return Path(found).parent
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if name == "clip" and not (folder / NETWORKS[name].file / "config.json").is_file():  # spares a long import
        raise NotAvailable(
            f"clip ({NETWORKS[name].title}) is not available: neither the hub's cache nor {folder} holds it; get it "
            f"with `hf download {hub} config.json model.safetensors`, or give download=true"
        )
    return folder


def pair_measures(wants: Callable[..., bool], side: int) -> list[PairMeasure]:
    """What compares reconstructions of `side` px with ground truths without a network."""

    def ours(images: torch.Tensor, truths: torch.Tensor, pairs: torch.Tensor) -> dict[str, torch.Tensor]:
        both = ssim(images, truths, pairs)
        return {"ssim": both[:, 0], "ssim_grey": both[:, 1]}

    found: list[PairMeasure] = [ours]
    if wants("ssim_425"):
        found.append(lambda *pairs: {"ssim_425": ssim_425(*pairs)})
    if wants("pixcorr"):
        if side <= 256:
            found.append(lambda *pairs: {"pixcorr": pixcorr_425(*pairs)})
        else:  # here the plain way is the faster one
            found.append(lambda images, truths, pairs: {"pixcorr": similarity.pixcorr(images, truths, pairs=pairs)})
    return found


def _lpips(network: Lpips) -> PairMeasure:
    return lambda images, truths, pairs: {"lpips": similarity.lpips(images, truths, network, pairs)}


def load_judges(
    wants: Callable[..., bool], device: torch.device, weights: str | None, download: bool, side: int
) -> tuple[list[Judge], list[PairMeasure], dict[str, str]]:
    """The networks that wanted metrics need; LPIPS as a pair measure; of each metric that cannot be had, why and how.

    wants(metric, ...): is any of them wanted. side: the shorter one of the pictures, in px. ValueError: a weight file
    that is damaged or another network's, or that some processes find and others do not. Collective: every rank.
    """
    judges: list[Judge] = []
    pairs: list[PairMeasure] = []
    unavailable: dict[str, str] = {}
    for name, needing in NEEDED_BY.items():
        if not wants(*needing):
            continue
        try:
            where = _where(name, weights, download)
            if name != "lpips":
                network = load_network(name, device, where)
                keep = ("fid", "logits") if name == "fid" else ()
                judges.append(Judge(network.features, keep, COMPARED.get(name, ())))
            elif side < 35:
                raise NotAvailable(f"pictures of {side} px are too small for LPIPS; reconstruct at 35 px or more")
            else:
                pairs.append(_lpips(load_lpips(device, where)))
        except NotAvailable as error:
            why = str(error).replace(" is not available: ", ": ", 1)
            unavailable |= {metric: f"not available: {why}" for metric in needing if wants(metric)}
    for rank, missing in enumerate(everyone := gather_objects(sorted(unavailable))):
        if missing != everyone[0]:
            apart = ", ".join(sorted({*missing} ^ {*everyone[0]}))
            raise ValueError(f"ranks 0 and {rank} do not find the same networks ({apart}): give weights= that all see")
    return judges, pairs, unavailable
