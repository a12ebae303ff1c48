"""One pass over a run's pictures: each different picture through each network at hand once, each pair compared once.

A reconstruction is compared with its own ground truth and with those that it is dealt (metrics.deal). Pictures are
told apart by their pixels, so the ground truth of several subjects' trials, or a training picture that the retrieval
row returns many times, is judged once. Work is cut in fixed batches that the processes take in turn: a picture meets
the same company on any number of processes, and so the same bits come out.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from tqdm import tqdm

from neuroimagen.run.collectives import gather_objects, spread, world_size
from neuroimagen.scores.classifiers import read_pictures, read_pixels
from neuroimagen.scores.definitions import METRICS
from neuroimagen.scores.networks import Features, NotAvailable, load_lpips, load_network
from neuroimagen.scores.similarity import pixcorr, ssim, ssim_425

TRUTH_CACHE = 256 << 20  # bytes of ground-truth pictures kept by each process
Arrays = dict[str, np.ndarray]
T = TypeVar("T")


# k metrics: reconstructions (B, 3, H, W), ground truths (m, 3, H, W) in [0, 1], pairs of them (p, 2) -> (p, k), or (p,)
PairMeasures = dict[tuple[str, ...], Callable[[Tensor, Tensor, Tensor], Tensor]]


def load_judges(
    wants: Callable[..., bool], device: torch.device, weights: str | None, download: bool, side: int
) -> tuple[list[Features], PairMeasures, dict[str, str]]:
    """The networks, and what compares pairs, that wanted metrics need; of each metric that cannot be had, why and how.

    wants(metric, ...): is any of them wanted. side: the pictures' shorter one, in px. Collective: every rank.
    ValueError: a weight file that is damaged, another network's, or found by some processes only.
    """
    judges: list[Features] = []
    pairs: PairMeasures = {("ssim", "ssim_grey"): ssim}
    pairs |= {(name,): compare for name, compare in (("ssim_425", ssim_425), ("pixcorr", pixcorr)) if wants(name)}
    unavailable: dict[str, str] = {}
    for name in dict.fromkeys(metric.network for metric in METRICS.values() if metric.network):
        needing = [key for key, metric in METRICS.items() if metric.network == name]
        if not wants(*needing):
            continue
        try:
            if name != "lpips":
                judges.append(load_network(name, device, weights, download))
            elif side < 35:
                raise NotAvailable(f"pictures of {side} px are too small for LPIPS; reconstruct at 35 px or more")
            else:
                pairs["lpips",] = load_lpips(device, weights, download)
        except NotAvailable as error:
            why = str(error).replace(" is not available: ", ": ", 1)
            unavailable |= {metric: f"not available: {why}" for metric in needing if wants(metric)}
    for rank, missing in enumerate(everyone := gather_objects(sorted(unavailable))):
        if missing != everyone[0]:
            apart = ", ".join(sorted({*missing} ^ {*everyone[0]}))
            raise ValueError(f"ranks 0 and {rank} do not find the same networks ({apart}): give weights= that all see")
    return judges, pairs, unavailable


@dataclasses.dataclass
class Measured:
    """What the pass found; pictures are numbered, the ground truths 0 .. gallery - 1."""

    numbers: Arrays  # row -> (n, samples) picture numbers; ground truths: (n, 1)
    outputs: Arrays  # kept layer -> (pictures, D)
    pairs: Arrays  # measure -> (pairs,)
    where: dict[tuple[str, str | None], np.ndarray]  # (row, deal or None: own truth) -> places in `pairs`
    gallery: int

    def of(self, layer: str, row: str) -> np.ndarray:
        """(n * samples, D)"""
        return self.outputs[layer][self.numbers[row].ravel()]

    def compared(self, name: str, row: str, deal: str | None = None) -> np.ndarray:
        """(n, samples) of a pair measure of trials and their own truths; (trials, samples, k) of those of a deal."""
        return self.pairs[name][self.where[row, deal]]


def _spread(parts: Sequence[Sequence[T]], work: Callable[[Sequence[T]], Arrays]) -> Arrays:
    """`work` of each part, by the processes in turn; results concatenated in the parts' order, on every process."""
    found = spread(work, parts)
    return {name: np.concatenate([arrays[name] for arrays in found]) for name in (found[0] if found else ())}


def _cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _identify(paths: Sequence[Path]) -> Arrays:
    """Of each picture a "digest" of its pixels, and its "size" (height, width)."""
    pixels = [read_pixels(path) for path in paths]
    digests = [hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest() for picture in pixels]
    return {"digest": np.array(digests), "size": np.array([picture.shape[:2] for picture in pixels])}


def standardise(features: Tensor) -> Tensor:
    """Rows of (B, D) to mean 0 and length 1, for Pearson correlations; those constant but for rounding to 0."""
    centred = features.float() - features.float().mean(1, keepdim=True)
    norms, scale = centred.norm(dim=1, keepdim=True), features.abs().amax(1, keepdim=True) * features.shape[1] ** 0.5
    return torch.where(norms > 1e-6 * scale, centred / norms.clamp(min=1e-30), 0.0)


def measure(
    rows: dict[str, list[list[Path]]],
    truths: list[Path],
    deals: dict[str, tuple[np.ndarray, np.ndarray]],
    judges: Sequence[Features],
    keep: Sequence[str],
    compare: Sequence[str],
    pair_measures: PairMeasures,
    batch_size: int,
    device: torch.device,
) -> Measured:
    """Judge every picture and compare every pair; collective: every rank.

    rows: by name, of each trial its samples. truths: of each trial. deals: by name, trials (t,) and, of each of their
    samples, the trials (t, samples, k) with whose truths it is compared besides. The ground truths are measured as the
    row "truth". keep: the judges' layers handed back for each picture; compare: those correlated (Pearson) with the
    layers of the ground truths. Of these, pair measures have "own <layer>", the correlation with the truth of the pair,
    and "rank <layer>", how many other ground truths correlate at least as much.
    ValueError: a picture that cannot be read, or of another size than its ground truth.
    """
    everything = truths + [path for trial in zip(*rows.values(), strict=True) for cell in trial for path in cell]
    quiet = True if world_size() > 1 and dist.get_rank() else None
    with tqdm(total=0, desc="evaluate", unit="picture", disable=quiet) as bar:
        about = _spread(_cut(everything, 64), _identify)
        digests = dict(zip(everything, about["digest"].tolist(), strict=True))
        if len(wrong := np.flatnonzero((about["size"] != about["size"][0]).any(1))):
            (h, w), (h0, w0) = about["size"][wrong[0]], about["size"][0]
            raise ValueError(
                f"{everything[wrong[0]]} is {w} x {h} px, its truth {w0} x {h0}: pictures of two runs are mixed, "
                "reconstruct anew"
            )
        first: dict[str, Path] = {}
        for path in everything:
            first.setdefault(digests[path], path)
        number, paths = {digest: i for i, digest in enumerate(first)}, list(first.values())
        numbers = {
            row: np.array([[number[digests[p]] for p in cell] for cell in cells])
            for row, cells in (rows | {"truth": [[path] for path in truths]}).items()
        }
        own = numbers["truth"][:, 0]
        gallery = len(np.unique(own))  # they came first
        bar.total = len(paths)
        bar.refresh()

        # Different pairs (p, 2) of a picture and a ground truth, by picture, and where each is wanted
        codes: dict[tuple[str, str | None], np.ndarray] = {}
        for row, mine in numbers.items():
            codes[row, None] = mine * gallery + own[:, None]
            for name, (inside, dealt) in deals.items():
                codes[row, name] = mine[inside][..., None] * gallery + own[dealt[:, : mine.shape[1]]]
        unique, inverse = np.unique(np.concatenate([code.ravel() for code in codes.values()]), return_inverse=True)
        ends = np.cumsum([code.size for code in codes.values()])[:-1]
        where = {key: part.reshape(codes[key].shape) for key, part in zip(codes, np.split(inverse, ends), strict=True)}
        pairs = np.stack([unique // gallery, unique % gallery], 1)

        def layers_of(images: Tensor) -> dict[str, Tensor]:
            made = {name: layer for judge in judges for name, layer in judge(images).items()}
            return {name: made[name] for name in (*keep, *compare)}

        @torch.inference_mode()
        def forward(part: Sequence[int]) -> Arrays:
            images = read_pictures([paths[i] for i in part]).to(device)
            return {name: layer.float().cpu().numpy() for name, layer in layers_of(images).items()}

        # Ground truths are wanted again and again: some are kept.
        kept_truths = max(batch_size, TRUTH_CACHE // int(12 * about["size"][0].prod()))
        truth_picture = functools.lru_cache(kept_truths)(lambda t: read_pictures([paths[t]])[0])

        @torch.inference_mode()
        def work(part: Sequence[int]) -> Arrays:
            images = read_pictures([paths[i] for i in part]).to(device)
            if part[-1] < gallery:
                layers = {name: torch.from_numpy(layer[part[0] : part[-1] + 1]) for name, layer in truth_layers.items()}
            else:
                layers = layers_of(images)
            found: Arrays = {}
            start, stop = np.searchsorted(pairs[:, 0], (part[0], part[-1] + 1))
            at, target = pairs[start:stop, 0] - part[0], pairs[start:stop, 1]
            found |= {name: layers[name].float().cpu().numpy() for name in keep}
            for name in compare:
                match = standardise(layers[name].to(device)) @ compared[name].T  # (B, gallery)
                # The digits after the sixth depend on a picture's company; rounding may leave [-1, 1].
                match = match.mul(1e6).round().div(1e6).clamp(-1, 1)
                same = match[at, target]
                found[f"own {name}"] = same.cpu().numpy()
                found[f"rank {name}"] = ((match[at] >= same[:, None]).sum(1) - 1).cpu().numpy()
            different, which = np.unique(target, return_inverse=True)
            seen = torch.stack([truth_picture(t) for t in different.tolist()]).to(device)
            both = torch.from_numpy(np.stack([at, which], 1)).to(device)
            for names, likeness in pair_measures.items():
                values = likeness(images, seen, both).float().cpu().numpy()
                found |= zip(names, values.reshape(len(both), -1).T, strict=True)
            bar.update(min(len(part) * world_size(), bar.total - bar.n))
            return found

        cut = _cut(range(gallery), batch_size)
        truth_layers = _spread(cut, forward)
        compared = {name: standardise(torch.from_numpy(truth_layers[name])).to(device) for name in compare}
        found = _spread([*cut, *_cut(range(gallery, len(paths)), batch_size)], work)
    kept = {name: found.pop(name) for name in keep}
    return Measured(numbers, kept, found, where, gallery)
