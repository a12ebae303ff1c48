"""The doctor's page: `report=DIR` gets index.html, which needs no other file, faults.txt and the figures as PNG."""

import base64
import html
from pathlib import Path
from typing import Any

from neuroimagen import __version__
from neuroimagen.doctor.examination import CLIPPED_LEAST, CLIPPED_SHARE, MOST_SPECTRA
from neuroimagen.doctor.findings import LARGE, LINE_RATIO, LINES, WHITE, Finding, Findings
from neuroimagen.doctor.picture_hash import NEAR_BITS, NEAR_CORRELATION
from neuroimagen.files import write_atomic
from neuroimagen.studies.classes import UNEVEN

MOST_CLASSES = 200  # rows of the class table; THINGS has 1,854
MOST_LISTED = 500  # findings of a kind on the page, and trials of a finding; faults.txt has them all
CAPTIONS = {
    "spectrum": "Power density (Welch): for each trial the mean over channels, of these the median over (all, or "
    f"{MOST_SPECTRA:,} evenly spaced) trials.",
    "evoked": "Averages over trials. Maps: where channels are named and the 10-05 system knows their place.",
    "amplitude": "Median over trials of each channel's standard deviation.",
    "lengths": "Lengths of the trials as they are in the file.",
}


def write_page(findings: Findings, how: str, folder: Path) -> None:
    """index.html, faults.txt and PNGs in `folder`; other files there are left alone. ValueError if it is a file."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"report={folder} is a file: give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        from neuroimagen.doctor.plots import figures

        drawn, missing = figures(findings), ""
    except ImportError as error:
        drawn, missing = {}, f"No figures: {error.name} is not installed; pip install 'neuroimagen[mne]' brings it."
    for name, png in drawn.items():
        write_atomic(folder / f"{name}.png", png)
    full = [
        f"{finding.text}{': ' if finding.trials else ''}{', '.join(finding.trials)}\n" for finding in findings.faults
    ]
    write_atomic(folder / "faults.txt", "".join(full).encode("utf-8", "replace"))
    write_atomic(folder / "index.html", page(findings, how, drawn, missing).encode("utf-8", "replace"))


def _e(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _table(head: list[str], rows: list[list[str]], css: str = "") -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{css}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def page(findings: Findings, how: str, drawn: dict[str, bytes], missing: str) -> str:
    parts = [_top(findings, how), _verdict(findings), _counts(findings), _signal(findings, drawn, missing)]
    parts += [_classes(findings), _method(findings)]
    name = "SIMULATED data" if findings.study.simulated else findings.where
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>Data doctor: {_e(name)}</title><style>{STYLE}</style>'
        f"</head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _top(findings: Findings, how: str) -> str:
    found, study, n = findings.found, findings.study, len(findings.faults)
    head = f"{n} fault{'s' * (n != 1)}" if n else "No fault found"
    banner = ""
    if study.simulated:
        banner = (
            '<div class="banner"><strong>SIMULATED data</strong> No person was recorded; this page says nothing about '
            "brains.</div>"
        )
    left = f"; {found.left_out:,} more could not be used" if found.left_out else ""
    counted = {what: here for what, here, _ in findings.counts}
    facts = [
        (f"{len(found):,}", f"trials examined{left}"),
        (counted["images"], "pictures"),
        (counted["classes"], "classes"),
        (counted["subjects"], "subjects"),
        (f"{study.n_chans} &times; {study.n_times}", f"channels &times; samples at {study.sfreq:g} Hz"),
    ]
    cards = "".join(f"<div><b>{value}</b><span>{what}</span></div>" for value, what in facts)
    return (
        f'<header><p class="kicker">NeuroImagen data doctor &middot; {_e(how)}</p>'
        f'<h1 class="{"bad" if n else "good"}">{head}</h1>{banner}<div class="facts">{cards}</div></header>'
    )


def _listed(findings: list[Finding]) -> str:
    items = []
    for finding in findings[:MOST_LISTED]:
        trials = ""
        if finding.trials:
            cut = f" and {len(finding.trials) - MOST_LISTED} more" if len(finding.trials) > MOST_LISTED else ""
            keys = _e(", ".join(finding.trials[:MOST_LISTED]) + cut)
            trials = f"<details><summary>{len(finding.trials):,} trials</summary><code>{keys}</code></details>"
        items.append(f"<li>{_e(finding.text)}{trials}</li>")
    if len(findings) > MOST_LISTED:
        items.append(f"<li>and {len(findings) - MOST_LISTED:,} more</li>")
    return "".join(items)


def _verdict(findings: Findings) -> str:
    boxes = []
    if findings.faults:
        boxes.append(f'<div class="box bad"><h2>Wrong</h2><ol>{_listed(findings.faults)}</ol></div>')
    if findings.questions:
        boxes.append(f'<div class="box ask"><h2>A reviewer would ask</h2><ol>{_listed(findings.questions)}</ol></div>')
    fine = "".join(f"<li>{_e(text)}</li>" for text in findings.fine)
    boxes.append(f'<div class="box good"><h2>Fine</h2><ul>{fine}</ul></div>' if fine else "")
    return f'<section class="verdict">{"".join(boxes)}</section>'


def _counts(findings: Findings) -> str:
    found, study = findings.found, findings.study
    rows = [[_e(what), here, _e(said or "–")] for what, here, said in findings.counts]
    text = (
        "<section><h2>Counts</h2><p>A difference from the published numbers is no fault: subsets and simulations are "
        f"usual.</p><div class=two>{_table(['', 'here', 'published'], rows, 'numbers')}"
    )
    rows = []
    for split in study.splits:
        trials = [i for i, name in enumerate(found.split) if name == split]
        images = sum(1 for picture in found.pictures.values() if split in picture.splits)
        people = ", ".join(str(s) for s in sorted({found.subject[i] for i in trials}))
        rows.append([_e(split), f"{len(trials):,}", f"{images:,}", _e(people)])
    text += _table(["split", "trials", "pictures", "subjects"], rows, "numbers") + "</div>"
    notes = "".join(f"<li>{_e(note)}</li>" for note in study.notes)
    return f'{text}<p>Split: {_e(study.protocol)}.</p><ul class="notes">{notes}</ul></section>'


def _signal(findings: Findings, drawn: dict[str, bytes], missing: str) -> str:
    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    rows = []
    for row in findings.amplitudes():
        band = f"{row['band'][0]:.0f} to {row['band'][1]:.0f}" if row["band"] else "–"
        lines = [number(row["lines"][line], ".1f") for line in LINES]
        rows.append(
            [
                str(row["subject"]),
                f"{row['trials']:,}",
                number(row["median"], ".3g"),
                number(row["p95"], ".3g"),
                band,
                number(row["slope"], ".2f"),
                *lines,
            ]
        )
    units = _e(findings.study.units)
    head = [
        "subject",
        "trials",
        f"amplitude ({units})",
        "95 % of channels below",
        "98 % of power in Hz",
        "power ~ f<sup>x</sup>",
    ]
    head += [f"power at {line} Hz / neighbours" for line in LINES]
    text = (
        "<section><h2>Signal</h2><p>Amplitude: standard deviation of a channel in a trial, median over channels and "
        f"trials.</p>{_table(head, rows, 'numbers')}"
    )
    if missing:
        text += f"<p><b>{_e(missing)}</b></p>"
    for name, png in drawn.items():
        data = base64.b64encode(png).decode()
        text += (
            f'<figure><img src="data:image/png;base64,{data}" alt="{_e(name)}"><figcaption>{_e(CAPTIONS[name])}'
            "</figcaption></figure>"
        )
    return text + "</section>"


def _classes(findings: Findings) -> str:
    """The label table, with trials by split and subject, and the first pictures of each class."""
    found, study = findings.found, findings.study
    subjects = found.subjects if len(found.subjects) <= 16 else []
    rows = []
    for c in sorted(study.classes, key=lambda c: c["label"])[:MOST_CLASSES]:
        own = findings.label == c["label"]
        examples = "".join(
            f'<img src="data:image/jpeg;base64,{base64.b64encode(found.pictures[image].example).decode()}" '
            f'alt="{_e(image)}" title="{_e(image)}">'
            for image in found.examples.get(c["label"], [])
        )
        images = sum(1 for picture in found.pictures.values() if picture.label == c["label"])
        counts = [int((own & (findings.split == split)).sum()) for split in study.splits]
        counts += [int((own & (findings.subject == subject)).sum()) for subject in subjects]
        cells = [str(c["label"]), _e(c["wnid"]), f"<b>{_e(c['name'])}</b>", f'<div class="examples">{examples}</div>']
        rows.append([*cells, str(images), *(str(n) if n else '<b class="none">0</b>' for n in counts)])
    head = ["label", "wnid", "class", "its first pictures", "pictures", *(_e(s) for s in study.splits)]
    head += [f"s{subject}" for subject in subjects]
    more = f"<p>{len(study.classes) - MOST_CLASSES:,} more classes.</p>" if len(study.classes) > MOST_CLASSES else ""
    table = _table(head, rows, "numbers")
    return f"<section><h2>Classes</h2><p>Trials by split and by subject (s).</p>{table}{more}</section>"


def _method(findings: Findings) -> str:
    said = {
        "flat": "a channel with one value throughout a trial",
        "clipped": f"at least {100 * CLIPPED_SHARE:g} % of a trial's samples, and {CLIPPED_LEAST}, are exactly its "
        "largest or smallest value",
        "very large": f"more than {LARGE} times the median over the subject's trials, or over its channels",
        "line noise": f"more than {LINE_RATIO:g} times the power of the bins 3 to 6 away, on the stronger side",
        "1/f": f"an exponent above -{WHITE:g} is asked about; fitted up to 45 Hz, from where the spectrum comes near "
        "its maximum, without alpha",
        "uneven classes": f"most frequent / rarest above {UNEVEN:g}",
        "near-duplicate": f"pHash (Zauner 2010) differs in at most {NEAR_BITS} of 63 bits and 32 x 32 grey copies "
        f"correlate by {NEAR_CORRELATION} or more: a hint, look at both",
        "amplitude alone": "nearest class mean of log standard deviations, one a channel; on train, within subject",
        "inputs": ", ".join(str(path) for path in findings.study.inputs[:20]),
        "examined by": f"neuroimagen {__version__}, {len(findings.found):,} trials in {findings.found.seconds:.1f} s",
    }
    rows = [[_e(name), _e(meaning)] for name, meaning in said.items()]
    return f"<section><h2>How it was looked at</h2>{_table(['', ''], rows, 'plain')}</section>"


STYLE = """
:root { --ink:#1b1d22; --soft:#5d6470; --paper:#fbfaf7; --card:#fff; --line:#dedbd2; --red:#b3261e; --green:#22703c;
  --amber:#9a6a00; --sans:system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif }
@media (prefers-color-scheme: dark) { :root { --ink:#e9e7e2; --soft:#a2a6ae; --paper:#15171a; --card:#1e2125;
  --line:#363a41; --red:#ff7a70; --green:#7fcf97; --amber:#e6b652 } }
* { box-sizing:border-box }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.5 var(--sans) }
main { max-width:1180px; margin:0 auto; padding:32px 28px 80px }
h1 { font-size:44px; line-height:1.1; margin:.1em 0 .45em; font-weight:650 }
h2 { font-size:22px; margin:0 0 8px; font-weight:650 }
section { margin-top:44px }
p { max-width:90ch; margin:.4em 0 .9em }
.kicker { color:var(--soft); font-size:14px; margin:0; overflow-wrap:anywhere }
h1.bad { color:var(--red) }
h1.good { color:var(--green) }
.banner { background:#b3261e; color:#fff; padding:12px 18px; border-radius:6px; margin:0 0 18px }
.banner strong { font-size:20px; margin-right:10px }
.facts { display:grid; grid-template-columns:repeat(5,1fr); gap:1px; background:var(--line);
  border:1px solid var(--line); border-radius:6px; overflow:hidden }
.facts div { background:var(--card); padding:12px 16px }
.facts b { display:block; font-size:25px; line-height:1.25; font-weight:650 }
.facts span { color:var(--soft); font-size:13px }
.verdict { margin-top:24px; display:grid; gap:14px }
.box { background:var(--card); border:1px solid var(--line); border-left:6px solid var(--soft); border-radius:6px;
  padding:16px 20px }
.box.bad { border-left-color:var(--red) } .box.bad h2 { color:var(--red) }
.box.ask { border-left-color:var(--amber) } .box.ask h2 { color:var(--amber) }
.box.good { border-left-color:var(--green) } .box.good h2 { color:var(--green) }
.box ol, .box ul { margin:0; padding-left:24px; font-size:14.5px }
.box li { margin:3px 0; overflow-wrap:anywhere }
.box.good ul { columns:2; column-gap:36px } .box.good li { break-inside:avoid }
details code { font-size:12px; color:var(--soft) }
summary { cursor:pointer; color:var(--soft); font-size:13px }
.two { display:grid; grid-template-columns:1fr 1fr; gap:28px; align-items:start }
.wide { overflow-x:auto }
table { border-collapse:collapse; width:100%; font-size:14px; background:var(--card);
  font-variant-numeric:tabular-nums }
th, td { padding:6px 12px; text-align:left; border-bottom:1px solid var(--line); vertical-align:middle }
thead th { font-size:12.5px; line-height:1.3; color:var(--soft); border-bottom:2px solid var(--line);
  vertical-align:bottom }
.plain td { vertical-align:top } .plain td:first-child { color:var(--soft); white-space:nowrap }
.plain td { overflow-wrap:anywhere }
.none { color:var(--red) }
.examples { display:flex; gap:5px } .examples img { width:52px; height:52px; object-fit:cover; border-radius:3px }
figure { margin:22px 0 0; background:#fff; border:1px solid var(--line); border-radius:6px; padding:12px }
figure img { max-width:100%; display:block; margin:0 auto }
figcaption { color:#5d6470; font-size:13px; padding:6px 4px 0 }
.notes { color:var(--soft); font-size:13px; padding-left:18px }
@media (max-width:760px) { .facts, .two { grid-template-columns:1fr 1fr } .box.good ul { columns:1 } }
"""
