"""Classes of images that lie in no class folders: a file beside them lists these."""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from pareco.data.class_folders import Labels

_DEVKIT = "ILSVRC2012_devkit_t12"
BESIDE = (_DEVKIT, f"{_DEVKIT}.tar.gz")
"""Lists that lie beside the splits, the first of which is read."""

_OF_A_MAT_FILE = (MatReadError, ValueError, TypeError, LookupError, NotImplementedError)
_MOST_BYTES = 2**25
_META = "data/meta.mat"
_NUMBERS = "data/ILSVRC2012_validation_ground_truth.txt"
_OFFICIAL = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
_TINY = "val_annotations.txt"


def listed_labels(folder: Path, place: Path) -> Labels:
    """Return the classes of a split's images by the names of their files; none without a list.

    `folder` is the data set's, which may hold ImageNet's development kit; `place` the split's,
    which may hold the list of Tiny ImageNet. Raises `ValueError` for a list that is damaged.
    """
    annotations = place / _TINY
    if annotations.is_file():
        try:
            text = annotations.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{annotations} is no text: {error}") from error
        fields = [line.split("\t") for line in text.splitlines() if line.strip()]
        if any(len(each) < 2 for each in fields):
            raise ValueError(f"{annotations} holds a line that is not IMAGE, tab, CLASS")
        return {each[0]: each[1] for each in fields}
    where = next((folder / name for name in BESIDE if (folder / name).exists()), None)
    if where is None:
        return {}
    try:
        return _devkit_labels(_member(where, _META), _member(where, _NUMBERS))
    # loadmat raises anything on damaged bytes; it runs no code of theirs.
    except (OSError, EOFError, tarfile.TarError, zlib.error, *_OF_A_MAT_FILE) as error:
        raise ValueError(f"{where} is damaged: {type(error).__name__}: {error}") from error


def _devkit_labels(meta: bytes, numbers: bytes) -> Labels:
    """Return the WordNet ids of ImageNet's validation images: line n is the n-th image's class."""
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
    columns = (synsets[name] for name in ("ILSVRC2012_ID", "WNID", "num_children"))
    called = {int(a): str(b) for a, b, children in zip(*columns, strict=True) if not int(children)}
    labels = {}
    for line, number in enumerate(numbers.split(), start=1):
        if int(number) not in called:
            raise ValueError(f"line {line} of {_NUMBERS} is no class of {_META}: {int(number)}")
        labels[f"ILSVRC2012_val_{line:08}.JPEG"] = called[int(number)]
    return labels


def _member(devkit: Path, name: str) -> bytes:
    """Return a file of the development kit, packed or unpacked."""
    if devkit.is_dir():
        return (devkit / name).read_bytes()
    with tarfile.open(devkit, "r:gz") as tar:
        for member in tar:
            if str(PurePosixPath(member.name)) == f"{_DEVKIT}/{name}" and member.isfile():
                if member.size > _MOST_BYTES:
                    raise ValueError(f"{name} is too large")
                file = tar.extractfile(member)
                return file.read() if file else b""
    raise ValueError(f"it holds no {name}")


def are_official(example: str) -> bool:
    """Return whether a file is called as ImageNet's validation images are."""
    return _OFFICIAL.fullmatch(PurePosixPath(example).name) is not None


def without_devkit(folder: Path, place: Path) -> str:
    """Return, for people, what makes ImageNet's validation images usable, which lie at `place`."""
    sorted_by_class = folder / "val"
    return (
        f"{place} holds ImageNet's validation images, without their classes: put {_DEVKIT}.tar.gz "
        f"of image-net.org, which lists these, beside it (mv {_DEVKIT}.tar.gz {folder}), or move "
        f"each image into the folder of its class, {sorted_by_class}/CLASS/ (after: mkdir "
        f"{sorted_by_class}; tar -xf {place} -C {sorted_by_class})"
    )
