"""Small random files in the published EEG-ImageNet format, for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from perceivelab_files import jpeg

COARSE = ["n02389026", "n03888257"]
FINE = ["n02099601"]
LABELS = [*FINE, *COARSE]  # the fine classes come first


def make_part(
    rng: np.random.Generator, subjects: range, images: dict[str, list[str]], n_chans: int, shuffle: bool
) -> dict[str, Any]:
    """What one file holds: each subject sees each class in one block, in the same order or each in their own."""
    trials = []
    for subject in subjects:
        for wnid, names in images.items():
            for image in rng.permutation(names).tolist() if shuffle else names:
                eeg = rng.standard_normal((n_chans, int(rng.integers(495, 502)))) * 1e-5
                trials.append(
                    {
                        "eeg_data": torch.from_numpy(eeg.astype(np.float32)),
                        "granularity": "fine" if wnid in FINE else "coarse",
                        "subject": subject,
                        "label": wnid,
                        "image": image,
                    }
                )
    return {"dataset": trials, "labels": list(images), "images": [image for own in images.values() for image in own]}


def write_study(
    folder: Path,
    seed: int = 0,
    per_class: int = 50,
    subjects: int = 1,
    n_chans: int = 4,
    shuffle: bool = False,
    parts: tuple[int, ...] = (1, 2),
) -> dict[int, dict[str, Any]]:
    """eeg/EEG-ImageNet_1.pth and _2.pth, of `subjects` people each, and images/<wnid>/; returns {part: content}."""
    rng = np.random.default_rng(seed)
    images = {wnid: [f"{wnid}_{7 * i + 3}.JPEG" for i in rng.permutation(per_class)] for wnid in LABELS}
    for wnid, names in images.items():
        (folder / "images" / wnid).mkdir(parents=True)
        for name in names:
            (folder / "images" / wnid / name).write_bytes(jpeg(rng, (20, 16)))
    (folder / "eeg").mkdir()
    made = {}
    for part in parts:
        made[part] = make_part(rng, range((part - 1) * subjects, part * subjects), images, n_chans, shuffle)
        torch.save(made[part], folder / "eeg" / f"EEG-ImageNet_{part}.pth")
    return made
