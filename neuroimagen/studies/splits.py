"""Splits that a reader makes itself: by image, by recording run, or (for an audit alone) by trial."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from neuroimagen.studies.study import SPLITS

BY_IMAGE = "80/10/10 of the images of each class (seed {}), every trial of an image in "  # and which, for the protocol

BY_TRIAL = "80/10/10 of the trials of each class at random (seed {}), so the SAME PICTURES are in train and test"


def split_images(
    shown: Iterable[tuple[int, str]], classes: Sequence[str], seed: int, where: str, by: str = "by_image"
) -> list[str]:
    """The split of each trial, of its label and image: 80/10/10 of the images of each label, by (names, seed) alone.

    by: or "trials", each of which is then taken as an image of its own, by (place, seed).
    ValueError, beginning with `where`, for a class (label -> its name) of fewer than three images.
    """
    shown, images = list(shown), defaultdict(set)
    if by == "trials":
        shown = [(label, f"{i:09d}") for i, (label, _) in enumerate(shown)]
    for label, image in shown:
        images[label].add(image)
    side: dict[str, str] = {}
    for label, found in sorted(images.items()):
        names = sorted(found)
        if len(names) < 3:
            raise ValueError(
                f"{where}: class {classes[label]} has {len(names)} {by.removeprefix('by_').rstrip('s')}s; splits={by} "
                "needs 3 or more"
            )
        order = [names[i] for i in np.random.default_rng([seed, label]).permutation(len(names))]
        n = max(1, round(0.1 * len(names)))
        side |= dict.fromkeys(order[:n], "val") | dict.fromkeys(order[n : 2 * n], "test")
        side |= dict.fromkeys(order[2 * n :], "train")
    return [side[image] for _, image in shown]


def split_runs(
    trials: Sequence[tuple[int, str, float]], hold_out: list[int], val_tail: float, length: float, where: str
) -> list[str]:
    """The split of each trial, of its subject, run and onset (s); "" for those to leave out.

    Runs that `hold_out` names (0 is the subject's first, -1 the last) are test; of each other run the last part,
    `val_tail` of it, is val and the rest train, without trials that share a sample with val. length: of a trial, s.
    ValueError, beginning with `where`, if there is no such run, or none to train on.
    """
    runs: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, (subject, run, _) in enumerate(trials):
        runs[subject][run].append(i)
    sides = [""] * len(trials)
    for subject, own in runs.items():
        wrong = [i for i in hold_out if not -len(own) <= i < len(own)]
        if wrong:
            raise ValueError(f"{where}: hold_out={wrong[0]}, but subject {subject} has {len(own)} usable runs")
        test = {i % len(own) for i in hold_out}
        if len(test) == len(own):
            raise ValueError(f"{where}: hold_out leaves subject {subject} no run to train on")
        for number, indices in enumerate(own.values()):
            indices.sort(key=lambda i: trials[i][2])
            first = max(0, len(indices) - max(1, round(val_tail * len(indices))))
            for place, i in enumerate(indices):
                if number in test or place >= first:
                    sides[i] = "test" if number in test else "val"
                elif trials[i][2] + length < trials[indices[first]][2]:
                    sides[i] = "train"
    return sides


def by_split(sides: Iterable[str]) -> dict[str, list[int]]:
    """The trials of each split, in order."""
    sides = list(sides)
    return {name: [i for i, side in enumerate(sides) if side == name] for name in SPLITS}


def refuse_empty(splits: Mapping[str, Sequence[int]], where: str, protocol: str) -> None:
    """ValueError, beginning with `where`, for a split without a trial."""
    for name, indices in splits.items():
        if not indices:
            raise ValueError(f"{where}: no trial is left in split {name!r} ({protocol})")
