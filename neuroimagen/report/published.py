"""Published numbers, as data: who, on which data, by which protocol. Ours stand beside them, never among them.

Values are texts as printed, in the units of our tables (ACC and two-way rates in per cent), under the names of the
score book. A protocol field that a source does not state is NOT_STATED; that is a difference too.
"""

from typing import NamedTuple

NOT_STATED = "not stated"
NOT_NOTED = "see the source"  # stated there or not: we noted the number only


class Protocol(NamedTuple):
    """How a number was made; one phrase a field.

    selected: the split that chose the checkpoint or the epoch, as the published code shows or the text says: test | val
    | last (none was chosen) | not stated (in nothing that we read)
    """

    subjects: str = NOT_NOTED
    split: str = NOT_NOTED
    band: str = NOT_NOTED
    selected: str = NOT_STATED
    classifier: str = NOT_NOTED
    inception: str = NOT_NOTED
    n_way: str = NOT_NOTED
    samples: str = NOT_NOTED


class Published(NamedTuple):
    """One published row of numbers; `dataset` as our manifests name it, `remark` a sentence for the table's notes."""

    name: str
    values: dict[str, str]
    source: str
    dataset: str
    protocol: Protocol
    remark: str = ""


PAPER = "Lan et al. 2023, arXiv 2308.02510v2"
PERCEIVELAB, THINGS, EEG_IMAGENET = "perceivelab", "things_eeg2", "eeg_imagenet"
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
    "eeg_acc": "EEG classified (%)",  # the EEG by a classifier of EEG; no picture is drawn
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


POSTERIOR = "not stated; 17 posterior channels, 250 Hz, whitened; test: mean of 80 repetitions"


def _retrieval(
    name: str,
    top1: str,
    top5: str,
    source: str,
    selected: str = NOT_STATED,
    band: str = NOT_NOTED,
    subjects: str = "within subject",
    remark: str = "",
) -> Published:
    # Concepts of the test set are in no other: the published split of the data set.
    split = "the published test set, 200 concepts"
    protocol = Protocol(subjects, split, band, selected, n_way="200-way retrieval", samples="none")
    return Published(name, {"eeg_top1": top1, "eeg_top5": top5}, source, THINGS, protocol, remark)


def _eeg_imagenet(name: str, acc: str, classes: str) -> Published:
    split = "of the 50 trials of a block the first 30 train, the rest test"
    protocol = Protocol(split=split, n_way=classes, samples="none")
    return Published(f"EEG-ImageNet, {name}", {"eeg_acc": acc}, "EEG-ImageNet, 2024", EEG_IMAGENET, protocol)


FOUR = Protocol(subjects="subject 4 only", band="5-95 Hz", selected="test")
SAMGA, AGAIN = "Jiang et al. 2026, arXiv 2601.21948", "RTae/SUPA-EEG, 2026: an independent re-implementation, 3 seeds"
BRIDGE, ACROSS = "BRIDGE, 2026", "across subjects"
POSTERIOR_100, PEAK = "not stated; 17 posterior channels, 100 Hz", "the best test top-1 of all epochs"
# NeuralBench's top-5 on these data is left out: pooled over subjects, with a chance of 2.2 %, it is another metric.
OTHERS = (
    Published(
        "GWIT",
        {"acc": "91", "is": "33.87", "fid": "78.11"},
        "Lopez et al. 2025, arXiv 2410.02780",
        PERCEIVELAB,
        Protocol(
            subjects="all subjects",
            band="raw, unfiltered",
            classifier="ViT-H/14",
            n_way="50-way, 50 random draws",
        ),
        "band: its author, in issue 8 of LuigiSigillo/GWIT; its captions are chosen by nearest neighbours in the "
        "features of a 96.7 % classifier of the same EEG",
    ),
    Published(
        "BrainVis",
        {"acc": "49", "is": "31.52", "fid": "121.02"},
        "Fu et al. 2023, arXiv 2312.14871",
        PERCEIVELAB,
        FOUR,
    ),
    Published(
        "DreamDiffusion",
        {"acc": "45.8"},
        "Bai et al. 2023, arXiv 2306.16934, Table 1",
        PERCEIVELAB,
        FOUR._replace(
            split="the published single-subject split",
            classifier="ViT-H/14",
            n_way="50-way top-1, 50 random draws",
            samples="5",
        ),
    ),
    Published(
        "EEGStyleGAN-ADA",
        {"is": "10.82", "fid": "174.13"},
        "Singh et al. 2024, arXiv 2310.16532",
        PERCEIVELAB,
        Protocol(band="raw, unfiltered"),
    ),
    Published(
        "EEG2Vision, 128 channels",
        {"acc": "89", "fid": "76.8"},
        "EEG2Vision, 2026, arXiv 2604.08063",
        PERCEIVELAB,
        Protocol(n_way="50-way"),
    ),
    Published(
        "EEG2Vision, 24 channels",
        {"acc": "38", "fid": "80.5"},
        "EEG2Vision, 2026, arXiv 2604.08063",
        PERCEIVELAB,
        Protocol(n_way="50-way"),
    ),
    _eeg_imagenet("RGNN", "40.5", "all 80 classes"),
    _eeg_imagenet("MLP on DE features", "40.4", "all 80 classes"),
    _eeg_imagenet("MLP on DE features, coarse", "53.4", "the 40 coarse classes"),
    _eeg_imagenet("MLP on DE features, fine", "81.6", "the fine classes"),
    _retrieval("NICE", "15.6", "42.8", "Song et al. 2023, arXiv 2308.13234", "val"),
    _retrieval("MUSE", "19.3", "48.8", "MUSE, 2024"),
    _retrieval("UBP", "50.9", "79.7", "Wu et al. 2025, arXiv 2503.04207", "last", POSTERIOR),
    _retrieval(
        "NeuroBridge",
        "63.2",
        "89.9",
        "arXiv 2511.06836",
        "test",
        POSTERIOR,
        remark="its code also notes the last epoch's numbers; which of the two are printed is not said",
    ),
    _retrieval("BRIDGE", "80.8", "97.0", BRIDGE),
    _retrieval("BRIDGE", "33.7", "65.8", BRIDGE, subjects=ACROSS),
    _retrieval("SAMGA", "91.3", "98.8", SAMGA),
    _retrieval("SAMGA", "34.4", "64.8", SAMGA, subjects=ACROSS),
    _retrieval("SAMGA, done again", "80.8", "96.6", AGAIN, "test", POSTERIOR_100, remark=PEAK),
    _retrieval("SAMGA, done again", "21.2", "45.8", AGAIN, "test", POSTERIOR_100, ACROSS),
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
            selected="test",
            classifier="the MindEye suite; SSIM: grey, 425 px",
        ),
        "selected on: its EEG encoder's epoch, by the accuracy of retrieval",
    ),
)


def on(dataset: str | None) -> list[Published]:
    """All that is published on a data set, the paper's own first."""
    return [entry for entry in (*TABLE_1.values(), *OTHERS) if entry.dataset == dataset]
