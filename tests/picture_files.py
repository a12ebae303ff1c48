"""Pictures as cameras, scanners and designers write them, byte by byte, for tests."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

GREY, RGB, PALETTE, LA, RGBA = 0, 2, 3, 4, 6  # PNG's colour types
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]  # y x dy dx


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _rows(values: np.ndarray, depth: int) -> bytes:
    """Filtered rows of (h, w, c) values: none, sub and up in turn."""
    if 0 in values.shape:
        return b""
    h, w, c = values.shape
    if depth < 8:
        bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
        rows = np.packbits(bits.reshape(h, -1).astype(np.uint8), axis=1)
    else:
        rows = np.frombuffer(values.astype(">u2" if depth == 16 else "u1").tobytes(), np.uint8).reshape(h, -1)
    step, found = max(1, c * depth // 8), b""
    for y, row in enumerate(rows):
        kind = y % 3
        before = (row * 0, np.concatenate([row[:0], row * 0])[: len(row)], rows[y - 1])[kind]
        if kind == 1:
            before = np.concatenate([np.zeros(step, np.uint8), row[:-step]])[: len(row)]
        found += bytes([kind]) + (row - before).tobytes()
    return found


def png(values, depth: int, kind: int, *chunks: tuple[bytes, bytes], interlaced: bool = False, late=()) -> bytes:
    """PNG of (h, w, c) values of `depth` bits; chunks: (name, content) before the pixels, `late` those after."""
    values = np.atleast_3d(np.asarray(values))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, kind, 0, 0, interlaced)
    passes = [values[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [values]
    pixels = zlib.compress(b"".join(_rows(part, depth) for part in passes))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", pixels), *late, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


# Colour profiles: of an RGB display by its primaries (columns X, Y, Z; D50) and gamma, of grey, and of CMYK.
PRIMARIES = {
    "sRGB": [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)],
    "Display P3": [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)],
    "Adobe RGB": [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)],
    "ProPhoto": [(0.79767, 0.28804, 0.00000), (0.13519, 0.71187, 0.00000), (0.03134, 0.00009, 0.82491)],
}


def _fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def profile(space: bytes, tags: dict[bytes, bytes], between: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """An ICC profile of version 2.4."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _fixed(0.9642, 1, 0.8249), b"cprt": b"text\0\0\0\0none\0"} | tags
    table, content, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(content), len(data))
        content += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(content), b"", 0x02400000, kind, space, between)
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28 + _fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def display(name: str, gamma: float) -> bytes:
    columns = dict(
        zip((b"rXYZ", b"gXYZ", b"bXYZ"), (b"XYZ \0\0\0\0" + _fixed(*c) for c in PRIMARIES[name]), strict=True)
    )
    return profile(b"RGB ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma)))


def grey(gamma: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": curve(gamma)})


def press() -> bytes:
    """CMYK whose paper is white, whose black is black, and whose every other ink is a grey of L* = 50."""
    corners = bytearray()
    for inks in np.ndindex(2, 2, 2, 2):  # C slowest
        lightness = 0 if inks[3] else 50 if any(inks) else 100
        corners += bytes([round(lightness * 2.55), 128, 128])
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramp * 4 + corners + ramp * 3
    return profile(b"CMYK", {b"A2B0": table, b"A2B1": table}, b"Lab ", b"prtr")


def shown_by_display(values: np.ndarray, name: str, gamma: float) -> np.ndarray:
    """(..., 3) numbers 0 to 255 of a `display` -> sRGB, 0 to 255, by the definitions."""
    linear = (values / 255.0) ** (round(gamma * 256) / 256)
    linear = (linear @ np.array(PRIMARIES[name]) @ np.linalg.inv(np.array(PRIMARIES["sRGB"]))).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
