"""The report page in headless Chromium: what its script does, and how it looks without one."""

import base64
import json
import re

import numpy as np
import pytest
from browser import axe, chromium, needs_chromium, result_of, violations  # noqa: F401  (fixtures)
from PIL import Image
from test_report import page, run  # noqa: F401  (fixtures)

from neuroimagen.report.gallery import random_order, read_picture_scores
from neuroimagen.scores.run_files import read_run

pytestmark = needs_chromium

# Works the page as a reader would, and writes what it then shows into the page's <pre id="result">.
SCRIPT = """
const form = document.getElementById("controls"), found = document.getElementById("found");
const groups = document.getElementById("groups"), status = document.getElementById("status"), result = {};
function choose(fields) {
  for (const [name, value] of Object.entries(fields)) form.elements[name].value = value;
  form.dispatchEvent(new Event("change", { bubbles: true }));
  const cards = [...found.children], front = cards[0]?.querySelector("[data-drawn]");
  return { keys: cards.map((c) => c.dataset.key), status: status.textContent, front: front?.src, alt: front?.alt,
           value: cards[0]?.querySelector(".value").textContent, groups: !groups.hidden, found: !found.hidden };
}
result.form = !form.hidden;
result.start = { groups: !groups.hidden, found: !found.hidden };
const all = { subject: "", label: "" };
result.worst = choose({ order: "worst", metric: "ssim", row: "L" });
result.lower = choose({ order: "best", metric: "lpips", row: "NeuroVision" });
result.median = choose({ order: "median", metric: "acc", row: "L+I" });
result.random = choose({ order: "random" });
result.some = choose({ order: "best", metric: "acc", subject: "2", label: "1" });
result.plain = choose({ order: "", ...all, row: "B" });
result.plain.fronts = [...groups.querySelectorAll("[data-drawn]")].map((i) => i.alt.split(",")[0]);
const zoom = document.getElementById("zoom"), large = zoom.querySelector("img");
const strip = document.querySelector(".strip:not(.heads)").querySelectorAll("img");
strip[1].click();
result.zoom = { open: zoom.open, same: large.src === strip[1].src };
const press = (on, key) => on.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
press(zoom, "ArrowRight");
result.zoom.next = large.src === strip[2].src;
press(zoom, "ArrowLeft"); press(zoom, "ArrowLeft"); press(zoom, "ArrowLeft");
result.zoom.round = large.src === strip[strip.length - 1].src;
zoom.close();
press(strip[0], "Enter");
result.zoom.keyboard = zoom.open && large.src === strip[0].src;
zoom.close();
const button = document.querySelector("th .def");
button.click();
result.definition = document.querySelector("[popover]:popover-open")?.textContent;
const card = groups.querySelector(".card");
card.querySelector("summary").click();
result.card = { open: card.open, pictures: card.querySelectorAll(".figures img").length,
                width: card.querySelector(".truth").clientWidth, rows: card.querySelectorAll("tbody tr").length };
result.nameless = [...document.querySelectorAll("button, select, summary, a, [role=region]")].filter(
  (e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).length;
result.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
result.title = document.title;
const pre = document.createElement("pre");
pre.id = "result";
pre.textContent = JSON.stringify(result);
document.body.append(pre);
"""


def test_script(page, tmp_path):  # noqa: F811
    folder, text, _ = page
    strange = "<script>document.title = 'a strange script ran'</script>"  # the policy forbids it
    result = json.loads(result_of(tmp_path, text.replace("</body>", f"{strange}</body>"), [SCRIPT], width=500))

    read = read_run(folder)
    means, keys = read_picture_scores(read).means, [trial["key"] for trial in read.trials]

    def ordered(value):
        return [keys[i] for i in sorted(range(len(keys)), key=lambda i: (value[i], keys[i]))]

    def front(row, key):
        return "data:image/png;base64," + base64.b64encode(read.image(row, key, 0).read_bytes()).decode()

    assert result["form"] and result["start"] == {"groups": True, "found": False}
    worst, lower, some, plain = (result[name] for name in ("worst", "lower", "some", "plain"))
    assert worst["keys"] == ordered(means["ssim"]["L"]) and worst["found"] and not worst["groups"]
    assert worst["front"] == front("L", worst["keys"][0]) and worst["alt"].startswith("L, sample 1: ")
    assert worst["value"] == f"SSIM {means['ssim']['L'].min():.3f}"
    assert "24 of the 24 trials on this page (the run has 24). Order: worst first by SSIM, row L" in worst["status"]
    assert lower["keys"] == ordered(means["lpips"]["NeuroVision"])  # the lower the better
    acc = means["acc"]["L+I"]
    written = [float(f"{value:.5g}") for value in [np.median(acc), *acc]]  # as the page has them, so that ties are ties
    assert result["median"]["keys"] == ordered([abs(value - written[0]) for value in written[1:]])
    assert result["random"]["keys"] == [keys[i] for i in random_order(24)]
    chosen = [i for i, t in enumerate(read.trials) if t["subject"] == 2 and t["label"] == 1]
    assert some["keys"] == [keys[i] for i in sorted(chosen, key=lambda i: -acc[i])] and len(chosen) == 3
    assert some["status"].startswith("3 of the 24 trials") and some["value"] == f"ACC {100 * acc[chosen].max():.1f} %"
    assert plain["groups"] and not plain["found"] and set(plain["fronts"]) == {"B"}
    assert "still those of row L+I" in plain["status"]
    assert all(result["zoom"].values()), result["zoom"]
    assert "What acc is <in words>." in result["definition"] and "Chance: 25.0" in result["definition"]
    assert result["card"]["open"] and result["card"]["pictures"] == 1 + 2 + 9 and result["card"]["rows"] == 12
    assert result["card"]["width"] > 150  # enlarged: a closed card is that wide with both its pictures
    assert result["nameless"] == 0 and result["overflow"] == 0
    assert result["title"].startswith("NeuroImagen")


def test_looks_without_script_and_in_the_dark(page, tmp_path):  # noqa: F811
    (folder, text, _), shot, file = page, tmp_path / "page.png", tmp_path / "page.html"
    file.write_text(re.sub("script-src '.*?'", "script-src 'none'", text, count=1))
    dark = "--blink-settings=preferredColorScheme=0"
    chromium(tmp_path, file, dark, f"--screenshot={shot}", "--window-size=1280,1300")
    pixels = np.asarray(Image.open(shot).convert("RGB"), np.int16)

    def count(colour):
        return int((np.abs(pixels - np.array(colour)) <= 3).all(-1).sum())

    assert pixels.shape == (1300, 1280, 3)
    assert count((0x15, 0x17, 0x1A)) > 0.4 * pixels[..., 0].size  # the dark paper
    assert count((0xB3, 0x26, 0x1E)) > 40_000  # the banner: simulated EEG
    assert count((0xFF, 0x5A, 0x52)) > 4 * 4 * 80 * 2  # red frames of the four pictures seen
    # In the first frame there is the first trial of the first class.
    first = min((t for t in read_run(folder).trials if t["label"] == 0), key=lambda t: t["key"])
    with Image.open(folder / f"truth/{first['key']}.png") as truth:
        wanted = np.asarray(truth, float).mean((0, 1))
    top, left = np.argwhere((np.abs(pixels - np.array((0xFF, 0x5A, 0x52))) <= 3).all(-1))[0]
    assert np.abs(pixels[top + 6 : top + 76, left + 6 : left + 76].mean((0, 1)) - wanted).max() < 8


@pytest.mark.parametrize("width", [400, 1280])
def test_a_reader_who_cannot_see_or_use_a_mouse_is_not_shut_out(page, tmp_path, axe, width):  # noqa: F811
    assert violations(tmp_path, page[1], axe, width) == []
