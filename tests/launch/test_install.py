"""What `pip install .` puts on a machine: the library, its console script, and nothing else at top level."""

import subprocess
import sys
import zipfile
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_the_wheel_holds_neuroimagen_alone(tmp_path):
    source = tmp_path / "source"  # a copy, so that no build folder is left behind
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO, capture_output=True, text=True)
    for name in listed.stdout.split():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPO / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    result = subprocess.run(build, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {t for t in top if not t.endswith(".dist-info")} == {"neuroimagen"}
    (entry,) = (n for n in names if n.endswith("entry_points.txt"))
    assert "neuroimagen = neuroimagen.cli:main" in zipfile.ZipFile(wheel).read(entry).decode()
    for needed in ("neuroimagen/embedded/diffusion/model_index.json", "neuroimagen/embedded/classifier/config.json"):
        assert needed in names
