"""Pages in headless Chromium, for the tests that look at them as a reader does."""

import base64
import hashlib
import html
import re
import shutil
import subprocess
import tarfile

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt install chromium")
AXE = "axe-core@4.11.4"  # of npm: the usual checks of WCAG 2
VIOLATIONS = """axe.run(document, { resultTypes: ["violations"] }).then((found) => {
  const pre = document.createElement("pre");
  pre.id = "result";
  pre.textContent = found.violations.map((v) => `${v.impact}: ${v.id}: ${v.nodes[0].html.slice(0, 200)}`).join("\\n");
  document.body.append(pre);
});"""


def chromium(tmp_path, file, *options):
    """What Chromium writes, given a file and its options."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=30000", *options, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=True).stdout


def result_of(tmp_path, page, scripts, width=1280):
    """What scripts that are added to a page, an HTML text, leave in its <pre id="result">."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{found}'" for found in hashes)
    page = page.replace("script-src '", f"script-src {allowed} '", 1)
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", "".join(f"<script>{script}</script>" for script in scripts) + "</body>"))
    dump = chromium(tmp_path, file, f"--window-size={width},800", "--dump-dom")
    return html.unescape(re.search(r'<pre id="result">(.*?)</pre>', dump, re.S).group(1))


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    """The script of axe-core."""
    folder, npm = tmp_path_factory.mktemp("axe"), shutil.which("npm")
    got = npm and subprocess.run([npm, "pack", "--silent", AXE], cwd=folder, capture_output=True, timeout=300)
    if not got or got.returncode:
        pytest.skip(f"{AXE} cannot be had from npm")
    with tarfile.open(next(folder.glob("*.tgz"))) as tar:
        return tar.extractfile("package/axe.min.js").read().decode()


def violations(tmp_path, page, axe, width):
    """What axe-core finds on a page, one line each, those that are merely minor apart."""
    found = result_of(tmp_path, page, [axe, VIOLATIONS], width).splitlines()
    return [line for line in found if not line.startswith("minor")]
