"""Which files are images, and their pixels against values worked out by hand."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pareco.data.pixels import (
    HIDDEN,
    NO_IMAGE,
    as_rgb,
    decoded,
    image_extensions,
    name_order,
    natural_key,
    printable,
    readable_formats,
    reason_to_leave_out,
)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def pixels(file: io.BytesIO) -> list[list[tuple[int, ...]]]:
    """Return the rows of a file's pixels, as they are decoded."""
    image = decoded(file)
    assert image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


def image(mode: str, *values: Any) -> Image.Image:
    """Return an image of one row."""
    made = Image.new(mode, (len(values), 1))
    made.putdata(values)
    return made


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    """Return an image of one row, with a palette, that shows each of its colours in turn."""
    made = image("P", *range(len(colours)))
    made.putpalette([value for colour in colours for value in colour])
    return made


RED, BLUE = (200, 10, 30), (1, 2, 250)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (file_of(image("RGB", RED, BLUE)), [RED, BLUE]),
        (file_of(image("L", 0, 77, 255)), [(0,) * 3, (77,) * 3, (255,) * 3]),
        (file_of(image("1", 0, 255)), [(0,) * 3, (255,) * 3]),
        (file_of(palette(BLUE, RED)), [BLUE, RED]),
        # Colours are those of the file, whatever is transparent.
        (file_of(image("LA", (77, 0), (200, 128))), [(77,) * 3, (200,) * 3]),
        (file_of(image("RGBA", (*RED, 0), (*BLUE, 128), (*RED, 255))), [RED, BLUE, RED]),
        (file_of(palette(BLUE, RED), transparency=0), [BLUE, RED]),
        (file_of(palette(BLUE, RED), transparency=b"\x00\x80"), [BLUE, RED]),
        (file_of(image("L", 0, 77), transparency=77), [(0,) * 3, (77,) * 3]),
        # (255 - ink) * (255 - black) / 255
        (
            file_of(image("CMYK", (0, 255, 100, 0), (0, 0, 0, 200), (51, 0, 0, 155)), "TIFF"),
            [(255, 0, 155), (55,) * 3, (80, 100, 100)],
        ),
        # value >> 8
        (
            file_of(image("I;16", 0, 255, 256, 0x1234, 32_768, 65_535)),
            [(each,) * 3 for each in (0, 0, 1, 0x12, 128, 255)],
        ),
        (file_of(image("I;16", 0x1234, 65_535), "TIFF"), [(0x12,) * 3, (255,) * 3]),
        (file_of(image("I;16", 0x1234, 65_535), "JPEG2000"), [(0x12,) * 3, (255,) * 3]),
        # A PGM of 16 bits by hand, which Pillow opens as 32 bits.
        (io.BytesIO(b"P5 2 1 65535\n\x12\x34\xff\xff"), [(0x12,) * 3, (255,) * 3]),
        (io.BytesIO(b"P6 1 1 65535\n\x12\x34\xff\xff\x00\x10"), [(0x12, 255, 0)]),
    ],
)
def test_pixels_by_hand(file: io.BytesIO, expected: list[tuple[int, ...]]) -> None:
    file.seek(0)
    assert pixels(file) == [expected]


def test_premultiplied_grey_is_grey() -> None:
    """Of 100 at an opacity of 128, premultiplied, 199 is left: 100 * 255 / 128."""
    found = as_rgb(Image.new("La", (1, 1), (100, 128)))
    assert found.getpixel((0, 0)) == (199,) * 3


def test_a_png_of_16_bits_is_not_white() -> None:
    """Pillow's own conversion cuts each value at 255."""
    values = np.array([[0, 5_000], [40_000, 65_535]], np.uint16)
    found = decoded(file_of(Image.fromarray(values)))
    assert np.array_equal(np.asarray(found), np.repeat((values >> 8)[..., None], 3, 2))


@pytest.mark.parametrize("values", [np.float32(0.5), np.int32(70_000), np.int32(200)])
def test_pixels_without_a_known_white_are_refused(values: Any) -> None:
    """Floats may reach to 1, 255 or anywhere; integers of 32 bits too."""
    file = file_of(Image.fromarray(np.full((2, 2), values)), "TIFF")
    with pytest.raises(ValueError, match=r"32 bits .*don't say which value is white"):
        decoded(file)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(kind: str, orientation: int) -> None:
    """Against Pillow's own; a corner that is marked by hand shows where the first row is."""
    stored = Image.new("RGB", (48, 32))
    stored.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file_of(stored, kind, exif=exif).getvalue()
    found = np.asarray(decoded(io.BytesIO(content)))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)).convert("RGB"))
    height, width = found.shape[:2]
    assert (height, width) == ((32, 48) if orientation < 5 else (48, 32))
    corners = {name: found[y, x, 0] > 127 for name, (y, x) in _corners(height, width).items()}
    upright = ("top left", "top right", "bottom right", "bottom left")
    assert [name for name, white in corners.items() if white] == [
        upright[(0, 1, 2, 3, 0, 1, 2, 3)[orientation - 1]]
    ]
    if kind != "TIFF":  # which Pillow turns by itself, once it is loaded
        assert np.array_equal(found, np.asarray(expected))


def _corners(height: int, width: int) -> dict[str, tuple[int, int]]:
    last = (height - 3, width - 3)
    return {
        "top left": (3, 3),
        "top right": (3, last[1]),
        "bottom right": last,
        "bottom left": (last[0], 3),
    }


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_means_nothing_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pixels(file_of(image("RGB", RED, BLUE), exif=exif)) == [[RED, BLUE]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_a_film_the_first_frame_is_seen(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black", "red")]
    file = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.asarray(decoded(file)).min() == 255


def test_what_pillow_opens_is_read_and_what_runs_a_program_is_not() -> None:
    common = ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .tga .jp2 .avif .mpo"
    assert {*common.split()} <= image_extensions()
    assert not {".eps", ".ps", ".h5", ".mpg", ".pdf", ".wmf"} & image_extensions()
    assert not {"EPS", "HDF5", "MPEG"} & {*readable_formats()}
    postscript = io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert Image.open(postscript).format == "EPS"
    with pytest.raises(OSError, match="no image that Pillow reads"):
        decoded(postscript)


def test_reasons_to_leave_a_file_out() -> None:
    hidden = "._x.png .DS_Store cat/.ipynb_checkpoints/x.png __MACOSX/cat/x.png cat/@eaDir/x.jpg"
    for name in [*hidden.split(), "PaxHeaders.12/x.png", "./.hidden/x.png"]:
        assert reason_to_leave_out(name) == HIDDEN
    for name in ("cat/notes.txt", "Thumbs.db", "cat", "cat/png", "x.png.part"):
        assert reason_to_leave_out(name) == NO_IMAGE
    for name in ("cat/x.JPEG", "a b/ü.Tif", "cat/x.y.webp", "./cat/x.png"):
        assert reason_to_leave_out(name) is None


def test_names_are_sorted_by_their_numbers_then_by_themselves() -> None:
    names = ["b10", "B2", "b2", "a", "A", "b02", "10", "9", "007", "7"]
    expected = ["007", "7", "9", "10", "A", "a", "B2", "b02", "b2", "b10"]
    for order in (names, names[::-1]):
        assert sorted(order, key=name_order) == expected


@pytest.mark.parametrize("name", ["\u2460", "²", "x²y3", "½", "٣", "九", "9" * 10_000, ""])
def test_a_name_is_text_whatever_python_calls_a_digit(name: str) -> None:
    assert sorted([f"{name}b", name, "a1"], key=name_order).index(name) < 3
    assert all(isinstance(each, str) for each in natural_key("\u2460²½"))
    assert natural_key("٣") == ["", 3, ""]  # decimal digits of any script are numbers


def test_names_that_are_no_utf8_can_be_shown() -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert printable(name) == "caf\\xe9.png"
    assert printable("café ①.png") == "café ①.png"
    assert printable("\u202egnp.exe") == "\\u202egnp.exe"
    assert printable("a\n\x1b[2J\u2028b\xa0c\t.png") == "a\\n\\x1b[2J\\u2028b\xa0c\\t.png"


def test_an_image_that_is_decoded_already_is_treated_alike() -> None:
    """As torchvision's and the Hugging Face's may be."""
    assert np.asarray(as_rgb(image("I;16", 0x1234))).tolist() == [[[0x12] * 3]]
