"""The paper's Figures 3, 4 and 5 of a scored run, each with the rule that chose its trials; none is picked by hand.

`build` says what the figures show (for the page), `draw` draws one, `write` puts the PNGs into RUN/figures.
"""

import io
import itertools
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image, ImageDraw, ImageFont

from neuroimagen.files import write_atomic
from neuroimagen.report.tables import full_row, kind_of_eeg, rows_of_kind
from neuroimagen.scores.run_files import ReconstructRun

WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
TRIALS = 16  # at most, in Figure 3
SAMPLES = 3  # in Figure 3
PICTURES = 3  # of each class, in Figure 4
RED, INK, SOFT = "#cf1f1f", "#1b1d22", "#5d6470"


class Picture(NamedTuple):
    """A picture of a figure: its file, what it is in words, and whether it is the one seen (it gets a red frame)."""

    path: Path
    alt: str
    seen: bool = False


class Line(NamedTuple):
    """Pictures side by side under the heads, with a name and a smaller second name."""

    name: str
    below: str
    pictures: list[Picture]


class Figure(NamedTuple):
    """`rule`: a sentence. `columns`: in so many columns the lines are set, the first half of them left."""

    name: str
    title: str
    rule: str
    heads: list[str]
    lines: list[Line]
    columns: int = 1

    @property
    def parts(self) -> list[list[Line]]:
        """The lines of each column."""
        half = -(-len(self.lines) // self.columns)
        return [self.lines[i : i + half] for i in range(0, len(self.lines), half)]


def spaced(items: list[Any], n: int) -> list[Any]:
    """At most n items, evenly spaced, the first among them."""
    return items if len(items) <= n else [items[i * len(items) // n] for i in range(n)]


def _ordered(run: ReconstructRun) -> list[dict[str, Any]]:
    return sorted(run.trials, key=lambda trial: trial["key"])


def _first_by(field: str, trials: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The first trial of each class, picture or subject."""
    first: dict[Any, dict[str, Any]] = {}
    for trial in trials:
        first.setdefault(trial[field], trial)
    return first


def _wanted(run: ReconstructRun, paper: list[str], among: Container[str]) -> tuple[list[str], str]:
    """The paper's classes that the run has (`among` these), filled up with its first by label; how that is said."""
    by_label = _first_by("class_name", sorted(run.trials, key=lambda trial: trial["label"]))
    possible = [name for name in by_label if name in among]
    found = [name for name in paper if name in possible]
    filled = [name for name in possible if name not in found][: len(paper) - len(found)]
    if not filled:
        return found, "the classes are the paper's"
    others = f"the first others by label ({', '.join(filled)})"
    if not found:
        return filled, f"none of the paper's classes can be shown here, so {others}"
    return found + filled, f"the paper's classes as far as they can be shown here ({', '.join(found)}), then {others}"


def _of(trial: dict[str, Any]) -> str:
    return f"{trial['class_name']}, subject {trial['subject']}, trial {trial['key']}"


def _seen(run: ReconstructRun, trial: dict[str, Any]) -> Picture:
    return Picture(run.truth(trial["key"]), f"{_seen_head(run)}: {_of(trial)}", seen=True)


def _seen_head(run: ReconstructRun) -> str:
    return "seen" if run.pictures_known else "category seen"


def _drawn(run: ReconstructRun, row: str, trial: dict[str, Any], sample: int) -> Picture:
    return Picture(run.image(row, trial["key"], sample), f"{row}, sample {sample + 1}: {_of(trial)}")


def _figure(run: ReconstructRun, name: str, heads: list[str], lines: list[Line], columns: int, **facts: Any) -> Figure:
    """The figure of that name, whose words hold `facts`."""
    mark = run.about.get("manifest", {}).get("mark")
    on = kind_of_eeg({"simulated": bool(run.about.get("simulated")), "mark": mark})
    title, rule = (WORDS[name][part].format(**facts) for part in ("title", "rule"))
    return Figure(name, f"{title}, on {on}", rule, heads, lines, columns)


def _first_of_each_class(run: ReconstructRun) -> tuple[list[dict[str, Any]], str]:
    """The trials of Figure 3, and their rule."""
    first = _first_by("label", _ordered(run))
    chosen = [first[label] for label in sorted(first)]
    rule = "the first trial of each class in the order of trial keys"
    if len(chosen) > TRIALS:
        rule += f"; {TRIALS} of {len(chosen)} classes, evenly spaced by label"
    return spaced(chosen, TRIALS), rule


def _beside_the_seen(
    run: ReconstructRun, trials: list[dict[str, Any]], drawn: list[tuple[str, int]], maps: bool
) -> list[Line]:
    """Of each trial what was seen, its saliency map and what is drawn: (row, sample)."""
    lines = []
    for trial in trials:
        pictures = [_seen(run, trial)]
        pictures += [Picture(run.map(trial["key"]), f"saliency map: {_of(trial)}")] * maps
        pictures += [_drawn(run, row, trial, sample) for row, sample in drawn]
        lines.append(Line(trial["class_name"], f"subject {trial['subject']}", pictures))
    return lines


def _figure3(run: ReconstructRun) -> Figure:
    """Seen, saliency map, samples of the full model; the first trial of each class."""
    chosen, rule = _first_of_each_class(run)
    row, samples = full_row(run), min(SAMPLES, run.samples)
    maps = all(run.map(trial["key"]).exists() for trial in chosen)
    lines = _beside_the_seen(run, chosen, [(row, sample) for sample in range(samples)], maps)
    heads = [_seen_head(run), *["saliency map"] * maps, *(f"sample {s + 1}" for s in range(samples))]
    return _figure(run, "figure3", heads, lines, 2 if len(lines) > 1 else 1, row=row, chosen=rule)


def every_row(run: ReconstructRun, rows: list[str], most: int) -> Figure:
    """At most so many trials of Figure 3, drawn in every way there is; on the page only."""
    chosen, _ = _first_of_each_class(run)
    maps = all(run.map(trial["key"]).exists() for trial in chosen)
    lines = _beside_the_seen(run, spaced(chosen, most), [(row, 0) for row in rows], maps)
    rule = f"{len(lines)} of the trials of Figure 3, evenly spaced; the first sample of each row."
    heads = [_seen_head(run), *["saliency map"] * maps, *rows]
    return Figure("rows", "Every row of this run", rule, heads, lines)


def _figure4(run: ReconstructRun) -> Figure:
    """The baselines against ours, three pictures of each of three classes."""
    baselines = rows_of_kind(run, "baseline")
    if not baselines:
        raise ValueError(WORDS["figure4"]["no_baselines"])
    names, said = _wanted(run, WORDS["figure4"]["classes"], {trial["class_name"] for trial in run.trials})
    trials = []
    for name in names:
        first = _first_by("image", [trial for trial in _ordered(run) if trial["class_name"] == name])
        trials += list(first.values())[:PICTURES]
    lines = [Line(_seen_head(run), "", [_seen(run, trial) for trial in trials])]
    for row in [*baselines, full_row(run)]:
        name, below = (row, "baseline") if row in baselines else ("NeuroImagen", f"row {row}")
        lines.append(Line(name, below, [_drawn(run, row, trial, 0) for trial in trials]))
    heads = [trial["class_name"] for trial in trials]
    return _figure(run, "figure4", heads, lines, 1, chosen=said, pictures=PICTURES)


def _figure5(run: ReconstructRun) -> Figure:
    """One picture a class, reconstructed from the EEG of every subject who saw it, which is all of them."""
    subjects = sorted({trial["subject"] for trial in run.trials})
    if len(subjects) < 2:
        raise ValueError(WORDS["figure5"]["one_subject"])
    if not run.pictures_known:
        raise ValueError(WORDS["figure5"]["no_pictures"])
    by_image: dict[str, dict[Any, dict[str, Any]]] = {}
    for trial in _ordered(run):
        by_image.setdefault(trial["image"], {}).setdefault(trial["subject"], trial)
    shared: dict[str, dict[Any, dict[str, Any]]] = {}  # class -> its first picture that all saw -> subject -> trial
    for image in sorted(by_image):
        if len(by_image[image]) == len(subjects):
            shared.setdefault(next(iter(by_image[image].values()))["class_name"], by_image[image])
    if not shared:
        raise ValueError(WORDS["figure5"]["none_shared"])
    names, said = _wanted(run, WORDS["figure5"]["classes"], shared)
    row = full_row(run)
    lines = []
    for name in names:
        trials = [shared[name][subject] for subject in subjects]
        pictures = [_seen(run, trials[0]), *(_drawn(run, row, trial, 0) for trial in trials)]
        lines.append(Line(name, "", pictures))
    heads = [_seen_head(run), *(f"subject {subject}" for subject in subjects)]
    return _figure(run, "figure5", heads, lines, 1, chosen=said, row=row)


FIGURES = {"figure3": _figure3, "figure4": _figure4, "figure5": _figure5}


def build(run: ReconstructRun) -> tuple[dict[str, Figure], dict[str, str]]:
    """The figures by name; and of those that cannot be made, a sentence why."""
    made, absent = {}, {}
    for name, make in FIGURES.items():
        try:
            made[name] = make(run)
        except ValueError as error:
            absent[name] = str(error)
    return made, absent


def write(run: ReconstructRun, folder: Path) -> None:
    """folder/{figure3, figure4, figure5}.png; those that can no more be made are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    made, absent = build(run)
    for name in absent:
        (folder / f"{name}.png").unlink(missing_ok=True)
    for name, figure in made.items():
        buffer = io.BytesIO()
        draw(figure).save(buffer, "PNG", optimize=True)
        write_atomic(folder / f"{name}.png", buffer.getvalue())


def draw(figure: Figure, cell: int = 128) -> Image.Image:
    """The figure on white; pictures are cell x cell px."""
    gap, margin, columns = 8, 20, figure.columns
    fonts = {size: ImageFont.load_default(size=size) for size in (20, 15, 13)}
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def width(text: str, size: int) -> int:
        return int(measure.textlength(text, font=fonts[size])) + 1

    names = max(max(width(line.name, 15), width(line.below, 13)) for line in figure.lines)
    across = [max(cell, width(head, 13)) for head in figure.heads]
    grouped = len(set(figure.heads)) < len(figure.heads)  # equal heads side by side stand closer
    steps = [12] + [gap + 16 * (grouped and a != b) for a, b in itertools.pairwise(figure.heads)]
    block = names + sum(steps) + sum(across)
    half = len(figure.parts[0])
    total = max(2 * margin + columns * block + (columns - 1) * 28, 2 * margin + width(figure.title, 20))
    said = _wrap(figure.rule, total - 2 * margin, lambda text: width(text, 13))
    top = margin + 32 + 19 * len(said) + 14
    image = Image.new("RGB", (total, top + 24 + half * (cell + gap) + margin - gap), "white")
    pen = ImageDraw.Draw(image)
    pen.text((margin, margin), figure.title, fill=RED if "simulated" in figure.title else INK, font=fonts[20])
    for i, text in enumerate(said):
        pen.text((margin, margin + 32 + 19 * i), text, fill=SOFT, font=fonts[13])
    for column, part in enumerate(figure.parts):
        x0 = margin + column * (block + 28)
        starts = [x0 + names + sum(steps[: i + 1]) + sum(across[:i]) for i in range(len(across))]
        ends = [x + wide for x, wide in zip(starts, across, strict=True)]
        for head, group in itertools.groupby(range(len(across)), key=lambda i: figure.heads[i]):
            places = list(group)  # equal heads side by side are written once
            middle = (starts[places[0]] + ends[places[-1]]) / 2
            pen.text((middle, top), head, fill=INK, font=fonts[13], anchor="ma")
        for number, line in enumerate(part):
            y = top + 24 + number * (cell + gap)
            right = x0 + names
            anchor = "rs" if line.below else "rm"
            pen.text((right, y + cell / 2 - 2), line.name, fill=INK, font=fonts[15], anchor=anchor)
            pen.text((right, y + cell / 2 + 4), line.below, fill=SOFT, font=fonts[13], anchor="ra")
            for x, wide, picture in zip(starts, across, line.pictures, strict=True):
                left = x + (wide - cell) // 2
                with Image.open(picture.path) as opened:
                    found = opened.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS)
                image.paste(found, (left, y))
                if picture.seen:
                    pen.rectangle([left - 3, y - 3, left + cell + 2, y + cell + 2], outline=RED, width=3)
    return image


def _wrap(text: str, limit: int, width: Callable[[str], int]) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and width(longer) > limit:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
