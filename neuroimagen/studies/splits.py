"""Splits that a reader makes itself: by image, or by recording run."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def split_images(images: Mapping[int, Iterable[str]], classes: Sequence[str], seed: int, where: str) -> dict[str, str]:
    """Image -> train, val or test: 80/10/10 of the images of each label, a function of (names, seed).

    ValueError, beginning with `where`, for a class (label -> its name) of fewer than three images.
    """
    side: dict[str, str] = {}
    for label, names in sorted((label, sorted(names)) for label, names in images.items()):
        if len(names) < 3:
            raise ValueError(
                f"{where}: class {classes[label]} has {len(names)} images; splits=by_image needs 3 or more"
            )
        order = [names[i] for i in np.random.default_rng([seed, label]).permutation(len(names))]
        n = max(1, round(0.1 * len(names)))
        side |= dict.fromkeys(order[:n], "val") | dict.fromkeys(order[n : 2 * n], "test")
        side |= dict.fromkeys(order[2 * n :], "train")
    return side


def split_runs(
    onsets: Sequence[Sequence[float] | np.ndarray],
    hold_out: list[int],
    val_tail: float,
    length: float,
    who: str,
    where: str,
) -> list[list[str]]:
    """The split of each trial of each run of one subject (`who`); "" for those to leave out.

    Runs that `hold_out` names (0 is the first, -1 the last) are test; of each other run the last part, `val_tail` of
    it, is val and the rest train, without trials that share a sample with val. onsets: s, rising; length: of a trial.
    ValueError, beginning with `where`, if there is no such run, or none to train on.
    """
    wrong = [i for i in hold_out if not -len(onsets) <= i < len(onsets)]
    if wrong:
        raise ValueError(f"{where}: hold_out={wrong[0]}, but {who} has {len(onsets)} usable runs")
    test = {i % len(onsets) for i in hold_out}
    if len(test) == len(onsets):
        raise ValueError(f"{where}: hold_out leaves {who} no run to train on")
    sides = []
    for number, own in enumerate(onsets):
        if number in test:
            sides.append(["test"] * len(own))
            continue
        first = max(0, len(own) - max(1, round(val_tail * len(own))))
        sides.append(["train" if s + length < own[first] else "" for s in own[:first]] + ["val"] * (len(own) - first))
    return sides


def refuse_empty(splits: Mapping[str, Sequence[int]], where: str, protocol: str) -> None:
    """ValueError, beginning with `where`, for a split without a trial."""
    for name, indices in splits.items():
        if not indices:
            raise ValueError(f"{where}: no trial is left in split {name!r} ({protocol})")
