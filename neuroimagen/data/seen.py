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
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageColor

from neuroimagen.data.shard_files import MAX_PICTURE_PIXELS

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}  # MPO: JPEG whose first picture any viewer shows
T = Image.Transpose
UPRIGHT = (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90)
SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # as in PNG's cHRM
SAME_COLOUR = 2  # of 255: what profiles that are all called sRGB differ by

# What was done -> what that leaves open, for a reviewer to ask.
LAID, TURNED, ROUNDED = "laid on the background", "turned upright by their EXIF orientation", "of 16 bits rounded to 8"
TOLD_TO_LIE = "with an EXIF orientation, as they lie (orientation=as_stored)"
LYING = "with an EXIF orientation, taken as they lie"
CONVERTED = "converted from their colour profile to sRGB"
BROKEN = "whose colour profile is damaged or of another kind of picture, taken without it"
CMYK = "in CMYK without a profile, turned into RGB by a rule of thumb"
UNCONVERTED = "that name colours other than sRGB's (gAMA, cHRM, cICP or EXIF) without a profile, taken as sRGB"
OPEN = {
    LAID: "",
    TURNED: "",
    ROUNDED: "",
    TOLD_TO_LIE: "",
    LYING: "browsers and viewers turn them, PsychoPy and PIL do not: give orientation=upright or orientation=as_stored",
    CONVERTED: "browsers and viewers do that, PsychoPy and PIL do not: if one of these showed them, save them without",
    BROKEN: "which colours were seen? Save them anew as sRGB",
    CMYK: "which colours were seen? Save them anew as sRGB",
    UNCONVERTED: "which colours were seen? Save them anew as sRGB",
}


TRANSPARENT = (
    "it is transparent: tell neuroimagen shards the colour that was behind it (background=white, grey, black or "
    "'#rrggbb'), or save it on that colour"
)


class Unclear(ValueError):
    """The file alone does not say what was seen; the sentence has the remedy."""


class Seen(NamedTuple):
    """image: mode RGB or L where it is not `kept`; else as PIL reads it. done: keys of OPEN."""

    image: Image.Image
    extension: str  # of the file: jpg or png
    kept: bool
    done: tuple[str, ...]


def colour(background: str) -> tuple[int, ...]:
    """R, G, B; ValueError if it is no colour."""
    try:
        found = ImageColor.getrgb(background)
    except ValueError:
        found = ()
    if len(found) != 3:
        raise ValueError(f"background={background} is no colour: give white, grey, black or '#rrggbb'")
    return found


def described(done: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """(what was done to how many pictures, what that leaves open), of image -> keys of OPEN."""
    of = {what: [image for image, said in done.items() if what in said] for what in OPEN}
    return [(f"{len(i)} picture{'s' * (len(i) > 1)} {what}, e.g. {i[0]}", OPEN[what]) for what, i in of.items() if i]


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
        raise ValueError(
            "not a JPEG or PNG" if data[:3] != b"\xff\xd8\xff" else "a kind of JPEG not read here"
        ) from None
    except Exception as error:  # a damaged picture can raise anything
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
    image, alpha = _sixteen_bits(picture, data) if done else _eight_bits(picture, data)
    turn, adobe = _exif(picture)
    image, said = _in_srgb(image, profile)
    if said:
        done.append(said)
    elif profile == b"" and (adobe or (png and _other_colours(picture, data))):
        done.append(UNCONVERTED)
    if alpha and alpha.getextrema()[0] != 255:
        if not background:
            raise Unclear(TRANSPARENT)
        image = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, colour(background)), alpha)
        done.append(LAID)
    if turn:
        done.append({"upright": TURNED, "as_stored": TOLD_TO_LIE}.get(orientation, LYING))
        image = image.transpose(UPRIGHT[turn - 2]) if orientation == "upright" else image
    kept = not {LAID, TURNED, ROUNDED, CONVERTED, CMYK} & set(done)
    for name in ("transparency",) if kept else tuple(image.info):
        image.info.pop(name, None)  # or it would be written beside pixels for which it is no longer true
    return Seen(image, FORMATS[str(picture.format)], kept, tuple(done))


def _eight_bits(picture: Image.Image, data: bytes) -> tuple[Image.Image, Image.Image | None]:
    """Colours, of mode L, RGB or CMYK, and alpha if there is any; what is transparent keeps its hidden colour."""
    picture.load()
    key = picture.info.get("transparency")  # the colour (of a palette the entries) that is transparent
    if picture.mode in ("LA", "RGBA", "P") and not (picture.mode == "P" and key is None):
        image = picture.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    image = picture if picture.mode in ("L", "RGB", "CMYK") else picture.convert("L" if picture.mode == "1" else "RGB")
    if key is None:
        return image, None
    if image.mode == "L":
        most = (1 << data[24]) - 1  # the key counts in the 1, 2, 4 or 8 bits of the file; newer PILs change it
        key = key if key > most else key * (255 // most)
    return image, Image.fromarray(np.uint8(255) * (np.atleast_3d(np.asarray(image)) != key).any(axis=2))


def _sixteen_bits(picture: Image.Image, data: bytes) -> tuple[Image.Image, Image.Image | None]:
    """As `_eight_bits`, rounded; PIL itself cuts grey off at 255, and drops the lower bits of colours."""

    def load(layout: str) -> np.ndarray:
        again = Image.open(io.BytesIO(data), formats=["PNG"])
        again.tile = [again.tile[0]._replace(args=layout)]  # type: ignore[attr-defined]
        return np.atleast_3d(np.asarray(again)).astype(np.uint16)

    layout = picture.tile[0].args  # type: ignore[attr-defined]
    if layout == "I;16B":
        values = load(layout)
    elif layout == "LA;16B":  # its four bytes are as those of RGBA of 8 bits
        four = load("RGBA")
        values = four[..., ::2] * 256 + four[..., 1::2]
    else:  # the upper bytes, and as if they were in the other order the lower ones
        values = load(layout) * 256 + load(f"{layout[:-1]}L")
    eight = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    n, key = eight.shape[2], picture.info.get("transparency")
    image = Image.fromarray(eight[..., :3] if n > 2 else eight[..., 0])
    if n in (2, 4):
        return image, Image.fromarray(eight[..., -1])
    return image, None if key is None else Image.fromarray(np.uint8(255) * (values != key).any(axis=2))


def _exif(picture: Image.Image) -> tuple[int, bool]:
    """Orientation 2 to 8, or 0 if there is nothing to turn; and whether a camera says Adobe RGB, without a profile."""
    found = [0, ""]
    with contextlib.suppress(Exception):  # damaged EXIF, which viewers pass over
        exif = picture.getexif()
        found[0] = exif.get(ExifTags.Base.Orientation, 0)
        found[1] = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex, "")
    return found[0] if found[0] in range(2, 9) else 0, found[1] == "R03"


@functools.lru_cache(maxsize=64)
def _to_srgb(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile is for, and what turns it into sRGB; None if it is sRGB. Raises what PIL raises."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
    how, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", how, flags)
    if mode != "CMYK":
        levels = np.arange(0, 256, 15, np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, len(levels), 3)
        grid = grid if mode == "RGB" else np.arange(256, dtype=np.uint8)[None, :, None]
        found = np.asarray(
            ImageCms.applyTransform(Image.fromarray(grid.squeeze(2) if mode == "L" else grid), transform)
        )
        if np.abs(found.astype(int) - grid).max() <= SAME_COLOUR:
            return mode, None
    return mode, transform


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """In L or RGB, and what that took (a key of OPEN) or "". profile: empty if there is none, None if it is damaged."""
    with contextlib.suppress(Exception):  # of a damaged profile
        mode, transform = _to_srgb(profile or b"")
        grey = mode == "RGB" and image.mode == "L"  # whose profile is often that of colours
        if (grey or mode == image.mode) and transform:
            return ImageCms.applyTransform(image.convert(mode), transform), CONVERTED
        if grey or mode == image.mode:
            return image, ""
    if image.mode == "CMYK":
        return image.convert("RGB"), CMYK
    return image, "" if profile == b"" else BROKEN


def _other_colours(picture: Image.Image, data: bytes) -> bool:
    """Whether a PNG without a profile says that its numbers are not sRGB."""
    cicp = data.find(b"cICP", 0, data.find(b"IDAT"))
    if cicp >= 0:
        return data[cicp + 4 : cicp + 6] != b"\x01\x0d"  # BT.709's primaries and sRGB's curve
    if "srgb" in picture.info:
        return False
    said = [picture.info.get("gamma", 1 / 2.2), *picture.info.get("chromaticity", SRGB_PRIMARIES)]
    return bool(np.abs(np.subtract(said, [1 / 2.2, *SRGB_PRIMARIES])).max() > 0.01)
