"""Which trials a step takes: orders are functions of (seed, position) alone, so a position is all there is to resume.

An order is called with two positions, `order(start, stop)`, and gives the indices of the trials between them.
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import get_worker_info

Order = Callable[[int, int], np.ndarray]


class EpochOrder:
    """Positions start..stop of the endless train order of `trials`, so many or these indices -> indices.

    Each epoch is one permutation of all trials, a function of (seed, epoch); epochs are laid end to end.
    """

    def __init__(self, trials: int | np.ndarray, seed: int) -> None:
        self.trials, self.seed = trials, seed
        self.n = trials if isinstance(trials, int) else len(trials)
        self.permutation = functools.lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.trials)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        n, epochs = self.n, range(start // self.n, -(-stop // self.n))
        return np.concatenate([self.permutation(e)[max(start - e * n, 0) : stop - e * n] for e in epochs])


class BalancedOrder:
    """Batches of `classes` classes x `trials` trials of each, class by class, laid end to end.

    Classes come in rounds. A round is a permutation of all C classes, a function of (seed, round), cut into C //
    classes batches of different classes; the C % classes left over sit that round out (others in another round). Trials
    of a class come in passes, in the same way: a pass is a permutation of its n trials, a function of (seed, class,
    pass), cut into n // trials groups of different trials, and round r takes group r % (n // trials) of pass r // (n //
    trials); the n % trials left over sit that pass out. So no class and no trial comes twice in a batch, and no trial
    twice in a pass, except that a class of fewer than `trials` trials shows each of them as often as is needed to fill
    its place.
    """

    def __init__(self, labels: np.ndarray, classes: int, trials: int, seed: int) -> None:
        """labels (n,): the class of each trial; one below 0 is never drawn. ValueError if there are too few classes."""
        present = np.unique(labels[labels >= 0])
        if len(present) < classes:
            raise ValueError(
                f"classes_per_batch={classes}, but the train split has trials of {len(present)} classes: lower it"
            )
        self.members = {label: np.flatnonzero(labels == label) for label in present.tolist()}
        self.labels = present
        self.classes, self.trials, self.seed = classes, trials, seed
        self.round = functools.lru_cache(maxsize=2)(self._round)
        self.pass_of = functools.lru_cache(maxsize=len(present))(self._pass_of)

    def _round(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0, number]).permutation(self.labels)

    def _pass_of(self, which: int, number: int) -> np.ndarray:
        order = np.random.default_rng([self.seed, 1, which, number]).permutation(self.members[which])
        return np.resize(order, max(len(order), self.trials))

    def batch(self, step: int) -> np.ndarray:
        """The classes * trials indices of one step."""
        number, place = divmod(step, len(self.members) // self.classes)
        parts = []
        for which in self.round(number)[place * self.classes : (place + 1) * self.classes].tolist():
            passes, group = divmod(number, max(1, len(self.members[which]) // self.trials))
            parts.append(self.pass_of(which, passes)[group * self.trials : (group + 1) * self.trials])
        return np.concatenate(parts)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        size = self.classes * self.trials
        steps = range(start // size, -(-stop // size))
        return np.concatenate([self.batch(s)[max(start - s * size, 0) : stop - s * size] for s in steps])


class RepeatedOrder:
    """Of each trial of another order k trials: itself and others of its group, drawn by (seed, its position).

    One whose group is smaller than k brings all of them, in turn until there are k.
    """

    def __init__(self, order: Order, groups: np.ndarray, k: int, seed: int) -> None:
        """groups (n,): the group of each trial. ValueError if all of them are alone."""
        self.order, self.k, self.seed = order, k, seed
        self.group, counts = np.unique(groups, return_inverse=True, return_counts=True)[1:]
        if counts.max() < 2:
            raise ValueError(f"average_k={k}: no picture was shown to anyone twice in train; leave it out")
        self.members = np.split(np.argsort(self.group, kind="stable"), counts.cumsum()[:-1])

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """start, stop: positions of the k trials, multiples of k."""
        first, taken = start // self.k, []
        for position, i in enumerate(self.order(first, stop // self.k).tolist(), first):
            others = np.random.default_rng([self.seed, 2, position]).permutation(self.members[self.group[i]])
            taken.append(np.resize(np.concatenate([[i], others[others != i]]), self.k))
        return np.concatenate(taken)


def worker() -> tuple[int, int]:
    """(number, count) of this loader worker; (0, 1) without workers.

    Worker w of W makes batches w, w+W, ... and the loader takes from the workers in turn, so the order is that of none.
    """
    this = get_worker_info()
    return (this.id, this.num_workers) if this else (0, 1)


def train_indices(order: Order, batch_size: int, rank: int, world: int, step: int) -> Iterator[np.ndarray]:
    """Of each batch of this rank and loader worker, from `step` on: the rank's slice of the global batch."""
    number, workers = worker()
    for s in itertools.count(step + number, workers):
        start = (s * world + rank) * batch_size
        yield order(start, start + batch_size)


def eval_indices(n: int, batch_size: int, rank: int, world: int) -> Iterator[np.ndarray]:
    """The same, of all n trials once: rank, rank + world, ..."""
    number, workers = worker()
    mine = np.arange(rank, n, world)
    for start in range(number * batch_size, len(mine), workers * batch_size):
        yield mine[start : start + batch_size]
