"""Pickled .npy files: what comes back, what stays in the file, and that nothing in one is ever run."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from things_files import as_npy

from neuroimagen.studies.plain_pickle import IN_FILE, InFile, StoredArray, load_pickle

LARGE = np.random.default_rng(0).standard_normal((3, 4, 5, 60))
KINDS = [
    (flavour, core, protocol) for flavour in ("save", "bare") for core in ("core", "_core") for protocol in (2, 3, 4)
]
KINDS += [("save", "_core", 5), ("bare", "_core", 5)]


def same(found, wanted) -> None:
    """Equal in value, type and dtype, arrays in the file included."""
    if isinstance(found, StoredArray):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        found = found[...]
    if isinstance(found, InFile):
        found = found.path.read_bytes()[found.offset :][: found.size]
    assert type(found) is type(wanted)
    if isinstance(wanted, np.ndarray):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            same(found[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            same(a, b)
    else:
        assert found == wanted


@pytest.mark.parametrize("flavour, core, protocol", KINDS)
def test_everything_admitted_comes_back(tmp_path, flavour, core, protocol):
    content = {
        "large": LARGE,
        "fortran": np.asfortranarray(LARGE),
        "big-endian": LARGE.astype(">f4"),
        "same again": LARGE,
        "small": np.arange(6).reshape(2, 3),
        "empty": np.zeros((0, 4)),
        "numbers": [np.float32(2.5), np.int64(-3), np.bool_(True), np.str_("Öz")],
        "names": np.array(["O1", "Öz"]),
        "objects": np.array(["O1", None, [1]], dtype=object),
        "plain": ["Öz", b"\x00\xff", (1, -(1 << 70), 2.5, True, None), {"deep": [{}]}],
    }
    (tmp_path / "x.npy").write_bytes(as_npy(content, flavour, protocol, core))
    found = load_pickle(tmp_path / "x.npy")
    same(found, content)
    assert isinstance(found["large"].raw, InFile) == (protocol > 2) and not isinstance(found["small"].raw, InFile)
    for name in ("large", "fortran", "big-endian"):
        np.testing.assert_array_equal(found[name][1, 2], content[name][1, 2])


def test_what_numpy_and_pickle_write_themselves(tmp_path):
    content = {"data": LARGE, "ch_names": ["O1"], "times": np.arange(60) / 250}
    np.save(tmp_path / "saved.npy", content)  # the two lines by which the published files were made
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(content, protocol=4))
    for name in ("saved", "bare"):
        found = load_pickle(tmp_path / f"{name}.npy")
        assert isinstance(found["data"].raw, InFile)
        same(found, content)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=2 * IN_FILE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)
ARRAYS = hnp.arrays(
    hnp.floating_dtypes(endianness="?") | hnp.integer_dtypes(endianness="?") | hnp.boolean_dtypes(),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9),
    elements={"allow_nan": False} | {},
)


@example({"": b""}, np.empty(0, bool), ("save", "_core", 5))
@given(value=VALUES, array=ARRAYS, kind=st.sampled_from(KINDS))
def test_any_plain_value_comes_back(tmp_path_factory, value, array, kind):
    path = tmp_path_factory.getbasetemp() / "any.npy"
    content = {"value": value, "array": array}
    path.write_bytes(as_npy(content, kind[0], kind[2], kind[1]))
    same(load_pickle(path), content)


WHOLE = as_npy({"data": LARGE[0], "ch_names": ["O1", "Öz"], "times": np.arange(3.0)}, "save")


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=9))
@example(0, b"")
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path_factory, place, bytes_there):
    """Bytes overwritten anywhere, or the rest cut off: never another error, never a long search or much memory."""
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    for data in (WHOLE[:place], WHOLE[:place] + bytes_there + WHOLE[place + len(bytes_there) :]):
        path.write_bytes(data)
        try:
            load_pickle(path)
        except ValueError as error:
            assert str(path) in str(error) and str(error).isprintable()


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("flavour", ["save", "bare"])
@pytest.mark.parametrize("protocol", range(6))
def test_an_attack_is_named_and_not_run(tmp_path, flavour, protocol):
    (tmp_path / "x.npy").write_bytes(as_npy({"evil": Attack(tmp_path / "attacked"), "data": LARGE}, flavour, protocol))
    with pytest.raises(ValueError, match=r"x\.npy is a pickle that wants posix\.system, where only arrays") as caught:
        load_pickle(tmp_path / "x.npy")
    assert "\n" not in str(caught.value) and not (tmp_path / "attacked").exists()
    pickle.loads(pickle.dumps(Attack(tmp_path / "attacked")))
    assert (tmp_path / "attacked").exists()  # the attack would have worked


def stack(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return b"\x8c" + struct.pack("<B", len(value.encode())) + value.encode()


def name(module: str, function: str) -> bytes:
    return text(module) + text(function) + pickle.STACK_GLOBAL


STATE = b"K\x01" + b"(K\x03t" + name("numpy", "dtype") + text("f8") + b"\x89\x88\x87R" + b"\x89C\x08" + bytes(8) + b"t"
RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
HOSTILE = {
    "builtin": (stack(name("builtins", "eval"), text("1"), b"\x85R"), r"wants builtins\.eval"),
    "dotted": (stack(name("numpy", "ndarray.__init__"), b")R"), r"wants numpy\.ndarray\.__init__"),
    "newline in a name": (stack(name("os\n", "sy\x1b[2Jstem"), b")R"), r"wants 'os\\n\.sy\\x1b\[2Jstem'"),
    "text protocol": (b"cposix\nsystem\n(S'true'\ntR.", r"wants posix\.system"),
    "instance": (b"(S'true'\niposix\nsystem\n.", r"wants posix\.system"),
    "load in numpy": (stack(name("numpy", "load"), text("/etc/passwd"), b"\x85R"), r"wants numpy\.load"),
    "call of a text": (stack(text("abc"), b")R"), "not callable"),
    "escape sequence": (stack(name("_codecs", "encode"), text("a"), text("\x1b[2J"), b"\x86R"), r"ValueError: \?\[2J"),
    "state of a dict": (stack(b"}", b"}b"), "to set the state of something that has none"),
    "extension": (stack(b"\x82\x01"), "objects that are not plain values"),
    "persistent": (stack(b"Ppath\n"), "objects that are not plain values"),
    "a set": (stack(b"\x8f"), "objects that are not plain values"),
    "dict with a list key": (stack(b"}]Ns"), "a dict with a key of type list"),
    "dict with a tuple key": (stack(b"}K\x01K\x01\x86Ns"), "a dict with a key of type tuple"),
    "text dict": (b"(I1\nI1\nt(I1\nI1\ntd.", None),
    "memory map": (stack(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "memmap")), r"numpy\.memmap"),
    "records": (stack(name("numpy", "dtype"), text("f8,f8"), b"\x85R"), "numpy.dtype 'f8,f8'"),
    "too long": (stack(b"\x8e" + struct.pack("<Q", 1 << 60)), "EOFError"),
    "too long text": (stack(b"\x8d" + struct.pack("<Q", 1 << 60)), "EOFError"),
    "long line": (b"c" + b"a" * 100_000 + b"\nb\n.", "EOFError"),
    "size of an array": (stack(RECONSTRUCT, b"(" + STATE + b"b"), "8 bytes for an array of shape"),
    "empty stack": (b"\x80\x04.", "IndexError"),
    "no end": (b"\x80\x04N", "EOFError"),
    "protocol 9": (b"\x80\x09N.", "unsupported pickle protocol: 9"),
    "empty": (b"", "EOFError"),
    "a JPEG": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "KeyError: 255"),
    "npy cut": (b"\x93NUMPY\x01\x00v\x00{'descr'", "x.npy is damaged"),
    "npy version": (b"\x93NUMPY\x09\x00v\x00{}", "x.npy is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pickle_gets_one_sentence(tmp_path, case):
    data, sentence = HOSTILE[case]
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_pickle(tmp_path / "x.npy")
    assert str(tmp_path / "x.npy") in str(caught.value) and str(caught.value).isprintable()


def test_a_plain_array_is_read_and_a_missing_file_refused(tmp_path):
    np.save(tmp_path / "x.npy", LARGE)
    np.testing.assert_array_equal(load_pickle(tmp_path / "x.npy"), LARGE)
    with pytest.raises(ValueError, match=r"none\.npy does not exist"):
        load_pickle(tmp_path / "none.npy")


def test_large_arrays_are_not_read_when_the_file_is_opened(tmp_path):
    """They are looked up when asked for: what was changed meanwhile is seen, and a file cut off is noticed."""
    content = {"data": np.zeros((10, IN_FILE))}
    data = as_npy(content, "bare")
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    found = load_pickle(path)["data"]
    changed = bytearray(data)
    struct.pack_into("<d", changed, found.raw.offset + 8 * (3 * IN_FILE + 1), 7.0)
    path.write_bytes(changed)
    assert found[3, 1] == 7.0 and found[2].sum() == 0
    before = found[3]
    path.write_bytes(data[:1000])
    assert before[1] == 7.0
    with pytest.raises(ValueError):
        found[9]


def test_frames_are_only_a_hint(tmp_path):
    """Python 3.6 wrote large bytes within a frame: one frame of the whole file."""
    inner = pickle.dumps({"data": LARGE}, protocol=3)[2:]
    data = io.BytesIO()
    data.write(b"\x80\x04\x95" + struct.pack("<Q", len(inner)) + inner)
    (tmp_path / "x.npy").write_bytes(data.getvalue())
    found = load_pickle(tmp_path / "x.npy")
    assert isinstance(found["data"].raw, InFile)
    same(found, {"data": LARGE})
