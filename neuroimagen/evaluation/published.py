"""Published numbers, as data: who, on which data, by which protocol. Ours stand beside them, never among them.

Values are texts as printed, in the units of our tables (ACC and two-way rates in per cent), under the names of the
score book. A protocol field that a source does not state is NOT_STATED; that is a difference too.
"""

from typing import NamedTuple

NOT_STATED = "not stated"
NOT_NOTED = "see the source"  # stated there or not: we noted the number only


class Protocol(NamedTuple):
    """How a number was made; one phrase a field."""

    subjects: str = NOT_NOTED
    split: str = NOT_NOTED
    band: str = NOT_NOTED
    classifier: str = NOT_NOTED
    inception: str = NOT_NOTED
    n_way: str = NOT_NOTED
    samples: str = NOT_NOTED


class Published(NamedTuple):
    """One published row of numbers; `dataset` as our manifests name it."""

    name: str
    values: dict[str, str]
    source: str
    dataset: str
    protocol: Protocol


PAPER = "Lan et al. 2023, arXiv 2308.02510v2"
PERCEIVELAB, THINGS = "perceivelab", "things_eeg2"
PAPER_PROTOCOL = Protocol(
    subjects="six subjects, one model for all",
    split="80/10/10 by image, all subjects of an image in one split (the published split file is about 4:1:1)",
    band=NOT_STATED,
    classifier="an ImageNet-1k ViT (Dosovitskiy et al. 2020; which size is not stated)",
    inception="by Inception-v3, splits not stated",
    n_way="50-way top-1 (number of random draws not stated)",
    samples="not stated (its Figure 3 shows three)",
)
QUOTED = PAPER_PROTOCOL._replace(
    split="as in the baseline's own paper: the number is quoted, the baseline was not trained anew",
    classifier=NOT_STATED,
    inception=NOT_STATED,
    n_way="none: IS only",
    samples=NOT_STATED,
)

# Every metric with a published number, and its column head, in the order of the columns.
HEADS = {
    "acc": "ACC (%)",
    "is": "IS",
    "fid": "FID",
    "ssim": "SSIM",
    "ssim_425": "SSIM 425 px",
    "pixcorr": "PixCorr",
    "alex2": "AlexNet(2) (%)",
    "alex5": "AlexNet(5) (%)",
    "inception": "Inception (%)",
    "clip": "CLIP (%)",
    "effnet": "EffNet-B",
    "swav": "SwAV",
    "eeg_top1": "EEG to picture top-1 (%)",  # retrieval by the EEG's embedding, not by a reconstruction as ours
    "eeg_top5": "EEG to picture top-5 (%)",
}


def _paper(name: str, values: dict[str, str], table: int, protocol: Protocol = PAPER_PROTOCOL) -> Published:
    return Published(name, values, f"{PAPER}, Table {table}", PERCEIVELAB, protocol)


def _measured(acc: str, inception: str, ssim: str) -> dict[str, str]:
    return {"acc": acc, "is": inception, "ssim": ssim}


# By our row names. IS of the baselines: "the IS reported in the relevant literature".
TABLE_1 = {
    "Brain2Image": _paper("Brain2Image", {"is": "5.01"}, 1, QUOTED),
    "NeuroVision": _paper("NeuroVision", {"is": "5.23"}, 1, QUOTED),
    "L+I": _paper("NeuroImagen", _measured("85.6", "33.50", "0.249"), 1),
}
# By subject number.
TABLE_2 = {
    subject: _paper(f"NeuroImagen, subj {subject:02}", _measured(*values), 2)
    for subject, values in enumerate(
        (
            ("83.84", "32.64", "0.254"),
            ("84.26", "32.33", "0.247"),
            ("86.66", "32.93", "0.251"),
            ("86.48", "32.40", "0.244"),
            ("87.62", "32.97", "0.250"),
            ("85.25", "31.76", "0.245"),
        ),
        1,
    )
}
# By our row names: models 1 to 5.
TABLE_3 = {
    "I": _paper("model 1", _measured("4.5", "16.31", "0.234"), 3),
    "L": _paper("model 2", _measured("85.9", "34.12", "0.180"), 3),
    "B": _paper("model 3", _measured("74.1", "29.87", "0.157"), 3),
    "B+I": _paper("model 4", _measured("65.3", "25.86", "0.235"), 3),
    "L+I": _paper("model 5", _measured("85.6", "33.50", "0.249"), 3),
}


def _retrieval(name: str, top1: str, top5: str, source: str, subjects: str = "within subject") -> Published:
    # Concepts of the test set are in no other: the published split of the data set.
    protocol = Protocol(subjects, "the published test set, 200 concepts", n_way="200-way retrieval", samples="none")
    return Published(name, {"eeg_top1": top1, "eeg_top5": top5}, source, THINGS, protocol)


FOUR = Protocol(subjects="subject 4 only")
OTHERS = (
    Published(
        "GWIT",
        {"acc": "91", "is": "33.87", "fid": "78.11"},
        "Lopez et al. 2025, arXiv 2410.02780",
        PERCEIVELAB,
        Protocol(subjects="all subjects"),
    ),
    Published(
        "BrainVis",
        {"acc": "49", "is": "31.52", "fid": "121.02"},
        "Fu et al. 2023, arXiv 2312.14871",
        PERCEIVELAB,
        FOUR,
    ),
    Published("DreamDiffusion", {"acc": "45"}, "Bai et al. 2023, arXiv 2306.16934", PERCEIVELAB, FOUR),
    Published(
        "EEGStyleGAN-ADA",
        {"is": "10.82", "fid": "174.13"},
        "Singh et al. 2024, arXiv 2310.16532",
        PERCEIVELAB,
        Protocol(),
    ),
    _retrieval("NICE", "15.6", "42.8", "Song et al. 2023, arXiv 2308.13234"),
    _retrieval("UBP", "50.9", "79.7", "Wu et al. 2025 (Uncertainty-aware Blur Prior)"),
    _retrieval("NeuroBridge", "63.2", "89.9", "NeuroBridge"),
    _retrieval("SAMGA", "91.3", "98.8", "SAMGA"),
    _retrieval("SAMGA", "34.4", "64.8", "SAMGA", "across subjects"),
    Published(
        "ATM",
        {
            "pixcorr": "0.160",
            "ssim_425": "0.345",
            "alex2": "77.6",
            "alex5": "86.6",
            "inception": "73.4",
            "clip": "78.6",
            "effnet": "0.826",
            "swav": "0.582",
        },
        "Li et al. 2024, arXiv 2403.07721",
        THINGS,
        Protocol(
            subjects="one subject",
            split="the published test set, 200 concepts",
            classifier="the MindEye suite; SSIM: grey, 425 px",
        ),
    ),
)


def on(dataset: str | None) -> list[Published]:
    """All that is published on a data set, the paper's own first."""
    return [entry for entry in (*TABLE_1.values(), *OTHERS) if entry.dataset == dataset]
