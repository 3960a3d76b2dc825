"""Which files are read as images, and as which pixels."""

from __future__ import annotations

import os
import re
import unicodedata
from functools import cache
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

RULES = 2
"""Counts the changes of which pixels an image has: with other ones a run does not go on."""

HIDDEN = "a hidden file, or a leftover of an archive or a file system"
NO_IMAGE = "no image that Pillow reads, by its extension"
_NO_LETTERS = frozenset(("Cc", "Zl", "Zp"))  # Unicode's categories of what ends lines, or steers
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LEFTOVERS = frozenset(("__MACOSX", "@eaDir", "@LongLink"))

# EPS would be run by Ghostscript as a program; of MPEG there is only the size.
_NEVER = frozenset(("EPS", "MPEG"))
_SIXTEEN_BITS = frozenset(("PPM", "PNG"))  # the formats of which Pillow's 32 bits are filled to 16

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@cache
def readable_formats() -> tuple[str, ...]:
    """Return the formats of files that Pillow decodes by itself."""
    Image.init()
    factories: dict[str, Any] = {name: factory for name, (factory, _) in Image.OPEN.items()}
    return tuple(
        name
        for name, factory in factories.items()
        if name not in _NEVER
        and not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))
    )


@cache
def image_extensions() -> frozenset[str]:
    """Return the extensions of the readable formats, each with its dot, in lower case."""
    formats = {*readable_formats(), "MPO"}  # opened as JPEG
    return frozenset(
        extension for extension, name in Image.registered_extensions().items() if name in formats
    )


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name, without folders, is not looked at.

    Its name begins with a dot, or it is what macOS, a NAS or an unpacked tar leaves behind.
    """
    return name.startswith((".", "PaxHeader")) or name in _LEFTOVERS


def reason_to_leave_out(name: str) -> str | None:
    """Return why a file, given with its folders, is not read; None for an image by its name."""
    if any(is_hidden(each) for each in name.split("/") if each != "."):
        return HIDDEN
    return None if os.path.splitext(name)[1].lower() in image_extensions() else NO_IMAGE


def natural_key(name: str) -> list[str | int]:
    """Return what sorts names by the numbers in them, whatever their case: `a2` before `A10`."""
    parts: list[str | int] = [*re.split(r"(\d{1,4000})", name.lower())]  # int() takes 4,300 digits
    parts[1::2] = map(int, parts[1::2])
    return parts


def name_order(name: str) -> tuple[list[str | int], str]:
    """Return the key of the one order of names: natural, and names that are alike by themselves."""
    return natural_key(name), name


def printable(name: str) -> str:
    """Return a file's name in one line, for people.

    Bytes that are no UTF-8, and characters that end a line, steer a terminal or turn the direction
    of writing, are shown by their numbers.
    """
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        repr(each)[1:-1] if unicodedata.category(each) in _NO_LETTERS or each in _TURNING else each
        for each in shown
    )


def decoded(file: IO[bytes]) -> Image.Image:
    """Return the image in a file as RGB; raises anything if it is damaged, or no image."""
    try:
        image = Image.open(file, formats=readable_formats())
    except UnidentifiedImageError:  # which names an object in memory
        raise UnidentifiedImageError("its bytes are no image that Pillow reads") from None
    return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Return the first frame of an image as RGB, upright: turned as its EXIF orientation says.

    Grey values of 16 bits become `value >> 8`. Of what is transparent the colours are taken that
    the file holds, as in torchvision and timm, since no file says what lies behind; colour
    profiles are not applied. Raises `ValueError` for integers of 32 bits and floating-point
    numbers: which of them is white can't be known.
    """
    image.load()
    filled_to_16 = image.mode == "I" and image.format in _SIXTEEN_BITS
    image = _upright(image)
    if image.mode.startswith("I;16") or filled_to_16:
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"pixels of 32 bits (mode {image.mode}) don't say which value is white: "
            "save it with 8 or 16 bits"
        )
    image.info.pop("transparency", None)  # else Pillow looks for a colour that stands for it
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned and mirrored as its EXIF orientation says, if that can be read."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # odd metadata is no damage
        return image
    return image if turn is None else image.transpose(turn)
