"""One pass over a run's pictures: each different picture through each network once, each pair compared once.

Pictures are told apart by their pixels, so the ground truth of several subjects' trials, or a training picture that the
retrieval row returns many times, is judged once. Work is cut in fixed batches that the processes take in turn: a
picture meets the same company on any number of processes, and so the same bits come out.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from tqdm import tqdm

from neuroimagen.collectives import spread, world_size
from neuroimagen.evaluation.classifiers import read_pictures, read_pixels

Arrays = dict[str, np.ndarray]
T = TypeVar("T")


@dataclasses.dataclass
class Judge:
    """A network, and what is wanted of its layers.

    `outputs` takes float (B, 3, H, W) in [0, 1] on the device and gives {layer: (B, D)}.
    """

    outputs: Callable[[Tensor], dict[str, Tensor]]
    keep: Sequence[str] = ()  # layers handed back for each picture
    compare: Sequence[str] = ()  # layers correlated (Pearson) with those of the ground-truth pictures


# reconstructions (B, 3, H, W), different ground truths (m, 3, H, W) in [0, 1], which of them (B,) -> {metric: (B,)}
PairMeasure = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


@dataclasses.dataclass
class Measured:
    """What the pass found; pictures are numbered, the ground truths 0 .. gallery - 1."""

    numbers: Arrays  # row -> (n, samples) picture numbers; ground truths: (n, 1)
    outputs: Arrays  # kept layer -> (pictures, D)
    pairs: dict[str, Arrays]  # row -> {measure: (n, samples)}: of the pair with the trial's own ground truth
    gallery: int

    def of(self, layer: str, row: str) -> np.ndarray:
        """(n * samples, D)"""
        return self.outputs[layer][self.numbers[row].ravel()]


def _spread(parts: Sequence[T], work: Callable[[T], Arrays], weigh: Callable[[T], int], bar: Any) -> Arrays:
    """`work` of each part, by the processes in turn; results concatenated in the parts' order, on every process."""

    def counted(part: T) -> Arrays:
        found = work(part)
        bar.update(min(weigh(part) * world_size(), bar.total - bar.n))
        return found

    found = spread(counted, parts)
    return {name: np.concatenate([arrays[name] for arrays in found]) for name in (found[0] if found else ())}


def _cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _identify(paths: Sequence[Path], bar: Any) -> Arrays:
    """Of each picture a "digest" of its pixels, and its "size" (height, width)."""

    def work(part: Sequence[Path]) -> Arrays:
        pixels = [read_pixels(path) for path in part]
        digests = [hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest() for picture in pixels]
        return {"digest": np.array(digests), "size": np.array([picture.shape[:2] for picture in pixels])}

    return _spread(_cut(paths, 64), work, lambda part: 0, bar)


def standardise(features: Tensor) -> Tensor:
    """Rows of (B, D) to mean 0 and length 1, so that products are Pearson correlations.

    A row that is constant but for rounding becomes 0, as in perceptual.py.
    """
    centred = features.float() - features.float().mean(1, keepdim=True)
    norms, scale = centred.norm(dim=1, keepdim=True), features.abs().amax(1, keepdim=True) * features.shape[1] ** 0.5
    return torch.where(norms > 1e-6 * scale, centred / norms.clamp(min=1e-30), 0.0)


def measure(
    rows: dict[str, list[list[Path]]],
    truths: list[Path],
    others: list[Path] | None,
    judges: Iterable[Judge],
    pair_measures: Iterable[PairMeasure],
    other_measures: Iterable[PairMeasure],
    batch_size: int,
    device: torch.device,
) -> Measured:
    """Judge every picture and compare every pair; collective: every rank.

    rows: by name, of each trial its samples. truths: of each trial. others: of each trial another's ground truth, with
    which `other_measures` compare its samples too; they are also measured as a row of their own, "other". The ground
    truths are measured as the row "truth". Pair measures have, for each compared layer, "own <layer>", the correlation
    with the own ground truth, and "rank <layer>", how many other ground truths correlate at least as much.
    ValueError: a picture that cannot be read, or of another size than its ground truth.
    """
    judges, pair_measures, other_measures = list(judges), list(pair_measures), list(other_measures)
    extra = {"truth": [[path] for path in truths]} | ({"other": [[path] for path in others]} if others else {})
    everything = truths + [path for trial in zip(*rows.values(), strict=True) for cell in trial for path in cell]
    quiet = True if world_size() > 1 and dist.get_rank() else None
    with tqdm(total=0, desc="evaluate", unit="picture", disable=quiet) as bar:
        about = _identify(everything, bar)
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
        numbers = {row: np.array([[number[digests[p]] for p in cell] for cell in cells])
                   for row, cells in (rows | extra).items()}  # fmt: skip
        own = numbers["truth"]
        gallery = len(np.unique(own))  # they came first
        bar.total = len(paths)
        bar.refresh()

        def pairs_of(wanted: dict[str, np.ndarray]) -> tuple[np.ndarray, Arrays]:
            """Different pairs (p, 2) of a picture and a ground truth, by picture; row -> (n, samples) pair numbers."""
            codes = [(numbers[row] * gallery + truth).ravel() for row, truth in wanted.items()]
            unique, inverse = np.unique(np.concatenate([np.zeros(0, int), *codes]), return_inverse=True)
            where = np.split(inverse, np.cumsum([len(code) for code in codes])[:-1])
            shaped = {row: part.reshape(numbers[row].shape) for row, part in zip(wanted, where, strict=False)}
            return np.stack([unique // gallery, unique % gallery], 1), shaped

        own_pairs, own_where = pairs_of({row: own for row in numbers})
        other_pairs, other_where = pairs_of({row: numbers["other"] for row in [*rows, "truth"]} if others else {})
        truth_layers: Arrays = {}
        compared: dict[str, Tensor] = {}

        def layers_of(images: Tensor) -> dict[str, Tensor]:
            return {name: layer for judge in judges for name, layer in judge.outputs(images).items()
                    if name in (*judge.keep, *judge.compare)}  # fmt: skip

        @torch.inference_mode()
        def forward(part: Sequence[int]) -> Arrays:
            images = read_pictures([paths[i] for i in part]).to(device)
            return {name: layer.float().cpu().numpy() for name, layer in layers_of(images).items()}

        @torch.inference_mode()
        def work(part: Sequence[int]) -> Arrays:
            images = read_pictures([paths[i] for i in part]).to(device)
            if part[-1] < gallery:
                layers = {name: torch.from_numpy(layer[part[0] : part[-1] + 1]) for name, layer in truth_layers.items()}
            else:
                layers = layers_of(images)
            found: Arrays = {}
            mine, at, target = _pairs_in(part, own_pairs)
            for judge in judges:
                found |= {name: layers[name].float().cpu().numpy() for name in judge.keep}
                for name in judge.compare:
                    match = standardise(layers[name].to(device)) @ compared[name].T  # (B, gallery)
                    # The digits after the sixth depend on a picture's company; rounding may leave [-1, 1].
                    match = match.mul(1e6).round().div(1e6).clamp(-1, 1)
                    same = match[at, target]
                    found[f"own {name}"] = same.cpu().numpy()
                    found[f"rank {name}"] = ((match[at] >= same[:, None]).sum(1) - 1).cpu().numpy()
            found |= _compare(images, mine, at, paths, pair_measures, "")
            if len(other_pairs):
                mine, at, _ = _pairs_in(part, other_pairs)
                found |= _compare(images, mine, at, paths, other_measures, "other ")
            return found

        cut = _cut(range(gallery), batch_size)
        truth_layers = _spread(cut, forward, lambda part: 0, bar)
        compared = {n: standardise(torch.from_numpy(truth_layers[n])).to(device) for j in judges for n in j.compare}
        found = _spread([*cut, *_cut(range(gallery, len(paths)), batch_size)], work, len, bar)
    kept = {name: found.pop(name) for judge in judges for name in judge.keep}
    pairs: dict[str, Arrays] = {row: {} for row in numbers}
    for name, values in found.items():
        for row, where in (other_where if name.startswith("other ") else own_where).items():
            pairs[row][name] = values[where]
    return Measured(numbers, kept, pairs, gallery)


def _pairs_in(part: Sequence[int], pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of a batch of consecutive pictures, the pictures' places in it, and the ground truths."""
    start, stop = np.searchsorted(pairs[:, 0], (part[0], part[-1] + 1))
    mine = pairs[start:stop]
    return mine, mine[:, 0] - part[0], mine[:, 1]


def _compare(
    images: Tensor, pairs: np.ndarray, at: np.ndarray, paths: list[Path], measures: Iterable[PairMeasure], prefix: str
) -> Arrays:
    truths, which = np.unique(pairs[:, 1], return_inverse=True)
    found: Arrays = {}
    seen = read_pictures([paths[t] for t in truths]).to(images.device)
    for measure in measures:
        values = measure(images[at], seen, torch.from_numpy(which))
        found |= {prefix + name: v.float().cpu().numpy() for name, v in values.items()}
    return found
