"""Small data sets of known pictures, in every layout."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from pareco.config import DataConfig

CLASSES = ("ant", "bee", "cow")
SIZE = 16
PACKS = Path(__file__).parents[2].parent / "shared" / "data"


def small(**options) -> DataConfig:  # type: ignore[no-untyped-def]
    """Return a configuration for these pictures, decoded anew in every epoch."""
    defaults = {"name": "pictures", "image_size": SIZE, "in_memory": False, "search_images": 6}
    return DataConfig(**defaults | options)


def picture(number: int, size: tuple[int, int] = (SIZE, SIZE), kind: str = "PNG") -> bytes:
    """Return the file of a picture that no other number has; PNG keeps its pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=95)
    return file.getvalue()


def pixels_of(content: bytes) -> np.ndarray:
    """Return the pixels `3 x h x w` of a file's content, by Pillow alone."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def contents(per_class: int, first: int = 0) -> dict[str, bytes]:
    """Return the files of a split by their names in it, in the order of their numbers."""
    names = [f"{name}/{each:03}.png" for name in CLASSES for each in range(per_class)]
    return {name: picture(first + number) for number, name in enumerate(names)}


def written_folders(folder: Path, train: int = 10, test: int = 4, test_name: str = "val") -> Path:
    """Write class folders and return their folder."""
    for split, files in (("train", contents(train)), (test_name, contents(test, first=10_000))):
        for name, content in files.items():
            path = folder / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def written_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write an uncompressed tar of these files and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def written_tars(folder: Path, train: int = 10, test: int = 4) -> Path:
    """Write tars of class folders and return their folder."""
    written_tar(folder / "train.tar", contents(train))
    written_tar(folder / "val.tar", contents(test, first=10_000))
    return folder


def sample(key: str, number: int, label: int) -> dict[str, bytes]:
    """Return the files of one WebDataset sample."""
    return {f"{key}.png": picture(number), f"{key}.cls": str(label).encode()}


def written_shards(folder: Path, train: int = 30, test: int = 12, of: int = 10) -> Path:
    """Write WebDataset shards of `of` samples, the labels in turn, and return their folder."""
    for split, count, first in (("train", train, 0), ("val", test, 10_000)):
        for shard, start in enumerate(range(0, count, of)):
            files: dict[str, bytes] = {}
            for each in range(start, min(start + of, count)):
                files |= sample(f"{each:04}", first + each, each % 3)
            written_tar(folder / f"set-{split}-{shard:03}.tar", files)
    return folder
