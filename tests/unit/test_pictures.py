"""A picture is what the person saw, whatever wrote the file: stored as that, asked about, or refused by name."""

import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from perceivelab_files import write_study
from picture_files import GREY, LA, PALETTE, RGB, RGBA, display, exif, grey, png, press, saved, shown_by_display
from PIL import Image, ImageCms, ImageOps

from neuroimagen import pictures as seen
from neuroimagen.batches.decode import decode, load_picture
from neuroimagen.batches.pictures import load_pictures
from neuroimagen.cli import main
from neuroimagen.sample.captions import _open_rgb
from neuroimagen.scores.classifiers import read_pixels
from neuroimagen.shards import tars as packing
from neuroimagen.shards.format import ShardSplit, read_manifest
from neuroimagen.shards.pack import ShardsConfig
from neuroimagen.shards.tars import store_picture

RNG = np.random.default_rng(0)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((21, 15), Image.Resampling.BICUBIC)
PIXELS = RNG.integers(0, 256, (5, 9, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 9, 3), dtype=np.uint16)
COLOURS = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
WHITE = {"background": "white"}
SAME_AS_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def store(data: bytes, **fields) -> tuple[np.ndarray, bytes, tuple[str, ...]]:
    """The pixels (h, w, 3) of what is stored, which every reader of it finds alike; its bytes; what was done."""
    extension, stored, done = store_picture(data, "x.jpg", ShardsConfig(out="", **fields))
    with Image.open(io.BytesIO(stored)) as picture:
        assert {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}[picture.format] == extension
        pixels = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(decode(stored, 1 << 20), pixels)
    return pixels, stored, done


def repeat(values) -> np.ndarray:
    """Grey (h, w) as RGB."""
    return np.repeat(np.asarray(values)[..., None], 3, axis=2)


def rounded(values) -> np.ndarray:
    return np.rint(np.asarray(values) / 257).astype(np.uint8)


def phone() -> bytes:
    return saved(SMOOTH, "MPO", save_all=True, append_images=[SMOOTH.resize((8, 6)), Image.new("RGB", (21, 15))])


def pil(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


bits = {depth: RNG.integers(0, 1 << depth, (5, 9)) for depth in (1, 2, 4)}
palette = (b"PLTE", COLOURS.tobytes())
opaque = np.concatenate([PIXELS, np.full((5, 9, 1), 255, np.uint8)], axis=2)
KEPT = {
    "JPEG": (saved(SMOOTH, "JPEG"), None),
    "grey JPEG": (saved(SMOOTH.convert("L"), "JPEG"), None),
    "progressive": (saved(SMOOTH, "JPEG", progressive=True), None),
    "stored as RGB": (saved(SMOOTH, "JPEG", keep_rgb=True), None),
    "upright": (saved(SMOOTH, "JPEG", exif=exif(1)), None),
    "sRGB profile": (saved(SMOOTH, "JPEG", icc_profile=SAME_AS_SRGB), None),
    "grey JPEG with an sRGB profile": (saved(SMOOTH.convert("L"), "JPEG", icc_profile=SAME_AS_SRGB), None),
    "MPO": (phone(), None),
    "PNG": (png(PIXELS, 8, RGB), PIXELS),
    "interlaced": (png(PIXELS, 8, RGB, interlaced=True), PIXELS),
    "PNG, sRGB profile": (saved(Image.fromarray(PIXELS), "PNG", icc_profile=SAME_AS_SRGB), PIXELS),
    "gamma of sRGB": (png(PIXELS, 8, RGB, (b"gAMA", struct.pack(">I", 45455))), PIXELS),
    "sRGB goes before gamma": (png(PIXELS, 8, RGB, (b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 99999))), PIXELS),
    "cICP of sRGB": (png(PIXELS, 8, RGB, (b"cICP", b"\x01\x0d\x00\x01")), PIXELS),
    "one pixel": (png([[[7, 8, 9]]], 8, RGB), np.array([[[7, 8, 9]]])),
    "grey": (png(PIXELS[..., 0], 8, GREY), repeat(PIXELS[..., 0])),
    **{f"{d} bits": (png(v, d, GREY), repeat(v * (255 // (2**d - 1)))) for d, v in bits.items()},
    **{f"palette of {d} bits": (png(v % 4, d, PALETTE, palette), COLOURS[v % 4]) for d, v in bits.items()},
    "palette, opaque": (png(bits[2], 8, PALETTE, palette, (b"tRNS", b"\xff\xff")), COLOURS[bits[2]]),
    "palette, unused entry": (png(bits[1], 8, PALETTE, palette, (b"tRNS", b"\xff\xff\xff\0")), COLOURS[bits[1]]),
    "opaque alpha": (png(opaque, 8, RGBA), PIXELS),
    "grey with opaque alpha": (png(opaque[..., 2:], 8, LA), repeat(PIXELS[..., 2])),
    "colour key that no pixel has": (png(PIXELS * 0, 8, RGB, (b"tRNS", b"\0\1\0\1\0\1")), PIXELS * 0),
    "animated, of one frame": (
        png(
            PIXELS,
            8,
            RGB,
            (b"acTL", struct.pack(">II", 1, 0)),
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, 9, 5, 0, 0, 1, 1, 0, 0)),
        ),
        PIXELS,
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_ordinary_files_keep_their_bytes(name):
    data, expected = KEPT[name]
    pixels, stored, done = store(data)
    assert stored == data and done == ()
    np.testing.assert_array_equal(pixels, pil(data) if expected is None else expected)
    assert store(data, background="#123456", orientation="upright")[1] == data


def test_a_picture_of_a_phone_is_its_first():
    assert Image.open(io.BytesIO(phone())).format == "MPO"
    assert np.abs(store(phone())[0].astype(int) - np.asarray(SMOOTH)).mean() < 12
    assert load_picture(phone(), 8).shape == (3, 8, 8)


alpha = np.tile(np.array([0, 1, 128, 254, 255, 0, 77, 200, 255], np.uint8), (5, 1))
key = np.where(alpha[..., None] < 128, np.uint8([250, 1, 2]), PIXELS // 2)
grey_key = np.where(alpha < 128, 201, PIXELS[..., 0] // 2)


def over(pixels, alpha, background) -> np.ndarray:
    share = np.asarray(alpha, float)[..., None] / 255
    return np.rint(np.asarray(pixels, float) * share + np.array(background) * (1 - share))


def deep(values, share) -> np.ndarray:
    """Values with alpha, of 16 bits."""
    return np.concatenate([values, share[..., None].astype(np.uint16) * 257], axis=2)


by_entry = np.array([0, 255, 90, 255])
# name: file, colours of 8 bits, alpha of 8 bits
TRANSPARENT = {
    "RGBA": (png(np.dstack([PIXELS, alpha]), 8, RGBA), PIXELS, alpha),
    "RGBA, interlaced": (png(np.dstack([PIXELS, alpha]), 8, RGBA, interlaced=True), PIXELS, alpha),
    "LA": (png(np.dstack([PIXELS[..., 0], alpha]), 8, LA), repeat(PIXELS[..., 0]), alpha),
    "RGBA of 16 bits": (png(deep(DEEP, alpha), 16, RGBA), rounded(DEEP), alpha),
    "LA of 16 bits": (png(deep(DEEP[..., :1], alpha), 16, LA), repeat(rounded(DEEP[..., 0])), alpha),
    "LA of 16 bits, interlaced": (
        png(deep(DEEP[..., :1], alpha), 16, LA, interlaced=True),
        repeat(rounded(DEEP[..., 0])),
        alpha,
    ),
    "palette, one entry": (
        png(bits[2], 8, PALETTE, palette, (b"tRNS", b"\xff\0")),
        COLOURS[bits[2]],
        np.where(bits[2] == 1, 0, 255),
    ),
    "palette, shades": (
        png(bits[2], 2, PALETTE, palette, (b"tRNS", bytes(by_entry.tolist()))),
        COLOURS[bits[2]],
        by_entry[bits[2]],
    ),
    "colour key": (png(key, 8, RGB, (b"tRNS", b"\0\xfa\0\1\0\2")), key, np.where(alpha < 128, 0, 255)),
    "grey key": (png(grey_key, 8, GREY, (b"tRNS", b"\0\xc9")), repeat(grey_key), np.where(alpha < 128, 0, 255)),
    **{
        f"grey key of {d} bits": (
            png(v, d, GREY, (b"tRNS", b"\0\1")),
            repeat(v * (255 // (2**d - 1))),
            np.where(v == 1, 0, 255),
        )
        for d, v in bits.items()
    },
    "grey key of 2 bits, with bits above": (
        png(bits[2], 2, GREY, (b"tRNS", b"\1\5")),
        repeat(bits[2] * 85),
        np.where(bits[2] == 1, 0, 255),
    ),
    "colour key with bits above": (png(key, 8, RGB, (b"tRNS", b"\1\xfa\0\1\0\2")), key, np.where(alpha < 128, 0, 255)),
    "colour key of 16 bits": (
        png(DEEP, 16, RGB, (b"tRNS", DEEP[2, 3].astype(">u2").tobytes())),
        rounded(DEEP),
        np.where((DEEP[2, 3] == DEEP).all(axis=2), 0, 255),
    ),
    "grey key of 16 bits": (
        png(DEEP[..., 0], 16, GREY, (b"tRNS", DEEP[2, 3, :1].astype(">u2").tobytes())),
        repeat(rounded(DEEP[..., 0])),
        np.where(DEEP[..., 0] == DEEP[2, 3, 0], 0, 255),
    ),
}
BACKGROUNDS = {"white": (255,) * 3, "grey": (128,) * 3, "black": (0,) * 3, "#0a64c8": (10, 100, 200)}


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("name", TRANSPARENT)
def test_the_colour_hidden_by_transparency_is_never_taken(name, background):
    data, pixels, share = TRANSPARENT[name]
    sentence = "picture x.jpg cannot be taken as it is: it is transparent: tell neuroimagen shards .*background=white"
    with pytest.raises(ValueError, match=sentence):
        store(data)
    with pytest.raises(ValueError, match="it is transparent"):
        load_picture(data, 8)
    found, _, done = store(data, background=background)
    assert seen.LAID in done and (seen.ROUNDED in done) == ("16" in name)
    np.testing.assert_array_equal(found, over(pixels, share, BACKGROUNDS[background]))


@pytest.mark.parametrize("background", ["whyte", "#12", "#11223344", "255", " "])
def test_a_background_that_is_no_colour(background, tmp_path, capsys):
    write_study(tmp_path)
    files = [f"eeg={tmp_path / 'eeg.pth'}", f"images={tmp_path / 'images'}", "splits=by_image", "n_chans=4"]
    for command in (["shards", f"out={tmp_path / 'out'}"], ["check"]):
        assert main([*command, *files, f"background='{background}'"]) == 2
        assert "is no colour: give white, grey, black or '#rrggbb'" in capsys.readouterr().err


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("kind, n", [(GREY, 1), (RGB, 3), (LA, 2), (RGBA, 4)])
def test_sixteen_bits_are_rounded_on_their_whole_range(kind, n, interlaced):
    values = np.concatenate([DEEP, np.full((5, 9, 1), 65535)], axis=2)[..., -n:] if n in (2, 4) else DEEP[..., :n]
    values[0, 0, 0], values[0, 1, 0], values[0, 2, 0] = 0, 65535, 0x00FF  # 0xFF / 257 is nearer to 1 than to 0
    data = png(values, 16, kind, interlaced=interlaced)
    pixels, _, done = store(data)
    assert done == (seen.ROUNDED,)
    np.testing.assert_array_equal(pixels, rounded(values[..., :3] if n > 2 else np.repeat(values[..., :1], 3, axis=2)))
    np.testing.assert_array_equal(decode(data, 4), pixels)


def lab_grey() -> int:
    """sRGB of L* = 50: Y = 18.42 %."""
    return round(255 * (1.055 * 0.18418651851 ** (1 / 2.4) - 0.055))


flat = {
    "white": (Image.new("CMYK", (8, 8), (0, 0, 0, 0)), 255),
    "black": (Image.new("CMYK", (8, 8), (0, 0, 0, 255)), 0),
    "magenta": (Image.new("CMYK", (8, 8), (0, 255, 0, 0)), None),
}


@pytest.mark.parametrize("inks", flat)
def test_cmyk(inks):
    """With a profile by it, without one by PIL's rule; Adobe's JPEGs keep ink inverted."""
    picture, level = flat[inks]
    plain, _, done = store(saved(picture, "JPEG", quality=100))
    assert done == (seen.CMYK,) and np.ptp(plain, axis=(0, 1)).max() == 0
    assert plain[0, 0].tolist() == ([level] * 3 if level is not None else [255, 0, 255])
    by_profile, stored, done = store(saved(picture, "JPEG", quality=100, icc_profile=press()))
    assert done == (seen.CONVERTED,) and stored[:4] == b"\x89PNG"
    assert np.abs(by_profile.astype(int) - (lab_grey() if level is None else level)).max() <= 2
    assert np.array_equal(decode(saved(picture, "JPEG", quality=100), 8), plain)  # from a folder, too


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "RGBA", "16 bits", "palette"])
@pytest.mark.parametrize("name, gamma", [("Display P3", 2.2), ("Adobe RGB", 2.2), ("ProPhoto", 1.8), ("sRGB", 1.0)])
def test_wide_gamuts_are_converted(kind, name, gamma):
    colours = np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 100, 50], [128, 128, 128], [20, 40, 60]])
    pixels, icc, fields = colours[:, None], display(name, gamma), {}
    if kind == "JPEG":
        pixels = np.broadcast_to(colours[3], (8, 8, 3)).copy()
        data = saved(Image.fromarray(pixels), "JPEG", quality=100, subsampling=0, icc_profile=icc)
        pixels = pil(data)
    elif kind == "RGBA":
        half = np.concatenate([pixels, np.full((6, 1, 1), 255, np.uint8)], axis=2)
        half[5, 0, 3], fields = 0, WHITE
        data = saved(Image.fromarray(half), "PNG", icc_profile=icc)
    elif kind == "16 bits":
        iccp = next(p for p in _chunks(saved(Image.fromarray(pixels), "PNG", icc_profile=icc)) if p[0] == b"iCCP")
        data = png(pixels.astype(np.uint16) * 257, 16, RGB, iccp)
    elif kind == "palette":
        data = saved(Image.fromarray(pixels).quantize(8), "PNG", icc_profile=icc)
        pixels = pil(data)
    else:
        data = saved(Image.fromarray(pixels), "PNG", icc_profile=icc)
    found, stored, done = store(data, **fields)
    expected = shown_by_display(pixels, name, gamma)
    if kind == "RGBA":
        expected[5] = 255
    assert seen.CONVERTED in done and b"iCCP" not in stored
    assert np.abs(found - expected).max() <= 2.5
    if kind != "RGBA":
        assert np.array_equal(decode(data, 1 << 20), found)  # from a folder, too


def _chunks(data: bytes):
    at = 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        at += size + 12


def test_a_grey_profile():
    ramp = np.arange(256, dtype=np.uint8)[None]
    found, _, done = store(saved(Image.fromarray(ramp), "PNG", icc_profile=grey(1.8)))
    linear = (ramp / 255.0) ** (round(1.8 * 256) / 256)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert done == (seen.CONVERTED,) and np.abs(found - expected[..., None]).max() <= 2


@pytest.mark.parametrize("icc", [b"no profile", display("ProPhoto", 1.8)[:200], press(), grey(1.0), b"\0" * 3000])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_profile_that_cannot_be_used_is_passed_over(icc, kind):
    data = saved(SMOOTH, kind, icc_profile=icc)
    pixels, stored, done = store(data)
    assert stored == data and done == (seen.BROKEN,)
    np.testing.assert_array_equal(pixels, pil(data))


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"gAMA", struct.pack(">I", 100000))],
        [(b"gAMA", struct.pack(">I", 55556))],
        [(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))],
        [(b"cICP", b"\x09\x10\x00\x01")],
        [(b"cICP", b"\x0c\x0d\x00\x01"), (b"sRGB", b"\0")],
    ],
)
def test_colours_named_beside_the_pixels_are_asked_about(chunks):
    data = png(PIXELS, 8, RGB, *chunks)
    pixels, stored, done = store(data)
    assert stored == data and done == (seen.UNCONVERTED,) and np.array_equal(pixels, PIXELS)


def test_a_camera_that_says_adobe_rgb_in_exif_alone():
    tags = Image.Exif()
    tags.get_ifd(0x8769)[0xA005] = {1: "R03"}
    assert store(saved(SMOOTH, "JPEG", exif=tags.tobytes()))[2] == (seen.UNCONVERTED,)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG at its end", "MPO"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation(turn, kind):
    if kind == "MPO":
        data = saved(SMOOTH, "MPO", exif=exif(turn), save_all=True, append_images=[SMOOTH])
    elif kind == "PNG at its end":
        data = png(PIXELS, 8, RGB, late=[(b"eXIf", exif(turn)[6:])])
    else:
        data = saved(SMOOTH, kind, exif=exif(turn))
    lying, upright = pil(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    found = {how: store(data, orientation=how) for how in ("", "as_stored", "upright")}
    assert [done for _, _, done in found.values()] == (
        [()] * 3 if turn == 1 else [(seen.LYING,), (seen.TOLD_TO_LIE,), (seen.TURNED,)]
    )
    for how in ("", "as_stored"):
        assert found[how][1] == data and np.array_equal(found[how][0], lying)
    np.testing.assert_array_equal(found["upright"][0], upright)
    assert (found["upright"][1] == data) == (turn == 1)


@pytest.mark.parametrize("content", [b"", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"x"])
def test_damaged_exif_and_strange_orientations_turn_nothing(content):
    data = saved(SMOOTH, "JPEG", exif=b"Exif\0\0" + content)
    assert store(data, orientation="upright")[1] == data
    for strange in (0, 9, 65535):
        assert store(saved(SMOOTH, "JPEG", exif=exif(strange)), orientation="upright")[2] == ()


def animated() -> bytes:
    return saved(Image.fromarray(PIXELS), "PNG", save_all=True, append_images=[Image.fromarray(255 - PIXELS)])


frame = saved(SMOOTH, "JPEG")
at = frame.index(b"\xff\xc0")
REFUSED = {
    "nothing": (b"", r"cannot be decoded \(not a JPEG or PNG\)"),
    "GIF": (saved(SMOOTH, "GIF"), "not a JPEG or PNG"),
    "BMP": (saved(SMOOTH, "BMP"), "not a JPEG or PNG"),
    "TIFF": (saved(SMOOTH, "TIFF"), "not a JPEG or PNG"),
    "WebP": (saved(SMOOTH, "WEBP"), "not a JPEG or PNG"),
    "JPEG of 12 bits": (frame[: at + 4] + b"\x0c" + frame[at + 5 :], "a JPEG cut off or of a rare kind"),
    "PNG with a damaged profile chunk": (png(PIXELS, 8, RGB, (b"iCCP", b"xx")), "a PNG cut off or of a rare kind"),
    "truncated JPEG": (frame[: len(frame) * 2 // 3], "(?i)truncated"),
    "truncated PNG": (png(PIXELS, 8, RGB)[:-40], "cannot be decoded"),
    "head alone": (frame[:20], "cannot be decoded"),
    "wrong checksum": (png(PIXELS, 8, RGB)[:-20] + b"\0\0\0\0" + png(PIXELS, 8, RGB)[-16:], "cannot be decoded"),
    "animated": (animated(), "cannot be taken as it is: it is animated, of 2 frames: save the one that was seen"),
    "no pixel": (png(np.zeros((0, 3, 3)), 8, RGB), "cannot be decoded"),
    "60000 x 60000": (frame[: at + 5] + b"\xea\x60\xea\x60" + frame[at + 9 :], "cannot be decoded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_that_was_seen_is_refused_by_name(name, tmp_path):
    data, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence) as error:
        store(data)
    assert str(error.value).startswith("picture x.jpg ") and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="picture cannot be decoded"):
        load_picture(data, 8)
    (tmp_path / "a.png").write_bytes(data)
    for read in (_open_rgb, read_pixels, lambda path: load_pictures([path], 8)):
        with pytest.raises(ValueError, match="picture .*a.png cannot be read"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["16 bits", "CMYK", "profile", "key"])
def test_every_reader_of_files_sees_the_same(name, tmp_path):
    data = {
        "16 bits": png(DEEP[..., 0], 16, GREY),
        "CMYK": saved(SMOOTH.convert("CMYK"), "JPEG"),
        "profile": saved(SMOOTH, "PNG", icc_profile=display("ProPhoto", 1.8)),
        "key": png(PIXELS * 0, 8, RGB, (b"tRNS", b"\0\1\0\1\0\1")),
    }[name]
    pixels, stored, _ = store(data)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_pixels(path), pixels)
    np.testing.assert_array_equal(np.asarray(_open_rgb(path)), pixels)
    np.testing.assert_array_equal(load_pictures([path], 6)[0].numpy(), load_picture(stored, 6).numpy())


def numbers(depth: int, n: int):
    shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(n))
    return arrays(np.uint16, shapes, elements=st.integers(0, 2**depth - 1) | st.sampled_from([0, 2**depth - 1]))


@given(st.data())
def test_any_png_is_stored_as_its_definition_says(data):
    """Any type, depth and size, with alpha or a key, interlaced or not, on any background: by the numbers alone."""
    kind, depths, n = data.draw(
        st.sampled_from([(GREY, (1, 2, 4, 8, 16), 1), (RGB, (8, 16), 3), (LA, (8, 16), 2), (RGBA, (8, 16), 4)])
    )
    depth = data.draw(st.sampled_from(depths))
    values = data.draw(numbers(depth, n))
    most, chunks = 2**depth - 1, []
    eight = np.rint(values * (255.0 / most))
    share = eight[..., -1] if n in (2, 4) else np.full(values.shape[:2], 255.0)
    if n in (1, 3) and data.draw(st.booleans()):
        hidden = values[0, 0]
        chunks = [(b"tRNS", hidden.astype(">u2").tobytes())]
        share = np.where((values == hidden).all(axis=2), 0.0, 255.0)
    background = data.draw(st.tuples(*[st.integers(0, 255)] * 3))
    file = png(values, depth, kind, *chunks, interlaced=data.draw(st.booleans()))
    colours = eight[..., :3] if n > 2 else np.repeat(eight[..., :1], 3, axis=2)
    found, stored, done = store(file, background="#" + bytes(background).hex())
    np.testing.assert_array_equal(found, over(colours, share, background))
    assert (seen.LAID in done) == bool((share < 255).any()) and (stored == file) == (not done)


def test_a_picture_stored_anew_must_be_one_that_is_read(monkeypatch):
    small = saved(Image.fromarray(RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)).convert("CMYK"), "JPEG", quality=1)
    monkeypatch.setattr(packing, "MAX_PICTURE_BYTES", len(small))
    with pytest.raises(ValueError, match="x.jpg has to be stored anew, and is too large for that: give picture_size="):
        store(small)
    store(small, picture_size=4)


@pytest.mark.parametrize("quality", [0, 95])
def test_resized_pictures_are_as_seen(quality):
    values = np.zeros((40, 60, 4), np.uint8)
    values[:, :30] = 9, 200, 40, 255  # the right half is transparent, and hides red
    values[:, 30:] = 255, 0, 0, 0
    found, _, done = store(png(values, 8, RGBA), picture_size=20, picture_quality=quality, **WHITE)
    assert found.shape == (20, 30, 3) and done == (seen.LAID,)
    assert np.abs(found[:, 2:12].astype(int) - [9, 200, 40]).max() < 6 and found[:, 18:].min() > 249
    entry = png(np.tile([0, 1], (40, 20)), 8, PALETTE, palette, (b"tRNS", b"\xff\xff\xff\0"))  # none is transparent
    found, stored, done = store(entry, picture_size=20, picture_quality=quality)
    assert done == () and b"tRNS" not in stored


# A study


def odd_study(folder, transparent: bool):
    """Pictures 0 to 6 of a study, in the order of their names, are odd ones."""
    write_study(folder)
    paths = sorted((folder / "images").rglob("*.JPEG"))
    contents = [
        phone(),
        saved(SMOOTH, "JPEG", exif=exif(6)),
        saved(SMOOTH.rotate(1), "JPEG", exif=exif(3)),
        saved(SMOOTH.convert("CMYK"), "JPEG"),
        png(DEEP, 16, RGB),
        saved(SMOOTH, "JPEG", icc_profile=display("Adobe RGB", 2.2)),
        *([png(np.dstack([PIXELS, alpha]), 8, RGBA)] if transparent else []),
    ]
    for path, content in zip(paths, contents, strict=False):
        path.write_bytes(content)
    paths[4] = paths[4].rename(paths[4].with_suffix(".PNG"))
    return paths


def typed(folder, **more):
    given = {"eeg": folder / "eeg.pth", "images": folder / "images", "splits_file": folder / "splits.pth", "n_chans": 4}
    return [f"{name}={value}" for name, value in (given | more).items()]


def pack(folder, out, **more):
    assert main(["shards", *typed(folder, out=folder / out, **more)]) == 0
    return read_manifest(folder / out)


def test_check_asks_and_the_manifest_notes(tmp_path, capsys):
    paths = odd_study(tmp_path, transparent=True)
    names = [path.stem for path in paths]
    assert main(["check", *typed(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"picture {paths[6]} cannot be taken as it is: it is transparent" in said and "1 fault in" in said
    assert main(["shards", *typed(tmp_path, out=tmp_path / "out")]) == 2
    assert f"error: picture {paths[6]} cannot be taken" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()

    assert main(["check", *typed(tmp_path, background="white")]) == 0
    said = capsys.readouterr().out
    noted = {
        seen.LYING: f"2 pictures {seen.LYING}, e.g. {names[1]}",
        seen.CMYK: f"1 picture {seen.CMYK}, e.g. {names[3]}",
        seen.CONVERTED: f"1 picture {seen.CONVERTED}, e.g. {names[5]}",
    }
    for what, sentence in noted.items():
        assert f"{sentence}: {seen.OPEN[what]}" in said
    noted[seen.ROUNDED] = f"1 picture {seen.ROUNDED}, e.g. {names[4]}"
    noted[seen.LAID] = f"1 picture {seen.LAID}, e.g. {names[6]}"
    assert f"+ {noted[seen.ROUNDED]}" in said and f"+ {noted[seen.LAID]}" in said

    manifest = pack(tmp_path, "out", background="white", shard_size=8, processes=1)
    assert set(noted.values()) <= set(manifest.notes)
    sources = {path.stem: path.read_bytes() for path in paths}
    for split in ("train", "val", "test"):
        trials = ShardSplit(tmp_path / "out", split)
        for i in range(len(trials)):
            name = trials.info(i)["image"]
            assert (trials.picture(i) == sources[name]) == (name not in names[3:7])
    capsys.readouterr()
    assert main(["check", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"{noted[seen.LYING]}: {seen.OPEN[seen.LYING]}" in said  # that is still open
    assert f"note: {noted[seen.CMYK]}" in said and f"{noted[seen.CMYK]}: " not in said


def test_fields_that_change_nothing_are_noted(tmp_path):
    write_study(tmp_path)
    told, plain = pack(tmp_path, "told", background="grey", orientation="upright"), pack(tmp_path, "plain")
    assert [note for note in told.notes if note not in plain.notes] == [
        "background=grey changed nothing: no picture is transparent",
        "orientation=upright changed nothing: no picture has an EXIF orientation",
    ]
    assert told.splits == plain.splits


@pytest.mark.parametrize("orientation, said", [("as_stored", seen.TOLD_TO_LIE), ("upright", seen.TURNED)])
def test_a_decided_orientation_is_no_question(tmp_path, capsys, orientation, said):
    odd_study(tmp_path, transparent=False)
    assert main(["check", *typed(tmp_path, orientation=orientation)]) == 0
    assert seen.LYING not in (shown := capsys.readouterr().out) and f"+ 2 pictures {said}" in shown
    assert any(note.startswith(f"2 pictures {said}") for note in pack(tmp_path, "out", orientation=orientation).notes)
    assert main(["check", str(tmp_path / "out")]) == 0
    assert seen.LYING not in capsys.readouterr().out


def test_shards_made_before_these_fields_are_complete(tmp_path, capsys):
    write_study(tmp_path)
    pack(tmp_path, "out")
    path = tmp_path / "out/manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["config"]["background"], content["config"]["orientation"]
    path.write_text(json.dumps(content), encoding="utf-8")
    pack(tmp_path, "out")
    assert "was made by this very command: nothing to do" in capsys.readouterr().out
    assert main(["shards", *typed(tmp_path, out=tmp_path / "out", background="white")]) == 2
    assert "was made with background=:" in capsys.readouterr().err
