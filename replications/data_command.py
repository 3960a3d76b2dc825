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

    speed: Flag = False
    """Decode some of the images, too, as training on ImageNet does (random crops of SIZE pixels,
    jitter), and say how many a second, and how long a batch takes: by one process, and by more."""

    size: int = 224
    """Pixels of the crops of --speed."""

    images: int = 2_000
    """How many images --speed decodes, or more, with each number of processes, some repeatedly."""

    batch_size: int = 256
    """Images of the training step whose decoding --speed tells."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name, least in (("size", 8), ("images", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def carried_out(self, console: Console) -> int:
        """Print what is there; return 0. Raises `ValueError` in one line where nothing is."""
        check_folder(self.folder)
        from pareco.data.contents import contents_of

        try:
            found = contents_of(self.folder, _OPENED)
        except (ValueError, OSError) as error:
            raise ValueError(_in_one_line(error)) from error
        speeds = dict(self._speeds()) if self.speed else {}
        if self.json:
            more = {"images_per_second": speeds} if speeds else {}
            console.out(json.dumps(found.as_json() | more, indent=1))
        else:
            for line in (*_lines(found), *self._speed_lines(speeds)):
                printable = "".join(each if each.isprintable() else "?" for each in line)
                console.out(printable)
        return 0

    def _speeds(self) -> Iterator[tuple[int, float]]:
        """Yield numbers of processes, up to one a core, and the images a second they decode."""
        from pareco.data.loading import decoding_speed
        from pareco.processes import usable_cores

        cores = usable_cores()
        for processes in (*(2**n for n in range(cores.bit_length()) if 2**n < cores), cores):
            yield processes, decoding_speed(self.folder, processes, self.size, self.images)

    def _speed_lines(self, speeds: Mapping[int, float]) -> Iterator[str]:
        """Yield the lines on speed, for people."""
        if speeds:
            yield f"images decoded a second, as for training at {self.size} x {self.size} pixels:"
        for processes, speed in speeds.items():
            several = "" if processes == 1 else "es"
            step = f"{self.batch_size / speed:.3g} s for a step of {self.batch_size:,}"
            yield f"  {processes} process{several}: {speed:,.0f}, {step}"


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
        count, names = len(found.unreadable), ", ".join(found.unreadable[:_SHOWN])
        yield f"  unreadable of these: {count}: {names}" + ", ..." * (count > _SHOWN)
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
