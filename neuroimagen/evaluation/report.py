"""`neuroimagen report RUN`: one self-contained page of a reconstruct run's pictures and scores, and a contact sheet.

RUN/report.html needs no network and no other file: its pictures are inlined. RUN/gallery.png is its first gallery as
one picture. Which trials are shown follows a rule that the page states; nothing is picked for its looks.
"""

import base64
import dataclasses
import html
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from neuroimagen.config import option
from neuroimagen.evaluation import figures, tables
from neuroimagen.evaluation import scores as scoring
from neuroimagen.evaluation.scores import ReconstructRun
from neuroimagen.evaluation.tables import kind_of_eeg

BUDGET = 7_000_000  # characters of inlined pictures; the page stays below 8 MB


@dataclasses.dataclass
class ReportConfig:
    run: str = option(help="a reconstruct run that `neuroimagen evaluate` has scored; report.html is written there")
    classes: int = option(40, "at most so many trials in the main gallery, evenly spaced over the labels")
    ablation: int = option(8, "trials in the gallery of all rows")
    sheet: int = option(16, "trials on the contact sheet gallery.png")


def spaced(items: list[Any], n: int) -> list[Any]:
    """At most n items, evenly spaced, the first among them."""
    return items if len(items) <= n else [items[i * len(items) // n] for i in range(n)]


def first_of_each_class(run: ReconstructRun) -> tuple[list[dict[str, Any]], str]:
    """Trials to show and the rule that chose them: the first of each class, several where classes are few."""
    by_label: dict[int, list[dict[str, Any]]] = {}
    for trial in sorted(run.trials, key=lambda trial: trial["key"]):
        by_label.setdefault(trial["label"], []).append(trial)
    each = 8 if len(by_label) <= 2 else 1
    number = "trial" if each == 1 else f"{each} trials"
    rule = f"the first {number} of each class in the order of trial keys"
    return [trial for label in sorted(by_label) for trial in by_label[label][:each]], rule


def inline(paths: list[Path], budget: int = BUDGET) -> dict[Path, str]:
    """Each picture as a data: address. PNG at natural size if all fit the budget, else JPEG of a falling size."""
    for limit in (None, 256, 192, 128, 96, 64):
        found: dict[Path, str] = {}
        for path in dict.fromkeys(paths):
            kind, content = "png", path.read_bytes()
            if limit is not None:
                with Image.open(path) as opened:
                    image = opened.convert("RGB")
                    image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=88)
                kind, content = "jpeg", buffer.getvalue()
            found[path] = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        if sum(map(len, found.values())) <= budget:
            break
    return found


class Page:
    """The page of one run, section by section; every method gives HTML."""

    def __init__(self, run: ReconstructRun, scores: dict[str, Any], config: ReportConfig) -> None:
        self.run, self.scores = run, scores
        self.full = tables.full_row(run)
        chosen, self.rule = first_of_each_class(run)
        self.n_chosen = len(chosen)
        self.seen = "seen" if run.pictures_known else "category seen"
        self.main = spaced(chosen, config.classes)
        self.ablation = spaced(chosen, config.ablation)
        self.samples = min(3, run.samples)
        self.maps = all(run.map(trial["key"]).exists() for trial in chosen)
        self.average = run.trials[0].get("averaged", 1)
        paths = [path for trial in self.main for path in self.figure3(trial)]
        paths += [path for trial in self.ablation for path in self.figure_rows(trial)]
        self.pictures = inline(paths)

    def figure3(self, trial: dict[str, Any]) -> list[Path]:
        """Truth, map if there is one, samples of the full model."""
        key = trial["key"]
        maps = [self.run.map(key)] if self.maps else []
        return [self.run.truth(key), *maps, *(self.run.image(self.full, key, s) for s in range(self.samples))]

    def figure_rows(self, trial: dict[str, Any]) -> list[Path]:
        """Truth, map if there is one, the first sample of each row."""
        key = trial["key"]
        maps = [self.run.map(key)] if self.maps else []
        return [self.run.truth(key), *maps, *(self.run.image(row, key, 0) for row in self.run.rows)]

    def strip(self, trial: dict[str, Any], paths: list[Path], heads: list[str]) -> str:
        """One trial: its name and a row of pictures."""
        title = f"{trial['class_name']}, subject {trial['subject']}, trial {trial['key']}"
        cells = []
        for head, path in zip(heads, paths, strict=True):
            mark = ' class="truth"' if path.parent.name == "truth" else ""
            label = html.escape(f"{head}: {title}", quote=True)
            cells.append(f'<img{mark} src="{self.pictures[path]}" alt="{label}" title="{label}">')
        name = f"<b>{html.escape(trial['class_name'])}</b><span>subject {html.escape(str(trial['subject']))}</span>"
        return f'<div class="strip"><div class="who">{name}</div>{"".join(cells)}</div>'

    def gallery(self) -> str:
        heads = [self.seen, *["saliency map"] * self.maps, *(f"sample {s + 1}" for s in range(self.samples))]
        header = '<div class="strip heads"><div class="who"></div>' + "".join(f"<i>{h}</i>" for h in heads) + "</div>"
        half = (len(self.main) + 1) // 2
        columns = [part for part in (self.main[:half], self.main[half:]) if part]
        body = "".join(
            f"<div>{header}{''.join(self.strip(t, self.figure3(t), heads) for t in part)}</div>" for part in columns
        )
        some = "" if len(self.main) == self.n_chosen else f" ({len(self.main)} of {self.n_chosen})"
        return (
            "<h2>What was seen, and what the EEG gave back</h2><p>Red frame: the "
            f"{'picture' if self.seen == 'seen' else 'category (a picture of it)'} that was shown. Saliency map: "
            "the decoded colours and places, before diffusion. Samples: what the latent diffusion model draws from "
            f"row {self.full} ({self.meaning(self.full)}), each from other noise. "
            f"<b>Shown: {self.rule}{some}; none was picked by hand.</b></p>"
            f'<div class="gallery" style="--cells:{len(heads)}">{body}</div>'
        )

    def ablation_gallery(self) -> str:
        heads = [self.seen, *["saliency map"] * self.maps, *self.run.rows]
        below = ["", *[""] * self.maps, *(self.meaning(row) for row in self.run.rows)]
        header = '<div class="strip heads"><div class="who"></div>'
        header += "".join(f"<i>{h}<small>{b}</small></i>" for h, b in zip(heads, below, strict=True)) + "</div>"
        body = "".join(self.strip(trial, self.figure_rows(trial), heads) for trial in self.ablation)
        return (
            "<h2>What each part contributes</h2><p>The same trials with parts of the decoder left out. I: the saliency "
            "map. L: meaning learnt from label captions. B: meaning learnt from picture captions. First sample of "
            f"each; {len(self.ablation)} of the trials above, evenly spaced.</p>"
            f'<div class="gallery rows" style="--cells:{len(heads)}"><div>{header}{body}</div></div>'
        )

    def meaning(self, row: str) -> str:
        b, label, map_ = tables.uses(row)
        parts = ["map"] * map_ + ["labels"] * label + ["captions"] * b
        return " + ".join(parts) or "nothing decoded"

    def tables(self) -> str:
        found = "".join(table.html() for table in tables.build(self.run, self.scores))
        return (
            f"<h2>Scores, on {kind_of_eeg(self.scores)}</h2><p>{self.size()}. "
            f"Models and tables are numbered as in the paper; small print: 95&nbsp;% intervals.</p>{found}"
        )

    def chances(self) -> list[tuple[str, float]]:
        """Accuracies that need no EEG, with their names; the last is the one to beat."""
        found = [(f"{self.scores['n_way']}-way chance", self.scores["chance"])]
        if "shuffled" in self.scores["truth"]:
            found.append(("guessing in the study", self.scores["truth"]["shuffled"]))
        return found

    def size(self) -> str:
        s = self.scores
        averaged = f", each the average of {self.average} trials of one class" if self.average > 1 else ""
        return (
            f"{s['trials']} test trials{averaged}, of {s['pictures']} pictures and {s['subjects']} subject"
            f"{'s' * (s['subjects'] != 1)}; {s['samples']} reconstruction{'s' * (s['samples'] != 1)} each"
        )

    def bars(self) -> str:
        groups = {g[6:]: m["acc"] for g, m in self.scores["rows"][self.full].items() if g.startswith("class ")}
        guess, share = self.chances()[-1]
        chance = 100 * share
        lines = []
        for name, acc in sorted(groups.items(), key=lambda item: -item[1]["value"]):
            value, low, high = (100 * (acc[k] or 0) for k in ("value", "low", "high"))
            whisker = ""
            if acc["low"] is not None and high > low:
                whisker = f'<s style="left:{low:.1f}%;width:{high - low:.1f}%"></s>'
            lines.append(
                f'<div class="bar"><span>{html.escape(name)}</span><div><u style="width:{value:.1f}%"></u>{whisker}'
                f'<em style="left:{chance:.1f}%"></em></div><b>{value:.0f}</b></div>'
            )
        return (
            f"<h2>By class</h2><p>ACC in per cent, row {self.full}; thin line: 95&nbsp;% interval over the class's "
            f'pictures; dashed: {guess} ({chance:.1f}&nbsp;%).</p><div class="bars">{"".join(lines)}</div>'
        )

    def top(self) -> str:
        s, found = self.scores, self.scores["rows"][self.full]["all"]
        m, split = self.run.about.get("manifest", {}), self.run.about.get("settings", {}).get("split", "test")
        banner = ""
        if s["simulated"]:
            banner = (
                '<div class="banner"><strong>Simulated EEG</strong> No person was recorded. The signals were computed '
                "from the pictures by <code>neuroimagen simulate</code>: this page shows that the software works, and "
                "says nothing about brains. Pictures shown: OpenMoji pictograms, CC BY-SA 4.0.</div>"
            )
        elif m.get("dataset") in ("perceivelab", "eeg_imagenet"):
            banner = (
                '<div class="banner mild"><strong>Read with care</strong> In this data set every class was shown in '
                "one uninterrupted block, so slow drift of the recording can tell classes apart without any vision (Li "
                "et al. 2020, Ahmed et al. 2021). Compare with controls before concluding.</div>"
            )
        chances = ", ".join(f"{name} {100 * chance:.1f} %" for name, chance in self.chances())
        other = "1 is identical"
        if "ssim_other" in found:
            other = f"{found['ssim_other']['value']:.3f} to another picture"
        facts = [
            (f"{100 * found['acc']['value']:.1f} %", f"accuracy of row {self.full}; {chances}"),
            (f"{found['ssim']['value']:.3f}", f"SSIM to the picture seen; {other}"),
            (f"{found['is']['value']:.1f}", f"Inception Score; the pictures seen have {s['truth']['is']:.1f}"),
            (str(s["trials"]), f"test trials, {s['subjects']} subject{'s' * (s['subjects'] != 1)}"),
        ]
        cards = "".join(f"<div><b>{value}</b><span>{html.escape(what)}</span></div>" for value, what in facts)
        shape = (
            f"{m['n_chans']} channels, {m['n_times']} samples at {m['sfreq']:g} Hz"
            if "n_chans" in m
            else "of unnamed shape"
        )
        return (
            f"<header><p class=kicker>NeuroImagen &middot; {html.escape(str(self.run.path.resolve().name))}</p>"
            f"<h1>Pictures reconstructed from {kind_of_eeg(s)}</h1>{banner}<p class=lead>Each trial is a stretch of "
            f"{kind_of_eeg(s)} ({shape}) that belongs to one picture, from the {html.escape(str(split))} split. From "
            "it one decoder gives a rough saliency map, another the picture's meaning, and a latent diffusion model "
            "draws from both."
            f"</p><div class=facts>{cards}</div></header>"
        )

    def details(self) -> str:
        def listed(content: dict[str, Any]) -> str:
            return "".join(
                f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in content.items()
            )

        environment: dict[str, Any] = {}
        if (self.run.path / "environment.json").exists():
            environment = json.loads((self.run.path / "environment.json").read_text())
        versions = environment.pop("versions", {})
        m = self.run.about.get("manifest", {})
        data = {k: m[k] for k in ("dataset", "simulated", "protocol", "subjects") if k in m}
        data |= {"pipeline": self.run.about.get("pipeline"), "captions": self.run.about.get("captions_source")}
        config = html.escape((self.run.path / "config.yaml").read_text())
        scoring = listed(self.scores.get("config", {}))
        return (
            f"<h2>How it was made</h2><table class=plain>{listed(data)}</table>"
            f"<details><summary>Config of the run</summary><pre>{config}</pre></details>"
            f"<details><summary>Config of the scores</summary><table class=plain>{scoring}</table></details>"
            f"<details><summary>Versions</summary><table class=plain>{listed(versions)}{listed(environment)}</table>"
            "</details>"
        )

    def html(self) -> str:
        body = [self.top(), self.gallery(), self.ablation_gallery(), self.tables(), self.bars(), self.details()]
        sections = body[0] + "".join(f"<section>{part}</section>" for part in body[1:])
        title = f"NeuroImagen: pictures from {kind_of_eeg(self.scores)}"
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>{title}</title><style>{STYLE}</style></head>'
            f"<body><main>{sections}</main></body></html>\n"
        )

    def sheet(self, n: int, cell: int = 112) -> Image.Image:
        """The first gallery as one picture: n trials, evenly spaced."""
        trials = spaced(first_of_each_class(self.run)[0], n)
        heads = [self.seen, *["saliency map"] * self.maps, *(f"sample {s + 1}" for s in range(self.samples))]
        columns = min(len(trials), 12 // len(heads))
        lines = -(-len(trials) // columns)
        gap, name, top = 6, 20, 58
        group = len(heads) * (cell + gap) + 26
        image = Image.new("RGB", (columns * group + 8, top + lines * (cell + name + gap) + 6), "white")
        draw = ImageDraw.Draw(image)
        large, small = ImageFont.load_default(size=17), ImageFont.load_default(size=13)
        some = "" if len(trials) == self.n_chosen else f" ({len(trials)} of {self.n_chosen})"
        title = f"Pictures reconstructed from {kind_of_eeg(self.scores)}. Shown: {self.rule}{some}."
        draw.text((16, 8), title, fill="black", font=large)
        for c in range(columns):
            for i, head in enumerate(heads):
                draw.text((16 + c * group + i * (cell + gap), 36), head, fill="#555", font=small)
        for number, trial in enumerate(trials):
            x0, y0 = 16 + number // lines * group, top + number % lines * (cell + name + gap)
            for i, path in enumerate(self.figure3(trial)):
                with Image.open(path) as opened:
                    picture = opened.convert("RGB").resize((cell, cell), Image.Resampling.BICUBIC)
                x = x0 + i * (cell + gap)
                image.paste(picture, (x, y0))
                if i == 0:
                    draw.rectangle([x - 3, y0 - 3, x + cell + 2, y0 + cell + 2], outline="#d11f1f", width=3)
            draw.text((x0, y0 + cell + 4), trial["class_name"], fill="black", font=small)
        return image


def report(config: ReportConfig) -> None:
    """The command `neuroimagen report RUN`. ValueError if the run is not finished or not scored."""
    for name in ("classes", "ablation", "sheet"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")
    run = scoring.read_run(config.run)
    path = run.path / "scores.json"
    if not path.exists():
        raise ValueError(f"{run.path} has no scores.json; make it with: neuroimagen evaluate {run.path}")
    scores = json.loads(path.read_text())
    if scores.get("version") != scoring.VERSION:
        raise ValueError(f"{path} is of another version; make it anew with: neuroimagen evaluate {run.path}")
    if list(scores.get("rows", [])) != run.rows or scores.get("trials") != len(run.trials):
        raise ValueError(f"{path} belongs to other pictures; make it anew with: neuroimagen evaluate {run.path}")
    page = Page(run, scores, config)
    buffer = io.BytesIO()
    page.sheet(config.sheet).save(buffer, "PNG", optimize=True)
    scoring.write_atomic(run.path / "gallery.png", buffer.getvalue())
    scoring.write_atomic(run.path / "report.html", page.html())
    tables.write(run, scores, run.path / "tables")
    figures.write(run, scores, run.path / "figures")
    print(f"{run.path / 'report.html'}")


STYLE = """
:root { --ink:#1b1d22; --soft:#5d6470; --paper:#fbfaf7; --card:#fff; --line:#dedbd2; --accent:#23509e; --red:#cf1f1f;
  --sans:system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif; --faint:color-mix(in srgb,var(--ink) 7%,transparent) }
@media (prefers-color-scheme: dark) { :root { --ink:#e9e7e2; --soft:#a2a6ae; --paper:#15171a; --card:#1e2125;
  --line:#363a41; --accent:#8fb3f5; --red:#ff5a52 } }
* { box-sizing:border-box }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 Georgia,"DejaVu Serif",serif }
main { max-width:1180px; margin:0 auto; padding:36px 28px 80px }
h1 { font-size:40px; line-height:1.15; margin:.1em 0 .5em; font-weight:600 }
h2 { font-size:25px; margin:56px 0 6px; font-weight:600 }
h3 { font-size:17px; margin:28px 0 8px }
p { max-width:84ch; margin:.5em 0 1em }
.lead { font-size:18px }
code, pre { font:13px/1.5 ui-monospace,"DejaVu Sans Mono",monospace }
.kicker, .who, .heads i, .facts span, .bar, table, .notes, summary, .banner { font-family:var(--sans) }
.kicker { color:var(--soft); font-size:14px; margin:0 }
.banner { background:#b3261e; color:#fff; padding:14px 20px; border-radius:6px; margin:0 0 18px; line-height:1.45 }
.banner strong { display:block; font-size:23px }
.banner.mild { background:#7a5a00 }
.facts { display:grid; grid-template-columns:repeat(4,1fr); gap:1px; background:var(--line);
  border:1px solid var(--line); border-radius:6px; overflow:hidden }
.facts div { background:var(--card); padding:14px 18px }
.facts b { display:block; font-size:29px; line-height:1.2; font-weight:600 }
.facts span { color:var(--soft); font-size:13px; line-height:1.35; display:block }
.gallery { display:flex; flex-wrap:wrap; gap:10px 24px }
.strip { display:grid; grid-template-columns:92px repeat(var(--cells),84px); gap:6px; align-items:center;
  margin-bottom:6px }
.rows .strip { grid-template-columns:104px repeat(var(--cells),124px); gap:8px; margin-bottom:8px }
.strip img { width:100%; aspect-ratio:1; object-fit:cover; border-radius:2px; display:block }
.strip img.truth { outline:3px solid var(--red); outline-offset:-1px }
.who { font-size:14px; line-height:1.2; text-align:right; padding-right:8px }
.who b { font-weight:600; display:block }
.who span { color:var(--soft); font-size:11px }
.heads { align-items:end }
.heads i { font-style:normal; font-size:12px; color:var(--soft); text-align:center; line-height:1.25 }
.rows .heads i { font-size:15px; color:var(--ink); font-weight:600 }
.heads small { display:block; font-size:11px; font-weight:400; color:var(--soft); min-height:14px }
table { border-collapse:collapse; font-size:15px; font-variant-numeric:tabular-nums; background:var(--card) }
th, td { padding:7px 14px; vertical-align:top; text-align:left; border-bottom:1px solid var(--line) }
thead th { border-bottom:2px solid var(--ink); font-size:13px }
td:first-child { white-space:nowrap }
thead th { line-height:1.3; vertical-align:bottom }
td small { display:block; color:var(--soft); font-size:12px; line-height:1.2; font-weight:400; white-space:nowrap }
tr.full td { font-weight:650; background:color-mix(in srgb,var(--accent) 9%,transparent) }
tr.chance td { color:var(--soft); font-style:italic }
.plain td { font-size:13px; vertical-align:top; padding:4px 14px }
.plain td:first-child { color:var(--soft) }
.notes { color:var(--soft); font-size:13px; padding-left:18px; max-width:100ch }
.bars { columns:2; column-gap:40px }
.bar { display:grid; grid-template-columns:140px 1fr 32px; gap:10px; align-items:center; font-size:13px;
  break-inside:avoid; padding:3px 0 }
.bar span { text-align:right }
.bar div { position:relative; height:14px; background:var(--faint) }
.bar u { position:absolute; inset:0 auto 0 0; background:var(--accent); opacity:.75 }
.bar s { position:absolute; top:6px; height:2px; background:var(--ink) }
.bar em { position:absolute; top:-2px; bottom:-2px; border-left:1px dashed var(--ink) }
.bar b { font-weight:600 }
details { margin:12px 0 }
summary { cursor:pointer; font-size:15px }
pre { background:var(--card); border:1px solid var(--line); padding:14px; overflow:auto }
@media (max-width:760px) { .facts { grid-template-columns:1fr 1fr } .bars { columns:1 } }
@media (max-width:1180px) { section { overflow-x:auto } th, td { padding:6px 7px } }
"""
