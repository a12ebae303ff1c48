"""A picture as the person saw it: the one place that decodes the pictures of a study.

What a file shows can differ from its numbers: a colour profile, 16 bits, CMYK, transparency, an EXIF orientation. `see`
gives 8 bits of sRGB, and says what it did for that and what the file leaves open. Where `kept`, the file's own bytes
give just these pixels to every reader; any other picture has to be stored anew.
"""

import contextlib
import functools
import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageColor

from neuroimagen.files import pass_on
from neuroimagen.shards.format import MAX_PICTURE_PIXELS

SUFFIXES = (".jpeg", ".jpg", ".png")  # of the files that are taken for pictures
FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}  # MPO: a JPEG of several pictures, the first of which is shown
T = Image.Transpose
UPRIGHT = (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90)
SRGB = np.array([1 / 2.2, 0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06])  # as PNG's gAMA and cHRM say it
SAME_COLOUR = 2  # of 255: what profiles that are all called sRGB differ by

# What was done to a picture, and what that leaves open for a reviewer to ask.
LAID, TURNED, ROUNDED = "laid on the background", "turned upright by their EXIF orientation", "of 16 bits rounded to 8"
TOLD_TO_LIE = "with an EXIF orientation, as they lie (orientation=as_stored)"
LYING = "with an EXIF orientation, taken as they lie"
CONVERTED = "converted from their colour profile to sRGB"
BROKEN = "whose colour profile is damaged or of another kind of picture, taken without it"
CMYK = "in CMYK without a profile, turned into RGB by a rule of thumb"
UNCONVERTED = "that name colours other than sRGB's (gAMA, cHRM, cICP or EXIF) without a profile, taken as sRGB"
OPEN = dict.fromkeys((BROKEN, CMYK, UNCONVERTED), "which colours were seen? Save them anew as sRGB") | {
    LYING: "browsers and viewers turn them, PsychoPy and PIL do not: give orientation=upright or orientation=as_stored",
    CONVERTED: "browsers and viewers do that, PsychoPy and PIL do not: if one of these showed them, save them without",
}


def list_pictures(folder: str | Path) -> list[Path]:
    """All pictures below `folder`, sorted; ValueError if there are none."""
    found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"no JPEG or PNG pictures below {folder}")
    return found


class Unclear(ValueError):
    """The file alone does not say what was seen; the sentence has the remedy."""


class Seen(NamedTuple):
    image: Image.Image  # RGB or L
    extension: str  # of the file: jpg or png
    kept: bool
    done: tuple[str, ...]  # LAID ...


def colour(background: str) -> tuple[int, ...]:
    """R, G, B; ValueError if it is no colour."""
    with contextlib.suppress(ValueError):
        if len(found := ImageColor.getrgb(background)) == 3:
            return found
    raise ValueError(f"background={background} is no colour: give white, grey, black or '#rrggbb'")


def described(done: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """(what was done to how many pictures, what that leaves open or ""), of image -> `done`."""
    found = [(what, image) for image in sorted(done) for what in done[image]]
    images = {what: [image for w, image in found if w == what] for what, _ in sorted(found)}
    return [(f"{len(i)} picture{'s' * (len(i) > 1)} {w}, e.g. {i[0]}", OPEN.get(w, "")) for w, i in images.items()]


def fraction(width: int, height: int, least: int) -> int:
    """8, 4, 2 or 1: at which part of its size a JPEG is decoded to leave at least 2 x `least` pixels each way."""
    return max(k for k in (1, 2, 4, 8) if k == 1 or min(width, height) // (2 * least) >= k)


def see(data: bytes, background: str = "", orientation: str = "", least: int = 0) -> Seen:
    """Decode a JPEG or PNG whole. ValueError: what is wrong with it; Unclear: why it cannot be known what was seen.

    background: the colour behind what is transparent. orientation: "upright" turns as EXIF says; "as_stored" and ""
    leave it. least: what is wanted of it is so small that a JPEG may be decoded at a `fraction`; 0: whole.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's; of decompression bombs, our own limit is lower
            return _see(data, background, orientation, least)
    except Unclear:
        raise
    except Image.UnidentifiedImageError:
        name = {b"\xff\xd8": "JPEG", b"\x89P": "PNG"}.get(data[:2])
        raise ValueError(f"a {name} cut off or of a rare kind" if name else "not a JPEG or PNG") from None
    except Exception as error:  # a damaged picture can raise anything
        pass_on(error)
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None


def _see(data: bytes, background: str, orientation: str, least: int) -> Seen:
    picture = Image.open(io.BytesIO(data), formats=["JPEG", "PNG"])
    width, height = picture.size
    if width * height > MAX_PICTURE_PIXELS:
        raise ValueError(f"it claims {width} x {height} pixels, more than {MAX_PICTURE_PIXELS:,} in all")
    png, profile = picture.format == "PNG", picture.info.get("icc_profile", b"")
    if png and (frames := getattr(picture, "n_frames", 1)) > 1:
        raise Unclear(f"it is animated, of {frames} frames: save the one that was seen as a picture of its own")
    if least:
        k = fraction(width, height, least)
        picture.draft("RGB", (width // k, height // k))
    done = [ROUNDED] if png and data[24] == 16 else []
    image, alpha = _colours(picture, data)
    turn, adobe = _exif(picture)
    image, said = _in_srgb(image, profile)
    if said:
        done.append(said)
    elif profile == b"" and (adobe or (png and _other_colours(picture, data))):
        done.append(UNCONVERTED)
    if alpha is not None and alpha.getextrema()[0] != 255:
        if not background:
            raise Unclear(
                "it is transparent: tell neuroimagen shards the colour that was behind it (background=white, grey, "
                "black or '#rrggbb'), or save it on that colour"
            )
        image = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, colour(background)), alpha)
        done.append(LAID)
    if turn:
        done.append({"upright": TURNED, "as_stored": TOLD_TO_LIE}.get(orientation, LYING))
        image = image.transpose(UPRIGHT[turn - 2]) if orientation == "upright" else image
    kept = not {LAID, TURNED, ROUNDED, CONVERTED, CMYK} & set(done)
    for name in ("transparency",) if kept else tuple(image.info):
        image.info.pop(name, None)  # or it would be written beside pixels for which it is no longer true
    return Seen(image, FORMATS[str(picture.format)], kept, tuple(done))


def _colours(picture: Image.Image, data: bytes) -> tuple[Image.Image, Image.Image | None]:
    """8 bits of L, RGB or CMYK, also where they are hidden; and the alpha channel, if there is one."""
    key = picture.info.get("transparency")  # the colour (of a palette the entries) that is transparent
    most = (1 << data[24]) - 1 if picture.format == "PNG" else 255
    values, image = None, picture
    if most == 65535:  # PIL itself cuts grey off at 255, and drops the lower bits of colours
        values = _sixteen_bits(picture.tile[0].args, data)  # type: ignore[attr-defined]
        eight = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        image = Image.fromarray(eight if eight.shape[2] > 1 else eight[..., 0])
    image.load()
    if image.mode in ("LA", "RGBA") or (image.mode == "P" and key is not None):
        return image.convert("RGB"), image.convert("RGBA").getchannel("A")
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if key is None:
        return image, None
    key = np.bitwise_and(key, most)  # PNG: bits above the picture's depth do not count
    if values is None and image.mode == "L":  # of 1 bit PIL 12 has made 255 of 1 itself, which is 1 again now
        key *= 255 // most
    values = np.atleast_3d(np.asarray(image)) if values is None else values
    return image, Image.fromarray(np.uint8(255) * (values != key).any(axis=2))


def _sixteen_bits(layout: str, data: bytes) -> np.ndarray:
    """The values (height, width, channels) of a PNG of 16 bits, which PIL unpacks by `layout`."""

    def load(layout: str) -> np.ndarray:
        picture = Image.open(io.BytesIO(data), formats=["PNG"])
        picture.tile = [picture.tile[0]._replace(args=layout)]  # type: ignore[attr-defined]
        return np.atleast_3d(np.asarray(picture)).astype(np.uint16)

    if layout == "I;16B":
        return load(layout)
    if layout == "LA;16B":  # its four bytes are as those of RGBA of 8 bits
        four = load("RGBA")
        return four[..., ::2] * 256 + four[..., 1::2]
    return load(layout) * 256 + load(f"{layout[:-1]}L")  # the upper bytes; read in the other order, the lower ones


def _exif(picture: Image.Image) -> tuple[int, bool]:
    """Orientation 2 to 8, or 0 if there is nothing to turn; and whether a camera says Adobe RGB, without a profile."""
    turn, colours = 0, ""
    with contextlib.suppress(Exception):  # damaged EXIF, which viewers pass over
        exif = picture.getexif()
        turn = int(exif.get(ExifTags.Base.Orientation, 0))
        colours = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex, "")
    return turn if 2 <= turn <= 8 else 0, colours == "R03"


@functools.lru_cache(maxsize=64)
def _to_srgb(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile is for, and what turns it into sRGB; None if it is sRGB. Raises what PIL raises."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
    how, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", how, flags)
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(-1, 18, 3)
    some = Image.fromarray(grid).convert(mode)
    change = np.asarray(ImageCms.applyTransform(some, transform)).astype(int) - np.asarray(some.convert("RGB"))
    return mode, transform if mode == "CMYK" or np.abs(change).max() > SAME_COLOUR else None


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """In L or RGB, and what that took (CONVERTED ...) or "". profile: empty if there is none, None if it is damaged."""
    with contextlib.suppress(Exception):  # of a damaged profile
        mode, transform = _to_srgb(profile or b"")
        if mode == image.mode or (mode, image.mode) == ("RGB", "L"):  # grey often carries a profile of colours
            done = ImageCms.applyTransform(image.convert(mode), transform) if transform else None
            return (done, CONVERTED) if done else (image, "")
    if image.mode == "CMYK":
        return image.convert("RGB"), CMYK
    return image, "" if profile == b"" else BROKEN


def _other_colours(picture: Image.Image, data: bytes) -> bool:
    """Whether a PNG without a profile says that its numbers are not sRGB."""
    cicp = data.find(b"cICP", 0, data.find(b"IDAT"))
    if cicp >= 0:
        return data[cicp + 4 : cicp + 6] != b"\x01\x0d"  # BT.709's primaries and sRGB's curve
    said = [picture.info.get("gamma", SRGB[0]), *picture.info.get("chromaticity", SRGB[1:])]
    return "srgb" not in picture.info and bool(np.abs(said - SRGB).max() > 0.01)
