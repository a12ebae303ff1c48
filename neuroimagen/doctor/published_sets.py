"""What the published data sets hold and what is held against them, for comparison with a user's files."""

from typing import NamedTuple


class Published(NamedTuple):
    """A published data set, from its card, loader or paper (docs/doctor.md says which)."""

    name: str
    validity: str  # what is known of its design that a reviewer will hold against a result
    facts: dict[str, tuple[int, ...]]  # what -> numbers that have been published for it
    sorted: bool = False  # the file is in the order of classes, not of time


_BLOCKS = (
    "one class was shown in one uninterrupted block, so slow drift of the recording tells classes apart without any "
)
PUBLISHED = {  # by the reader's name
    "perceivelab": Published(
        "PerceiveLab EEG-ImageNet-40",
        f"{_BLOCKS}vision (Li et al. 2020; Ahmed et al. 2021): show the held-out subject, shuffled-label and noise-EEG "
        "controls, and another filter band",
        {"trials": (11965, 11964), "images": (1996,), "classes": (40,), "subjects": (6,), "channels": (128,)},
    ),
    "things_eeg2": Published(
        "THINGS-EEG2",
        "the test set has one image of each of 200 concepts, customarily averaged over 80 repetitions: say how many "
        "were averaged, and that no test concept is among the training concepts",
        # Trials of one subject and of ten: 16,540 x 4 and 200 x 80.
        {
            **{"trials": (82160, 821600), "images": (16740,), "classes": (1854,), "subjects": (10,)},
            "channels": (17, 63),
        },
        sorted=True,
    ),
    "eeg_imagenet": Published(
        "EEG-ImageNet (2024)",
        f"{_BLOCKS}vision, and the first 30 and last 20 images of a block are not independent",
        {"trials": (87850,), "classes": (80,), "subjects": (16,), "channels": (62,)},
    ),
}
