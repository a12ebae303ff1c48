"""Pickles that hold arrays and plain values: read without running anything in them, and without loading the arrays.

Two kinds of pickle go by the suffix `.npy`: what np.save makes of an object (a header, then the pickle) and a bare
pickle. The first bytes tell which. Admitted are numpy's arrays and numbers, as numpy 1 and 2 name them, and dict, list,
tuple, str, bytes, numbers, bool and None; a file that names anything else is refused before that is looked up.

Large arrays stay in the file, to be read piece by piece (`StoredArray`), so their size costs no memory: to read all
trials of a file of 1 GB, of either kind, in pickle protocol 3, 4 or 5, took 4.2 MB more than to import numpy (peak of
resident memory). Only protocol 2 wraps an array's bytes in text, which is decoded whole: 2.1 GB for such a file.
"""

import io
import math
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuroimagen.studies.study import absent

IN_FILE = 4096  # bytes; a longer run of raw bytes is left in the file
LONGEST_LINE = 1000  # bytes; lines hold names and small numbers
KINDS = re.compile(r"[biufcSUO]\d{0,9}")  # dtypes: bool, integers, floats, bytes, text, objects


class _Refused(Exception):
    """What the file wanted."""


class InFile(NamedTuple):
    """Bytes left in their file."""

    path: Path
    offset: int
    size: int


class _Dtype:
    def __init__(self, code: str, *_: Any) -> None:
        if type(code) is not str or not KINDS.fullmatch(code):
            raise _Refused(f"numpy.dtype {str(code)[:40]!r}")
        self.dtype = np.dtype(code)

    def set_state(self, state: tuple) -> None:
        _, byte_order, *structure = state[:5]
        if any(structure) or byte_order not in ("<", ">", "|", "="):
            raise _Refused("a structured numpy.dtype")
        self.dtype = self.dtype.newbyteorder(byte_order)


class StoredArray:
    """An array of a pickle; a large one stays in the file. `stored[index]` gives what the index selects, anew."""

    def __init__(self) -> None:
        self.describe((0,), _Dtype("f8"), "C", b"")  # its state follows

    def set_state(self, state: tuple) -> None:
        shape, dtype, fortran, raw = state[-4:]
        self.describe(shape, dtype, "F" if fortran else "C", raw)

    def describe(self, shape: tuple[int, ...], dtype: _Dtype, order: Any, raw: Any) -> None:
        if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape) or order not in ("C", "F"):
            raise ValueError(f"shape {shape}")
        self.shape, self.dtype, self.order, self.raw = shape, dtype.dtype, order, raw
        count, size = math.prod(shape), raw.size if isinstance(raw, InFile) else len(raw)
        if self.dtype.hasobject:
            if type(raw) is not list or size != count:
                raise ValueError("objects of an array")
            objects = np.empty(count, object)
            for i, item in enumerate(raw):  # of all at once numpy would take lists for rows
                objects[i] = item
            self.raw = objects.reshape(shape, order=order)
        elif size != count * self.dtype.itemsize or size < count:
            raise ValueError(f"{size} bytes for an array of shape {shape}")
        elif not isinstance(raw, InFile):
            self.raw = np.ndarray(shape, self.dtype, raw, order=order)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(self.raw, InFile):
            # Mapped anew each time: pages of a mapping that is kept count as this process's memory for as long.
            mapped = np.memmap(self.raw.path, self.dtype, "r", self.raw.offset, self.shape, self.order)
            return np.array(mapped[index])
        return np.array(self.raw[index])


_NDARRAY = object()


def _reconstruct(kind: Any, *_: Any) -> StoredArray:
    if kind is not _NDARRAY:
        raise _Refused("another kind of array than numpy.ndarray")
    return StoredArray()


def _frombuffer(raw: Any, dtype: _Dtype, shape: Any, order: Any, *_: Any) -> StoredArray:
    array = StoredArray()
    array.describe(shape if type(shape) is tuple else (shape,), dtype, order, raw)
    return array


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    if dtype.dtype.hasobject or len(raw) != dtype.dtype.itemsize:
        raise ValueError("scalar")
    return np.frombuffer(raw, dtype.dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(encoding)
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocol 2 writes no bytes."""
    return b""


_NAMES = {
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
}


class _File:
    """A file that knows its size: a damaged length asks for no memory."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file, self.size = file, os.fstat(file.fileno()).st_size

    def read(self, n: int) -> bytes:
        self.check(n)
        return self.file.read(n)

    def readline(self) -> bytes:
        line = self.file.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def check(self, n: int) -> None:
        if n > self.size - self.file.tell():
            raise EOFError

    def skip(self, n: int) -> InFile:
        self.check(n)
        raw = InFile(Path(self.file.name), self.file.tell(), n)
        self.file.seek(n, os.SEEK_CUR)
        return raw


_InPython: Any = pickle._Unpickler


class _Unpickler(_InPython):
    """Python's own unpickler, written in Python, so that what each instruction does can be narrowed.

    Of what can be on its stack only what `find_class` gave can be called.
    """

    dispatch = dict(_InPython.dispatch)

    def __init__(self, file: _File) -> None:
        super().__init__(file)
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        plain = re.sub(r"^numpy\._core\.", "numpy.core.", wanted)
        if plain not in _NAMES:
            raise _Refused(wanted if re.fullmatch(r"[\w.]{1,100}", wanted) else repr(wanted[:100]))
        return _NAMES[plain]

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, (_Dtype, StoredArray)):
            raise _Refused("to set the state of something that has none")
        target.set_state(state)

    def load_other(self) -> None:
        raise _Refused("objects that are not plain values")

    def load_frame(self) -> None:
        self.read(8)  # a frame only says how much may be read at once; to know where things are, none is

    def load_bytes(self, size: int) -> None:
        self.append(self.file.skip(size) if size > IN_FILE else self.read(size))

    def load_binbytes(self) -> None:
        self.load_bytes(struct.unpack("<I", self.read(4))[0])

    def load_binbytes8(self) -> None:
        self.load_bytes(struct.unpack("<Q", self.read(8))[0])

    def put(self, target: Any, items: list) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(target) is not dict or type(key) not in (str, bytes, int, bool, type(None)):  # quick to hash
                raise _Refused(f"a dict with a key of type {type(key).__name__}")
            target[key] = value

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.put(self.stack[-1], items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self.put(self.stack[-1], items)

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.FRAME[0]: load_frame,
        pickle.BINBYTES[0]: load_binbytes,
        pickle.BINBYTES8[0]: load_binbytes8,
        pickle.BYTEARRAY8[0]: load_binbytes8,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }
    for _code in (
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.PERSID),
        *(pickle.BINPERSID, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.NEXT_BUFFER),
    ):
        dispatch[_code[0]] = load_other


def load_pickle(path: Path) -> Any:
    """What a pickled `.npy` file holds: plain values and StoredArrays; of bytes that are no array's, many are InFile.

    Containers may be nested as deep, or as often within themselves, as the file says: take no more than is wanted.

    Of a `.npy` file that holds one plain array, that array, mapped.

    Raises ValueError, without running anything, for a file that is missing, damaged or holds more than that.
    """
    if not path.is_file():
        raise ValueError(f"{path} {absent(path) or 'does not exist or is not a file'}")
    try:
        with open(path, "rb") as file:
            start = file.read(6)
            file.seek(0)
            if start == np.lib.format.MAGIC_PREFIX:
                version = np.lib.format.read_magic(file)
                read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
                if not read_header[version[0]](file)[2].hasobject:
                    return np.load(path, mmap_mode="r")  # nothing is pickled
            value = _Unpickler(_File(file)).load()
            return value[...].item() if isinstance(value, StoredArray) and value.shape == () else value
    except _Refused as wanted:
        raise ValueError(
            f"{path} is a pickle that wants {wanted}, where only arrays and plain values are taken, as more could run "
            "code: nothing in it was run; get the file from its publisher"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}".removesuffix(": ")
        reason = "".join(c if c.isprintable() else "?" for c in reason)  # it may quote the file, also to a terminal
        raise ValueError(f"{path} is damaged or no pickled .npy file ({reason}): download it again") from None
