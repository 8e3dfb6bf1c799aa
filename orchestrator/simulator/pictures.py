"""Pictures one can look at: the prompt, large, on a colour that comes from the seed."""

import io
import struct
import textwrap
import zlib
from collections import OrderedDict
from colorsys import hls_to_rgb
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from orchestrator.simulator.outputs import Drawing

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SAVE: dict[str, tuple[str, dict[str, int]]] = {
    "png": ("PNG", {"compress_level": 1}),
    "jpg": ("JPEG", {"quality": 70}),
    "webp": ("WEBP", {"lossless": True, "quality": 0, "method": 0}),
}


class Album:
    """Draws pictures on demand and keeps the last few."""

    def __init__(self, *, keep: int = 64) -> None:
        """Keep at most `keep` pictures, a few kilobytes each."""
        self._keep = keep
        self._pictures: OrderedDict[Drawing, bytes] = OrderedDict()

    def picture(self, drawing: Drawing) -> bytes:
        """Return the encoded picture."""
        known = self._pictures.get(drawing)
        if known is None:
            known = self._pictures[drawing] = draw(drawing)
            if len(self._pictures) > self._keep:
                self._pictures.popitem(last=False)
        else:
            self._pictures.move_to_end(drawing)
        return known


def draw(drawing: Drawing) -> bytes:
    """Return a picture as bytes of the format its extension names; palette images, because they encode fast."""
    image = Image.new("P", (drawing.width, drawing.height), 0)
    image.putpalette(_palette(drawing.seed))
    pen = ImageDraw.Draw(image)
    pen.fontmode = "1"
    size, text = _fitted(drawing.words, width=drawing.width - 48, height=drawing.height - 80)
    pen.multiline_text((24, 24), text, fill=1, font=_font(size), spacing=size // 4)
    pen.text((24, drawing.height - 30), drawing.caption, fill=2, font=_font(14))
    return _encoded(image, drawing.extension)


def padded(extension: str, size: int, *, mark: str) -> bytes:
    """Return a valid small image of exactly `size` bytes (or the smallest there is), different per `mark`."""
    image = _small(extension)
    room = size - len(image)
    if extension == "png" and room >= 12:
        body = mark.encode()[: room - 12].ljust(room - 12, b"\0")
        chunk = struct.pack(">I", room - 12) + b"paDd" + body + struct.pack(">I", zlib.crc32(b"paDd" + body))
        return image[:-12] + chunk + image[-12:]
    if extension == "webp" and room >= 8:
        body = mark.encode()[: room - 8].ljust(room - 8, b"\0")
        length = struct.pack("<I", size - 8)
        return image[:4] + length + image[8:] + b"PADD" + struct.pack("<I", room - 8) + body
    return image + mark.encode()[: max(0, room)].ljust(max(0, room), b"\0")


@lru_cache(maxsize=8)
def _small(extension: str) -> bytes:
    return _encoded(Image.new("P", (8, 8), 0), extension)


def _encoded(image: Image.Image, extension: str) -> bytes:
    name, options = SAVE[extension]
    target = io.BytesIO()
    (image if extension == "png" else image.convert("RGB")).save(target, name, **options)
    return target.getvalue()


def _palette(seed: int) -> list[int]:
    """Return background, ink and pencil as RGB; the golden angle keeps neighbouring seeds apart."""
    hue = seed * 0.61803398875 % 1.0
    colours = (hls_to_rgb(hue, 0.30, 0.55), hls_to_rgb(hue, 0.94, 0.8), hls_to_rgb(hue, 0.70, 0.5))
    return [round(part * 255) for colour in colours for part in colour]


def _fitted(words: str, *, width: int, height: int) -> tuple[int, str]:
    """Return the largest of a few sizes at which the words fit the box, and the words broken into lines."""
    for size in (64, 48, 36, 26, 18):
        lines = textwrap.wrap(words, max(4, int(width / (size * 0.56))))
        if len(lines) * size * 1.45 <= height:
            break
    return size, "\n".join(lines[: max(1, int(height / (size * 1.45)))])


@lru_cache(maxsize=16)
def _font(size: int) -> Font:
    return ImageFont.load_default(size)
