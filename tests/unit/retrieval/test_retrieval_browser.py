"""The retrieval page in headless Chromium: what axe-core finds on a desk and on a phone."""

import pytest
from browser import axe, needs_chromium, violations  # noqa: F401  (fixtures)
from test_retrieval import folder, marked, report  # noqa: F401  (fixtures)

from neuroimagen.retrieval.evaluate import RetrievalConfig, evaluate

pytestmark = needs_chromium


@pytest.mark.parametrize("width", [400, 1280])
def test_axe_finds_nothing(folder, report, axe, tmp_path, width):  # noqa: F811
    marked(folder, tmp_path)
    evaluate(RetrievalConfig(str(tmp_path / "run"), shards=str(tmp_path / "shards"), device="cpu", transductive=True))
    page = (tmp_path / "run" / "retrieval.html").read_text()
    assert violations(tmp_path, page, axe, width) == []
