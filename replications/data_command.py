"""The command `data`: what is seen in a folder of images, before anything is trained on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from pareco.arguments import Flag

if TYPE_CHECKING:
    from pareco.data.contents import Contents

_NO_FOLDERS = ("hfds/", "wds/", "torch/")  # what a location may begin with instead
_OPENED = 200
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class DataCommand:
    """Show what is seen in a folder of images: layout, classes in their order, images, formats.

    Nothing is trained or written. It is what --images FOLDER of the command `run` takes.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Where the images lie: a folder, or a name such as hfds/NAME."""

    json: Flag = False
    """Print JSON, with all classes and all names."""

    def carried_out(self, console: Console) -> int:
        """Print what is there; return 0. Raises `ValueError` in one line where nothing is."""
        check_folder(self.folder)
        from pareco.data.contents import contents_of

        try:
            found = contents_of(self.folder, _OPENED)
        except (ValueError, OSError) as error:
            raise ValueError(_in_one_line(error)) from error
        if self.json:
            console.out(json.dumps(found.as_json(), indent=1))
        else:
            for line in _lines(found):
                printable = "".join(each if each.isprintable() else "?" for each in line)
                console.out(printable)
        return 0


def check_folder(location: str, advice: str = "") -> None:
    """Raise `FileNotFoundError`, ending with the advice, for images in no folder."""
    folder = Path(location).expanduser()
    if not location or not (location.lower().startswith(_NO_FOLDERS) or folder.is_dir()):
        what = "is a file: give its folder" if folder.is_file() else "no such folder"
        raise FileNotFoundError(f"--images {location}: {what}{advice}")


def _in_one_line(error: Exception) -> str:
    """Return what an error says, without the list of layouts below it."""
    first, _, more = str(error).partition("\n")
    if not more:
        return first
    return f"{first.removesuffix('Known layouts:').strip()} Known layouts: docs/data.md"


def _lines(found: Contents) -> Iterator[str]:
    """Yield the lines for people."""
    from pareco.data.sources import summary

    yield f"layout: {found.layout}"
    shown = ", ".join(found.classes[:_SHOWN])
    more = f", ... (all {len(found.classes)} with --json)" * (len(found.classes) > _SHOWN)
    yield f"{len(found.classes)} classes, in this order: {shown}{more}"
    yield f"training images: {_counted(found.train_counts)}"
    test = _counted(found.test_counts) if found.test_images else "none; a part is held out for it"
    yield f"test images: {test}"
    yield f"{found.opened} of {found.train_images + found.test_images} images looked at"
    yield f"  width x height: {_listed(found.sizes)}"
    yield f"  modes: {_listed(found.modes)}"
    if found.unreadable:
        yield f"  unreadable of these: {len(found.unreadable)}, such as {found.unreadable[0]}"
    left_out = summary(found.left_out)
    yield "left out: " + ("" if left_out else "nothing")
    yield from (f"  {line}" for line in left_out)


def _counted(counts: tuple[int, ...]) -> str:
    """Return a total with the least and most of a class, such as `90 (20 to 40 of a class)`."""
    least, most = min(counts), max(counts)
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{sum(counts):,} ({each} of a class)"


def _listed(counts: Mapping[str, int]) -> str:
    """Return the most frequent values with their counts."""
    shown = [f"{value} ({count})" for value, count in list(counts.items())[:5]]
    more = f", and {len(counts) - len(shown)} others" if len(counts) > len(shown) else ""
    return ", ".join(shown) + more or "none"
