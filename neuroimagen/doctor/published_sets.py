"""What the published data sets hold and what is held against them, for comparison with a user's files."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Published:
    """What a published data set holds, from its card, loader or paper (docs/doctor.md says which)."""

    name: str
    facts: dict[str, tuple[int, ...]]  # what -> numbers that have been published for it
    sorted: bool  # the file is in the order of classes, not of time
    validity: str  # what is known of its design that a reviewer will hold against a result


_BLOCKS = (
    "one class was shown in one uninterrupted block, so slow drift of the recording tells classes apart without any "
)
PUBLISHED = {
    "perceivelab": Published(
        "PerceiveLab EEG-ImageNet-40",
        {
            "trials": (11965, 11964),
            "images": (1996,),
            "classes": (40,),
            "subjects": (6,),
            "channels": (128,),
        },
        False,
        f"{_BLOCKS}vision (Li et al. 2020; Ahmed et al. 2021): show the held-out subject, shuffled-label and noise-EEG "
        "controls, and another filter band",
    ),
    "things": Published(
        "THINGS-EEG2",
        {
            "trials": (82160, 821600),  # of one subject and of ten: 16,540 x 4 and 200 x 80
            "images": (16740,),
            "classes": (1854,),
            "subjects": (10,),
            "channels": (17, 63),
        },
        True,
        "the test set has one image of each of 200 concepts, customarily averaged over 80 repetitions: say how many "
        "were averaged, and that no test concept is among the training concepts",
    ),
    "eegimagenet": Published(
        "EEG-ImageNet (2024)",
        {"trials": (87850,), "classes": (80,), "subjects": (16,), "channels": (62,)},
        False,
        f"{_BLOCKS}vision, and the first 30 and last 20 images of a block are not independent",
    ),
}


def published(dataset: str) -> Published | None:
    """The data set that a reader's name stands for."""
    plain = re.sub("[^a-z]", "", dataset.lower())
    return next((found for name, found in PUBLISHED.items() if plain.startswith(name)), None)
