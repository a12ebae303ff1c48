"""The captions file: what is written comes back, and what is wrong is said with its line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroimagen.studies.captions import captions_source, label_caption, read_captions, write_captions


def test_label_caption_is_the_papers():
    assert label_caption("daisy") == "An image of daisy"


text = st.text(st.characters(codec="utf-8"), max_size=30)


@given(st.dictionaries(text, text), text)
def test_a_captions_file_comes_back_as_it_was(tmp_path_factory, entries, source):
    path = tmp_path_factory.mktemp("captions") / "captions.jsonl"
    write_captions(path, entries, source)
    assert read_captions(path) == entries
    assert captions_source(path) == (source if entries else "")
    assert [path.name] == [p.name for p in path.parent.iterdir()]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"image": "a", "caption": "x"}\n{"image": "b"}\n', "line 2 has no caption"),
        ('{"caption": "x"}\n', "line 1 has no image"),
        ('{"image": "a", "caption": "x"}\n\n{"image": "b", "capt', "line 3 is not JSON"),
        ('["a", "x"]\n', "line 1 must be"),
        ('{"image": "a", "caption": 3}\n', "line 1 must be"),
        ('{"image": "a", "caption": "x"}\n{"image": "a", "caption": "y"}\n', "two different captions of a"),
    ],
)
def test_a_damaged_captions_file_is_refused(tmp_path, content, message):
    path = tmp_path / "captions.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_captions(path)


def test_a_missing_or_binary_captions_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_captions(tmp_path / "captions.jsonl")
    (tmp_path / "captions.jsonl").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_captions(tmp_path / "captions.jsonl")
