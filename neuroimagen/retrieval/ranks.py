"""Where the picture seen stands among all pictures of a gallery, and what follows from that in closed form: no draws.

What is tied with the picture seen is as likely before it as behind it: each number is its mean over all orders of what
is tied, so a similarity that is constant gets chance, exactly. Formulas and sources: docs/retrieval.md.
"""

import dataclasses

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import skew
from torch import Tensor
from torch.nn import functional as F

TOP, N_WAY = (1, 5, 10), (2, 4, 10, 50, 100, 200)
PERMUTATIONS = 1000
TESTED = ("top1", "rank")  # what has a p-value
ROWS = 512  # queries compared with the gallery at once
NEAREST = 5
Found = dict[str, np.ndarray]
SUMS = ("retrieved", "null")  # what is a sum over queries; all else has a line a query


def merged(parts: list[Found]) -> Found:
    """What `Gallery.search` found of all queries, from what it found of some."""
    each = {name: [part[name] for part in parts] for name in parts[0]}
    return {name: np.sum(found, 0) if name in SUMS else np.concatenate(found) for name, found in each.items()}


def places(ordered: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(n, k) each: how many of `ordered` (n, m), ascending, are above `values` (n, k), and how many equal them."""
    first, behind = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
    return ordered.shape[1] - behind, behind - first


def expected(table: np.ndarray, above: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """The mean of table (m,), what a rank from 0 is worth, over the ranks from `above` on that are tied."""
    sums = np.concatenate([[0.0], np.cumsum(table)])
    return (sums[above + tied] - sums[above]) / tied


def n_way_table(m: int, n: int) -> np.ndarray:
    """(m,): the chance that none of n - 1 others, drawn without replacement from m - 1, is among the `rank` better."""
    better = np.arange(m - 1)
    return np.concatenate([[1.0], np.cumprod((m - n - better).clip(0) / (m - 1 - better))])


def tables(m: int) -> dict[str, np.ndarray]:
    """Metric -> what a rank from 0 among m is worth. Chance is the mean of each."""
    found = {f"top{k}": (np.arange(m) < k) * 1.0 for k in TOP if k < m}
    found |= {f"way{n}": n_way_table(m, n) for n in N_WAY if n <= m}
    return found | {"rank": np.arange(1.0, m + 1)}


def deal(seen_by: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0) -> np.ndarray:
    """(m, 1 + permutations): which picture's place each picture takes; first its own.

    seen_by (m,): pictures are permuted among those that the same people saw; all trials of a picture go together.
    """
    rng, m = np.random.default_rng(seed), len(seen_by)
    found, own = np.empty((m, 1 + permutations), np.int32), np.argsort(seen_by, kind="stable")
    found[:, 0] = np.arange(m)
    for column in range(1, 1 + permutations):
        found[own, column] = np.lexsort((rng.random(m), seen_by))
    return found


@dataclasses.dataclass
class Gallery:
    """Pictures to be told apart: vectors (m, D), whose products with a query are its similarities; labels (m,)."""

    vectors: Tensor
    labels: np.ndarray

    def __post_init__(self) -> None:
        m, self.k = len(self.vectors), max(1, min(10, len(self.vectors) // 10))  # k: of hubness
        number: dict[bytes, int] = {}  # of equal pictures one product, as the last bits of two may differ
        place = [number.setdefault(row.tobytes(), len(number)) for row in self.vectors.cpu().numpy()]
        self.distinct = self.vectors[np.unique(place, return_index=True)[1]]
        self.place = torch.tensor(place, device=self.vectors.device)
        self.tables = tables(m)
        self.of_class, counts = np.unique(self.labels, return_inverse=True, return_counts=True)[1:]
        self.shared = 1 < len(counts) < m  # else classes say nothing that pictures do not
        reciprocal = 1 / np.arange(1.0, m + 1)
        self.harmonic = torch.from_numpy(np.concatenate([[0.0], np.cumsum(reciprocal)]))
        self.chance = {name: float(table.mean()) for name, table in self.tables.items()} | {"median": (m + 1) / 2}
        if not self.shared:
            self.tables["map"], self.chance["map"] = reciprocal, float(reciprocal.mean())
            return
        where = [np.flatnonzero(self.of_class == c) for c in range(len(counts))]
        self.mates = torch.full((len(counts), counts.max()), -1)
        for c, pictures in enumerate(where):
            self.mates[c, : len(pictures)] = torch.from_numpy(pictures)
        unit = F.normalize(self.vectors, dim=1)
        means = torch.stack([unit[pictures].mean(0) for pictures in where])
        self.prototypes = F.normalize(means, dim=1)
        mean_h = float(reciprocal.mean())
        self.chance_of_class = mean_h + (counts - 1) / (m - 1) * (1 - mean_h)  # average precision in random order
        self.chance["class"] = 1 / len(counts)

    def search(self, z: Tensor, truth: np.ndarray, deals: np.ndarray, group: np.ndarray, n_groups: int) -> Found:
        """What queries z (n, D) find, whose pictures are truth (n,); group (n,): of 0 .. n_groups - 1, or -1, none.

        above, tied (n,): pictures that are more similar than the one seen, and those as similar, itself among them;
        map, class (n,), where classes share pictures: average precision over the class, and whether the nearest
        prototype is of it; nearest (n, 5). Sums over each group: retrieved (groups, m), how many queries have a picture
        among their k nearest; null (groups, 1 + permutations, 2), TESTED with the places dealt out.
        """
        parts = np.split(np.arange(len(z)), range(ROWS, len(z), ROWS))
        return merged([self._search(z[i], truth[i], deals, group[i] == np.arange(n_groups)[:, None]) for i in parts])

    def _search(self, z: Tensor, truth: np.ndarray, deals: np.ndarray, member: np.ndarray) -> Found:
        likeness, members = (z @ self.distinct.T)[:, self.place], torch.from_numpy(member).to(z)
        ordered = likeness.sort(1).values
        dealt = torch.from_numpy(deals[truth]).to(z.device, torch.int64)
        above, tied = (x.cpu().numpy() for x in places(ordered, likeness.gather(1, dealt)))
        found = {"above": above[:, 0], "tied": tied[:, 0]}
        found["nearest"] = likeness.topk(min(NEAREST, likeness.shape[1])).indices.cpu().numpy()
        tested = [expected(self.tables[name], above, tied) for name in TESTED]
        found["null"] = np.stack([member @ worth for worth in tested], 2)
        least = ordered[:, -self.k, None]
        more, even = likeness > least, likeness == least
        more = more + even * ((self.k - more.sum(1, keepdim=True)) / even.sum(1, keepdim=True))
        found["retrieved"] = (members @ more).double().cpu().numpy()
        if self.shared:
            found["map"] = self._precision(likeness, ordered, truth)
            by_class = z @ self.prototypes.T
            own = by_class.gather(1, torch.from_numpy(self.of_class[truth, None]).to(z.device))
            above, tied = (x[:, 0].cpu().numpy() for x in places(by_class.sort(1).values, own))
            found["class"] = (above == 0) / tied
        return found

    def _precision(self, likeness: Tensor, ordered: Tensor, truth: np.ndarray) -> np.ndarray:
        """(n,) average precision over the pictures of each query's class. Of one of them, with c pictures above it and
        t as similar, R of c and r of t of the class: the mean over i = 1..t of (R + 1 + (i - 1) q) / (c + i),
        q = (r - 1) / (t - 1) (McSherry & Najork 2008)."""
        mates = self.mates[self.of_class[truth]].to(likeness.device)
        own = likeness.gather(1, mates.clamp(0)).masked_fill(mates < 0, -torch.inf)
        above, tied, of_class, tied_of_class = (
            x.cpu() for x in (*places(ordered, own), *places(own.sort(1).values, own))
        )
        q = (tied_of_class - 1).double() / (tied - 1).clamp(1)
        steps = self.harmonic[above + tied] - self.harmonic[above]
        values = (of_class + 1 - (above + 1) * q) * steps / tied.clamp(1) + q
        known = (mates >= 0).cpu()
        return (torch.where(known, values, 0).sum(1) / known.sum(1)).numpy()

    def values(self, found: Found) -> Found:
        """Metric -> (n,) of what `search` found."""
        values = {name: expected(table, found["above"], found["tied"]) for name, table in self.tables.items()}
        return values | {name: found[name] for name in ("map", "class") if name in found}


def p_values(null: np.ndarray) -> dict[str, float]:
    """null (1 + permutations, TESTED): sums, first with the places as they are. (b + 1) / (permutations + 1)."""
    gain = null * np.array([1, -1])
    reached = (gain[1:] >= gain[0] - 1e-9 * np.abs(gain[0])).sum(0)
    return dict(zip(TESTED, ((1 + reached) / len(null)).tolist(), strict=True))


def hubness(retrieved: np.ndarray, k: int) -> dict[str, float]:
    """Skewness of N_k, and the share of pictures that no query has among its k nearest (Radovanović et al. 2010)."""
    uneven = float(skew(retrieved)) if np.ptp(retrieved) > 1e-9 else 0.0
    return {"k": k, "skewness": uneven, "never": float((retrieved < 1e-9).mean())}


def transductive(z: Tensor, vectors: Tensor, truth: np.ndarray) -> dict[str, np.ndarray]:
    """What all queries of a set know of each other: z (n, D), each asking for another picture, truth (n,). Each (n,).

    csls_top1, csls_top5: 2 s_ij - r_j, r_j the mean similarity of picture j to its 10 nearest queries (Conneau et al.
    2018; their term of the query changes no rank). matched: whether one-to-one matching with the largest sum of
    similarities gives the query its own picture.
    """
    likeness = (z @ vectors.T).cpu()
    adjusted = 2 * likeness - likeness.topk(min(10, len(z)), 0).values.mean(0)
    above, tied = places(adjusted.sort(1).values, adjusted.gather(1, torch.from_numpy(truth)[:, None]))
    ranked = above[:, 0].numpy(), tied[:, 0].numpy()
    worth = {name: table for name, table in tables(len(vectors)).items() if name in ("top1", "top5")}
    found = {f"csls_{name}": expected(table, *ranked) for name, table in worth.items()}
    rows, columns = linear_sum_assignment(likeness.numpy(), maximize=True)
    return found | {"matched": (truth[rows] == columns) * 1.0}
