"""What the score book can measure: of each metric its column head, its meaning, its source, and which way is better.

scores.json carries these beside the numbers, so that tables and pages need no words of their own. What each can and
cannot tell: docs/scores.md.
"""

import difflib
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

PAPER = "NeuroImagen (arXiv 2308.02510), section Evaluation Metrics"
MINDEYE = "MindEye (Scotti et al. 2023, arXiv 2305.18274)"
TWO_WAY = (
    "Two-way identification by {0}: the share of the test set's other pictures whose features correlate less (Pearson) "
    "with those of the reconstruction than the picture seen does."
)
DISTANCE = "1 - Pearson correlation of {0} features of the reconstruction and of the picture seen."
SAME_WAY = (
    ", as Inception Scores are not comparable between classifiers, numbers of pictures or splits. The interval is "
    "about the score of this number of pictures; many have a higher one"
)


class Metric(NamedTuple):
    """One metric; texts may hold {facts} of `describe`."""

    head: str
    definition: str
    source: str
    chance_of: str = ""
    better: str | None = "higher"  # | "lower"
    scale: int = 1  # 100: shown in per cent
    digits: int = 3
    by_class: bool = True  # makes sense within one class


_GUESS = "a guess among the {n_classes} classes of the {distractors}"
_OTHER = "the same reconstructions dealt out to the trials at random: a number for each row, in the line below"
_TWO = "a reconstruction that has nothing to do with the picture seen"
_SAME = "one and the same picture for all"
_WITHIN = "by another network than theirs: comparable within this run only"
_PICK = "a picture of the test set picked blindly"
_ACC = (
    "{{n_way}}-way top-{{top_k}} accuracy: {0} ranks among the first {{top_k}} of {{n_way}} classes by the "
    "classifier's probability on the reconstruction, in expectation over all draws of the other classes from those of "
    "the {{distractors}} (closed form; ties count against)."
)
_FID = (
    "Fréchet distance between the features ({0}) of a row's pictures and of the ground-truth pictures; biased upwards "
    "for few pictures (here {{n_pictures}}, customary are 10,000 or more): compare rows of this run only."
)
_KID = (
    "Squared maximum mean discrepancy, cubic kernel, between the same features as FID's, over all pairs but those of "
    "one picture seen, which are not independent: unbiased, so it may be below 0, but noisy for few."
)

_percent = functools.partial(Metric, scale=100, digits=1)


def _retrieval(head: str, features: str, among: str, others: str) -> list[Metric]:
    """Top 1, top 5 and N-way in the features of one network; among, others: sources of the first two, of the last."""
    first = (
        "The picture seen is among the {0} of the test set's {{gallery}} pictures that correlate most with the "
        f"reconstruction in {features}."
    )
    n_way = (
        f"The picture seen correlates more with the reconstruction, in {features}, than {{gallery_way}} - 1 others "
        "drawn from the test set (expectation over all draws)."
    )
    return [*(_percent(f"{head} top-{k} (%)", first.format(k), among, _PICK) for k in (1, 5)),
            _percent(f"{head} N-way (%)", n_way, others, _PICK)]  # fmt: skip


METRICS: dict[str, Metric] = {
    "acc": _percent(
        "ACC (%)", _ACC.format("the class that the classifier sees in the ground-truth picture"),
        PAPER + "; MinD-Vis (Chen et al. 2023, arXiv 2211.06956), with 50 classes and random draws", _GUESS,
    ),
    "acc_balanced": _percent(
        "balanced ACC (%)",
        "The mean over the data set's classes of ACC within each: a class that comes often counts no more than others.",
        "Brodersen et al. 2010, of the N-way accuracy", _GUESS, by_class=False,
    ),
    "auc": Metric(
        "AUC",
        "Area under the ROC curve of the study's two classes, by the classifier's probability on the reconstruction of "
        "one against the other: the share of pairs of trials, one of each class, that it orders rightly (ties half).",
        "Hanley and McNeil 1982", "a score that has nothing to do with the class", by_class=False,
    ),
    "shuffled": _percent(
        "shuffled (%)",
        "What ACC would be if the same reconstructions were dealt out to the trials at random (exact mean over all "
        "shuffles): the chance of a decoder that draws the same pictures, but blindly.",
        "ours", "it is a chance level itself", None, by_class=False,
    ),
    "acc_label": _percent(
        "ACC by label (%)", "Generation accuracy: " + _ACC.format("the data set's label of the trial"),
        "ours; EEGStyleGAN-ADA and GWIT report accuracy by label", _GUESS,
    ),
    "is": Metric(
        "IS", "Inception Score by the classifier, {splits} split(s), softmax over all its classes" + SAME_WAY + ".",
        "Salimans et al. 2016 (arXiv 1606.03498), Eq. 1; " + PAPER, _SAME, digits=2, by_class=False,
    ),
    "is_inception": Metric(
        "IS (Inception)",
        "Inception Score by the Inception of 2015, {splits} split(s), softmax over its 1,008 classes" + SAME_WAY + ".",
        "Salimans et al. 2016 (arXiv 1606.03498), Eq. 1", _SAME, digits=2, by_class=False,
    ),
    "ssim": Metric(
        "SSIM",
        "Structural similarity with the picture seen, mean of the colour channels: Gaussian window 11 px, sigma 1.5, "
        "borders mirrored, at the pictures' own size.",
        "Wang et al. 2004; the paper gives no settings", _OTHER,
    ),
    "ssim_grey": Metric("SSIM grey", "The same SSIM of luma (ITU-R BT.601).", "Wang et al. 2004", _OTHER),
    "ssim_425": Metric(
        "SSIM 425 px",
        "Structural similarity with the MindEye suite's settings: grey, 425 px by way of 256, Gaussian window 11 px, "
        "sigma 1.5, borders left out.",
        MINDEYE, _OTHER,
    ),
    "pixcorr": Metric(
        "PixCorr", "Pearson correlation of the pixels (425 px by way of 256) with the picture seen.", MINDEYE, _OTHER
    ),
    "lpips": Metric(
        "LPIPS", "Learned perceptual distance (AlexNet) to the picture seen.", "Zhang et al. 2018 (arXiv 1801.03924)",
        _OTHER, "lower",
    ),
    "alex2": _percent("AlexNet(2) (%)", TWO_WAY.format("AlexNet's 2nd convolution"), MINDEYE, _TWO),
    "alex5": _percent("AlexNet(5) (%)", TWO_WAY.format("AlexNet's 5th convolution"), MINDEYE, _TWO),
    "inception": _percent("Inception (%)", TWO_WAY.format("Inception-v3's last pooling"), MINDEYE, _TWO),
    "clip": _percent("CLIP (%)", TWO_WAY.format("CLIP's ViT-L/14 picture encoder"), MINDEYE, _TWO),
    "effnet": Metric("EffNet-B", DISTANCE.format("EfficientNet-B1"), MINDEYE, _OTHER, "lower"),
    "swav": Metric("SwAV", DISTANCE.format("SwAV-ResNet50"), MINDEYE, _OTHER, "lower"),
    "two_way": _percent(
        "two-way (%)", TWO_WAY.format("the classifier's last features"), "as the MindEye suite's, by the classifier",
        _TWO,
    ),
    **{f"{name}_{kind}": metric for name, metrics in (
        ("retrieval", _retrieval(
            "retrieval", "the classifier's last features", "as MindEye's retrieval of 300, over the whole test set",
            "as THINGS-EEG2's 200-way retrieval (Song et al. 2024, arXiv 2308.13234), by pictures",
        )),
        ("clip", _retrieval("CLIP", "CLIP's features", MINDEYE, MINDEYE)),
    ) for kind, metric in zip(("top1", "top5", "nway"), metrics, strict=True)},
    "fid": Metric(
        "FID", _FID.format("2,048 of the Inception of 2015"), "Heusel et al. 2017 (arXiv 1706.08500)",
        better="lower", digits=1, by_class=False,
    ),
    "kid": Metric("KID", _KID, "Bińkowski et al. 2018 (arXiv 1801.01401)", better="lower", digits=4, by_class=False),
    "fid_classifier": Metric(
        "FID (classifier)", _FID.format("the classifier's last"), "Heusel et al. 2017, " + _WITHIN,
        better="lower", digits=1, by_class=False,
    ),
    "kid_classifier": Metric(
        "KID (classifier)", _KID, "Bińkowski et al. 2018, " + _WITHIN, better="lower", digits=4, by_class=False
    ),
}  # fmt: skip
# Metrics of a reconstruction and its truth that smooth or frequent pictures do well in whatever was seen: each stands
# beside what its row's reconstructions get blindly, and what they gain over that.
PAIRED = ("ssim", "ssim_grey", "ssim_425", "pixcorr", "lpips", "effnet", "swav")


def _controls(name: str) -> dict[str, Metric]:
    of, nearer = METRICS[name], METRICS[name].better == "higher"
    other = (
        f"{of.head} of the same reconstructions, dealt out to the trials at random ({{dealt}}): what a decoder that is "
        "blind, but draws the same pictures, would get."
    )
    gain = f"{of.head} - {of.head} other" if nearer else f"{of.head} other - {of.head}"
    return {
        f"{name}_other": Metric(
            f"{of.head} other", other, "ours", "it is a chance level itself", better=None, by_class=False
        ),
        f"{name}_gain": Metric(
            f"{of.head} gain", f"{gain}: what is owed to the picture seen.", "ours",
            "a picture that knows nothing of the one seen", by_class=False,
        ),
    }  # fmt: skip


METRICS = {key: metric for name, of in METRICS.items()
           for key, metric in ({name: of} | (_controls(name) if name in PAIRED else {})).items()}  # fmt: skip
CONTROL_OF = {f"{name}_{kind}": name for name in PAIRED for kind in ("other", "gain")}
# The paper's three with their controls: cheap, and what the tables are made of, so always measured.
PAPERS = ("acc", "acc_balanced", "auc", "shuffled", "acc_label", "is", "ssim", "ssim_grey")
# Better means nothing for a control, and a set has no best sample.
BEST = [name for name, metric in METRICS.items() if metric.better and metric.by_class]


def chosen(names: Iterable[str]) -> list[str]:
    """The metrics asked for and the paper's, each with its controls, in the order of METRICS; "all" is all.

    ValueError: no such metric.
    """
    names = list(names)
    for name in names:
        if name not in ("all", "paper", *METRICS):
            near = difflib.get_close_matches(name, METRICS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"metrics: {name!r} is not one of all, paper, {', '.join(METRICS)}.{hint}")
    asked = [*(CONTROL_OF.get(name, name) for name in names), *PAPERS]
    return [name for name in METRICS if "all" in names or CONTROL_OF.get(name, name) in asked]


def describe(name: str, **facts: Any) -> dict[str, Any]:
    """What scores.json says of a metric, before its chance and ceiling.

    facts: n_way, top_k, n_classes; distractors, "classifier" or "study"; gallery, how many different ground-truth
    pictures, gallery_way; splits; n_pictures, reconstructions of a row; dealt, over which shuffles X other is a mean.
    """
    metric = METRICS[name]
    return {
        **{key: getattr(metric, key) for key in ("head", "scale", "digits", "better")},
        "chance": None,
        "chance_of": metric.chance_of.format(**facts) or "no chance level is defined",
        "ceiling": None,
        "ceiling_of": "the ground-truth pictures themselves",
        "definition": metric.definition.format(**facts),
        "source": metric.source,
    }
