"""`neuroimagen report RUN`: one self-contained page of a reconstruct run's pictures and scores; its tables and figures.

RUN/report.html needs no network and no other file: its pictures are inlined, its style is pages/page.css, its script
page.js beside this file. Which trials are shown follows rules that the page states; nothing is picked for its looks.
Without JavaScript all works but sorting, filters and pictures enlarged one by one. RUN/tables and RUN/figures hold the
same tables and figures for a paper.
"""

import dataclasses
import json
import re
import shlex
from typing import Any

from markupsafe import Markup

from neuroimagen.config import option, path_option
from neuroimagen.files import write_atomic
from neuroimagen.pages import render
from neuroimagen.report import figures, tables
from neuroimagen.report.charts import bars, confusions, legend
from neuroimagen.report.gallery import Gallery, Metric, Pictures, define, read_picture_scores, spaced, text
from neuroimagen.rows import uses
from neuroimagen.scores import evaluate as scoring
from neuroimagen.scores.evaluate import ReconstructRun

BUDGET = 6_500_000  # characters of inlined pictures; the page stays below 8 MB


@dataclasses.dataclass
class ReportConfig:
    run: str = path_option(
        help="a reconstruct run that `neuroimagen evaluate` has scored; report.html is written there"
    )
    trials: int = option(60, "at most so many trials in the gallery, those of the groups among them")
    each: int = option(6, "trials in each group of the gallery: best, median, worst, random")
    ablation: int = option(8, "trials drawn in every row, side by side")


class Page:
    """The page of one run, section by section; every method gives HTML."""

    def __init__(self, run: ReconstructRun, scores: dict[str, Any], config: ReportConfig) -> None:
        self.run, self.scores, self.config = run, scores, config
        self.full = tables.full_row(run)
        known = {field: None for field in Metric._fields}
        self.metrics = {
            name: Metric(**{"name": name, **{k: v for k, v in about.items() if k in known and k != "name"}})
            for name, about in tables.describe(scores).items()
        }
        book = read_picture_scores(run)
        self.gallery = Gallery(run, book, self.metrics, self.full, config.each, config.trials)
        self.average = run.trials[0].get("averaged", 1)
        self.pictures = Pictures(BUDGET)

    def strip(self, line: figures.Line) -> str:
        """A name and its pictures side by side."""
        cells = "".join(self.pictures.img(picture.path, picture.alt) for picture in line.pictures)
        return f'<div class="strip">{self.who(line.name, line.below)}{cells}</div>'

    @staticmethod
    def who(name: str, below: str) -> str:
        return f'<div class="who"><b>{text(name)}</b><span>{text(below)}</span></div>'

    def figure(self, figure: figures.Figure, css: str = "") -> str:
        heads = '<div class="strip heads"><div class="who"></div>'
        heads += "".join(f"<i>{text(head)}</i>" for head in figure.heads) + "</div>"
        half = -(-len(figure.lines) // figure.columns)
        parts = [figure.lines[i : i + half] for i in range(0, len(figure.lines), half)]
        body = "".join(f"<div>{heads}{''.join(map(self.strip, part))}</div>" for part in parts)
        label = f'tabindex="0" role="region" aria-label="{text(figure.title)}"'
        caption = f"<h3>{text(figure.title)}</h3><p>{text(figure.rule)} <b>None was picked by hand.</b></p>"
        return f'{caption}<div class="gallery {css}" {label} style="--cells:{len(figure.heads)}">{body}</div>'

    def figure3(self) -> str:
        seen = "picture that was shown" if self.run.pictures_known else "category that was shown (a picture of it)"
        return (
            f'<h2 id="figure3">What was seen, and what the EEG gave back</h2><p>Red frame: the {seen}. Saliency map: '
            "the decoded colours and places, before diffusion. Samples: what the latent diffusion model draws from row "
            f"{text(self.full)} ({text(self.meaning(self.full))}), each from other noise. Look along a line: the "
            "nearer the samples come to the picture in the red frame, in kind, place and colour, the better.</p>"
            f"{self.figure(figures.trials(self.run, 'figure3'))}"
        )

    def compared(self) -> str:
        """Figures 4 and 5, or why there is none."""
        lacking = figures.absent(self.run)
        parts = []
        for name in ("figure4", "figure5"):
            if name in lacking:
                parts.append(f"<h3>{name.capitalize().replace('e', 'e ')}</h3><p>{text(lacking[name])}</p>")
            else:
                parts.append(self.figure(figures.trials(self.run, name)))
        return f'<h2 id="figures">Beside the baselines, and from person to person</h2>{"".join(parts)}'

    def all_rows(self) -> str:
        """The trials of Figure 3, some of them, drawn in every way there is."""
        full = figures.trials(self.run, "figure3")
        lines = []
        for line in spaced(full.lines, self.config.ablation):
            seen = [picture for picture in line.pictures if picture.path.parent.name in ("truth", "maps")]
            key, rows = seen[0].path.stem, []
            for row in self.gallery.rows:
                path = self.run.image(row, key, 0)
                rows.append(figures.Picture(path, f"{row}, sample 1: {line.name}, {line.below}, trial {key}"))
            lines.append(line._replace(pictures=[*seen, *rows]))
        heads = [*full.heads[: len(lines[0].pictures) - len(self.gallery.rows)], *self.gallery.rows]
        shown = f"{len(lines)} of the trials of Figure 3, evenly spaced; the first sample of each row."
        figure = figures.Figure("rows", "Every row of this run", shown, heads, lines)
        return (
            '<h2 id="rows">What each part contributes</h2><p>The rows of the paper leave parts of the decoder out. '
            "Controls and baselines draw from something else and are judged by the same code.</p>"
            f"{self.ways()}{self.figure(figure, 'rows')}"
        )

    def ways(self) -> str:
        """What each row of the run is."""
        lines = []
        for row in self.gallery.rows:
            mark = ' class="full"' if row == self.full else ""
            said = f"<td>{text(self.gallery.kinds[row])}</td><td>{text(self.meaning(row))}</td>"
            lines.append(f'<tr{mark}><th scope="row">{text(row)}</th>{said}</tr>')
        return (
            '<div class="wide"><table class="small"><caption>The rows</caption><thead><tr>'
            '<th scope="col">Row</th><th scope="col">Kind</th><th scope="col">What the picture is drawn from</th>'
            f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        )

    def meaning(self, row: str) -> str:
        for about in self.run.about["rows"]:
            if about["name"] == row and about.get("means"):
                return about["means"]
        b, label, map_ = uses(row)
        parts = ["map"] * map_ + ["labels"] * label + ["captions"] * b
        return " + ".join(parts) or ("nothing decoded" if self.gallery.kinds[row] == "paper" else "")

    def define(self, metric: str, head: str) -> str:
        return define(self.gallery.numbers.get(metric), head)

    def tables(self) -> str:
        parts, said = [], []
        names = {text(metric.head): name for name, metric in self.metrics.items()}
        for table in tables.build(self.run, self.scores):
            page = re.sub(
                r'(<th scope="col" data-metric="([^"]*)"[^>]*>)(.*?)(</th>)',
                lambda m: m[1] + self.define(m[2], m[3]) + m[4],
                table.html(notes=False),
            )
            if table.name == "metrics":  # there every line is a metric
                page = re.sub(
                    r'(<th scope="row">(?:best of \d+: )?)(.*?)(</th>)',
                    lambda m: m[1] + self.define(names.get(m[2], ""), m[2]) + m[3],
                    page,
                )
            said += [note for note in table.notes if note not in said]
            page = page.replace(f"<caption>{text(table.title)}</caption>", "")  # above it instead, where it may wrap
            label = f'tabindex="0" role="region" aria-label="{text(table.title)}"'
            page = f'<div class="wide" {label}>{page}</div>'
            if table.name.startswith("table"):
                page = f"<h3>{text(table.title)}</h3>{page}"
            else:
                unfolded = " open" * (table.name == "protocol")
                page = f"<details{unfolded}><summary>{text(table.title.partition(',')[0])}</summary>{page}</details>"
            parts.append(page)
        said += tables.absent(self.run, self.scores).values()
        notes = "".join(f"<li>{text(note)}</li>" for note in said)
        return (
            '<h2 id="tables">The tables of the study</h2><p>Numbered as in the paper. Small print: 95&nbsp;% '
            "intervals. The last lines of each table are what guessing gets and what the pictures seen get themselves: "
            "read every number between the two. A click on a column head says what is measured.</p>"
            f"{''.join(parts)}<details><summary>Notes to the tables: what was done otherwise than in the paper, and "
            f'settings</summary><ul class="notes">{notes}</ul></details>'
        )

    def guessing(self, metric: str) -> float | None:
        return self.scores["truth"].get("guessing", {}).get(metric, {}).get("value")

    def by_group(self, prefix: str, title: str, ident: str) -> str:
        """Bars of the full row: accuracy in sight, the other metrics one click away."""
        groups = {g: m for g, m in self.scores["rows"][self.full].items() if g.startswith(prefix)}
        if prefix == "class ":
            groups = {group.removeprefix(prefix): found for group, found in groups.items()}
        names = [name for name in self.metrics if any(name in found for found in groups.values())]
        names.sort(key=lambda name: name != self.scores["headline"])
        if len(groups) < 2 or not names:
            return ""
        charts = []
        for name in names:
            found = {group: values[name] for group, values in groups.items() if name in values}
            metric = self.metrics[name]
            # The chance to beat is that within the study; within one class a constant guess gets all or nothing.
            if (guess := self.guessing(name)) and prefix != "class ":
                metric = metric._replace(chance=guess, chance_of="guessing in the study")
            head = f'<p class="legend">{legend(metric)}</p>'
            charts.append((metric, head + bars(metric, found, best_first=prefix == "class ")))
        first, *others = charts
        more = "".join(f"<details><summary>{text(m.title)}</summary>{chart}</details>" for m, chart in others)
        if more:
            more = f"<details><summary>The other metrics</summary>{more}</details>"
        return f'<h2 id="{ident}">{title}</h2><p>Row {text(self.full)}.</p>{first[1]}{more}'

    def definitions(self) -> str:
        """The list of metrics, the pop-ups of the column heads, and what could not be measured."""
        items, popups = [], []
        for name, m in self.metrics.items():
            lines = [f"<p>{text(m.definition)}</p>"] if m.definition else []
            ends = []
            for word, value, of in (("Chance", m.chance, m.chance_of), ("Ceiling", m.ceiling, m.ceiling_of)):
                if value is not None:
                    ends.append(f"{word}: {m(value)}{f' ({text(of)})' if of else ''}.")
            ends += [f"{text(m.better).capitalize()} is better."] if m.better else []
            lines += [f"<p>{' '.join(ends)}</p>"] if ends else []
            lines += [f"<small>{text(m.source)}</small>"] if m.source else []
            said = "".join(lines) or "<p>See the notes to the tables.</p>"
            items.append(f"<dt>{text(m.title)}</dt><dd>{said}</dd>")
            ident = f"def-{self.gallery.numbers[name]}"
            close = f'<button type="button" popovertarget="{ident}" popovertargetaction="hide">Close</button>'
            popups.append(f'<div popover id="{ident}"><h4>{text(m.title)}</h4>{said}{close}</div>')
        missing = ""
        if self.scores.get("unavailable"):
            lacking = ""
            for name, why in self.scores["unavailable"].items():
                head = self.metrics[name].title if name in self.metrics else name
                lacking += f"<dt>{text(head)}</dt><dd>{text(why)}</dd>"
            missing = f'<h3 id="unavailable">Not measured here, and how to get it</h3><dl>{lacking}</dl>'
        return (
            '<h2 id="metrics">What the numbers mean</h2><p>Chance: what is reached without looking at the EEG. '
            "Ceiling: what the pictures that were seen reach themselves, judged by the same code.</p>"
            f"<dl>{''.join(items)}</dl>{missing}{''.join(popups)}"
        )

    def size(self) -> str:
        s = self.scores
        averaged = f", each the average of {self.average} trials of one class" if self.average > 1 else ""
        return (
            f"test trials{averaged}, of {s['pictures']} pictures and {s['subjects']} subject"
            f"{'s' * (s['subjects'] != 1)}; {s['samples']} reconstruction{'s' * (s['samples'] != 1)} each"
        )

    def facts(self) -> str:
        found, cards = self.scores["rows"][self.full]["all"], []
        headline = self.scores["headline"]
        uneven = ", mean over classes, as these are uneven" * (headline == "acc_balanced")
        what = {
            headline: f"accuracy of row {self.full}{uneven}: the picture drawn is recognised as what was seen",
            "ssim": "likeness of structure to the picture seen; 1 is identical",
            "is": "variety and clarity of the pictures drawn",
        }
        for name, said in what.items():
            if name not in found or name not in self.metrics:
                continue
            metric, beside = self.metrics[name], []
            if guess := self.guessing(name):
                beside.append(f"guessing in the study {metric(guess)}")
            if f"{name}_other" in found:
                beside.append(f"dealt out at random {metric(found[f'{name}_other']['value'])}")
            beside += [metric.beside()] if metric.beside() else []
            head = self.define(name, text(metric.title))
            below = f"<span>{text(said)}</span><span>{' &middot; '.join(beside)}</span>"
            cards.append(f"<div><b>{metric(found[name]['value'])}<small>{head}</small></b>{below}</div>")
        cards.append(f"<div><b>{self.scores['trials']}</b><span>{text(self.size())}</span></div>")
        return f'<div class="facts">{"".join(cards)}</div>'

    def banner(self) -> str:
        dataset = self.run.about.get("manifest", {}).get("dataset")
        if self.scores["simulated"]:
            return (
                '<div class="banner"><strong>Simulated EEG</strong> No person was recorded. The signals were computed '
                "from the pictures by <code>neuroimagen simulate</code>: this page shows that the software works, and "
                "says nothing about brains. Pictures shown: OpenMoji pictograms, CC BY-SA 4.0.</div>"
            )
        if dataset in ("perceivelab", "eeg_imagenet"):
            return (
                '<div class="banner mild"><strong>Read with care</strong> In this data set every class was shown in '
                "one uninterrupted block, so slow drift of the recording can tell classes apart without any vision (Li "
                "et al. 2020, Ahmed et al. 2021). Compare with controls before concluding.</div>"
            )
        return ""

    def top(self, sections: list[str]) -> str:
        m, split = self.run.about.get("manifest", {}), self.run.about.get("settings", {}).get("split", "test")
        eeg = tables.kind_of_eeg(self.scores)
        shape = (
            f"{m['n_chans']} channels, {m['n_times']} samples at {m['sfreq']:g} Hz"
            if "n_chans" in m
            else "of unnamed shape"
        )
        heads = re.findall(r'<h2 id="(.*?)">(.*?)</h2>', "".join(sections))
        links = "".join(f'<a href="#{ident}">{head}</a>' for ident, head in heads)
        return (
            f"<header><p class=kicker>NeuroImagen &middot; {text(self.run.path.resolve().name)}</p>"
            f"<h1>Pictures reconstructed from {eeg}</h1>{self.banner()}<p class=lead>Each trial is a stretch of "
            f"{eeg} ({text(shape)}) that belongs to one picture, from the {text(split)} split. From "
            "it one decoder gives a rough saliency map, another the picture's meaning, and a latent diffusion model "
            f'draws from both.</p>{self.facts()}<nav aria-label="Sections">{links}</nav></header>'
        )

    def details(self) -> str:
        def plain(content: dict[str, Any]) -> str:
            lines = (f'<tr><th scope="row">{text(k)}</th><td>{text(v)}</td></tr>' for k, v in content.items())
            return f'<table class="plain"><tbody>{"".join(lines)}</tbody></table>'

        environment: dict[str, Any] = {}
        if (self.run.path / "environment.json").exists():
            environment = json.loads((self.run.path / "environment.json").read_text(encoding="utf-8"))
        versions = environment.pop("versions", {})
        m = self.run.about.get("manifest", {})
        data = {k: m[k] for k in ("dataset", "simulated", "protocol", "subjects") if k in m}
        data |= {"pipeline": self.run.about.get("pipeline"), "captions": self.run.about.get("captions_source")}
        data |= {"classifier": self.scores.get("classifier"), "intervals": self.scores.get("interval")}
        config = (self.run.path / "config.yaml").read_text(encoding="utf-8")
        more = {
            "Config of the run": f"<pre>{text(config)}</pre>",
            "Config of the scores": plain(self.scores.get("config", {})),
            "Versions": plain(versions | environment),
        }
        folded = "".join(f"<details><summary>{name}</summary>{inside}</details>" for name, inside in more.items())
        return (
            f'<h2 id="made">How it was made</h2>{plain(data)}<h3>Every number again</h3><p>The pictures follow from '
            "the config, and every number on this page from the pictures:</p>"
            f"<pre>{text(self.commands())}</pre>{folded}"
        )

    def commands(self) -> str:
        """What draws, scores and shows this run again; fields at their default are left out."""
        run = shlex.quote(str(self.run.path))

        def given(values: dict[str, Any], schema: type) -> str:
            fields = dataclasses.fields(schema)
            usual = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields}
            words = []
            for name, value in values.items():
                if name != "run" and usual.get(name) != value:
                    value = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value
                    words.append(" " + shlex.quote(f"{name}={value}"))
            return "".join(words)

        return (
            f"python trainers/reconstruct.py config={run}/config.yaml\n"
            f"neuroimagen evaluate {run}{given(self.scores.get('config', {}), scoring.EvaluateConfig)}\n"
            f"neuroimagen report {run}{given(dataclasses.asdict(self.config), ReportConfig)}\n"
        )

    def body(self) -> str:
        confusion = {row: found for row, found in self.scores.get("confusion", {}).items() if row in self.run.rows}
        sections = [
            self.figure3(),
            self.tables(),
            self.compared(),
            self.all_rows(),
            self.gallery.html(self.pictures),
            confusions(confusion, self.full) if confusion else "",
            self.by_group("class ", "By class", "classes"),
            self.by_group("subject ", "By subject", "subjects"),
            self.definitions(),
            self.details(),
        ]
        sections = [section for section in sections if section]
        return self.top(sections) + "".join(f"<section>{section}</section>" for section in sections)

    def html(self) -> str:
        self.body()  # counts the pictures
        self.pictures.fit()
        eeg = tables.kind_of_eeg(self.scores)
        return render("report/templates/page.j2", script="report/page.js", eeg=eeg, body=Markup(self.body()))


def report(config: ReportConfig) -> None:
    """The command `neuroimagen report RUN`. ValueError if the run is not finished or not scored."""
    for name in ("trials", "each", "ablation"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")
    run = scoring.read_run(config.run, to_write=True)
    path = run.path / "scores.json"
    if not path.exists():
        raise ValueError(f"{run.path} has no scores.json; make it with: neuroimagen evaluate {run.path}")
    scores = json.loads(path.read_text(encoding="utf-8"))
    if scores.get("version") != scoring.VERSION:
        raise ValueError(f"{path} is of another version; make it anew with: neuroimagen evaluate {run.path}")
    scoring.check_scores(run, scores)
    page = Page(run, scores, config)
    tables.write(run, scores, run.path / "tables")
    figures.write(run, scores, run.path / "figures")
    write_atomic(run.path / "report.html", page.html())
    print(f"{run.path / 'report.html'}")
