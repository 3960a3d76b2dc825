"""ImageNet's official tars and Tiny ImageNet's folder, whose validation labels are in a list."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import imagenet

from pareco.data.label_lists import listed_labels
from pareco.data.locations import located
from tests.data.pictures import picture, pixels_of, written_tar

WNIDS = ("n01440764", "n02084071", "n01443537", "n00015388")  # by number, the last no leaf
NUMBERS = [3, 1, 1, 2, 3, 2]
DEVKIT = "ILSVRC2012_devkit_t12"


def meta() -> bytes:
    """Return a meta.mat like the published one: a structure for each synset, leaves first."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")
    synsets = np.zeros((len(WNIDS), 1), [(name, object) for name in fields])
    for number, wnid in enumerate(WNIDS):
        children = 0 if number < 3 else 3
        synsets[number, 0] = (number + 1, wnid, f"word {number}, b", "gloss", children, [1.0])
    file = io.BytesIO()
    savemat(file, {"synsets": synsets}, do_compression=True)
    return file.getvalue()


def written_devkit(folder: Path, meta_mat: bytes | None = None, numbers: str | None = None) -> Path:
    """Write a packed development kit and return its path."""
    lines = "".join(f"{each}\n" for each in NUMBERS) if numbers is None else numbers
    files = {
        "COPYING": b"text",
        "data/meta.mat": meta() if meta_mat is None else meta_mat,
        "data/ILSVRC2012_validation_ground_truth.txt": lines.encode(),
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{DEVKIT}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{DEVKIT}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def written_official(folder: Path) -> Path:
    """Write ImageNet's two tars, of small pictures, and return their folder."""
    folder.mkdir(exist_ok=True)
    inner = {}
    for number, wnid in enumerate(sorted(WNIDS[:3])):
        files = {f"{wnid}_{each}.JPEG": picture(10 * number + each) for each in (2, 10)}
        inner[f"{wnid}.tar"] = written_tar(folder / "inner.tar", files).read_bytes()
    written_tar(folder / "ILSVRC2012_img_train.tar", inner)
    (folder / "inner.tar").unlink()
    names = [f"ILSVRC2012_val_{each:08}.JPEG" for each in range(1, 7)]
    images = {name: picture(100 + number) for number, name in enumerate(names)}
    written_tar(folder / "ILSVRC2012_img_val.tar", dict(reversed(images.items())))
    return folder


def test_the_official_tars_are_read_as_they_are(tmp_path: Path) -> None:
    """Labels against torchvision's reader of the development kit."""
    folder = written_official(tmp_path / "imagenet")
    devkit = written_devkit(folder)
    source = located(str(folder))
    assert source.layout == "ImageNet's official tars"
    assert source.classes == ("n01440764", "n01443537", "n02084071")
    assert source.labels.tolist()[:6] == [0, 0, 1, 1, 2, 2]
    assert source.name(1) == "ILSVRC2012_img_train.tar/n01440764/n01440764_10.JPEG"
    shown = np.asarray(source.image(3)).transpose(2, 0, 1)
    assert np.array_equal(shown, pixels_of(picture(20)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "_verify_archive", lambda *known: None)  # it is no published one
        imagenet.parse_devkit_archive(folder)
    theirs = imagenet.load_meta_file(folder, "meta.bin")[1]
    assert [source.classes[label] for label in source.labels[6:]] == theirs
    assert source.left_out == ()
    shutil.unpack_archive(devkit, folder, filter="data")
    devkit.unlink()
    assert located(str(folder)).fingerprint() == source.fingerprint()


def test_official_tars_without_the_labels_are_named_with_what_helps(tmp_path: Path) -> None:
    folder = written_official(tmp_path)
    expected = rf"ImageNet's validation images.*mv {DEVKIT}\.tar\.gz .*mkdir .*tar -xf .*img_val"
    with pytest.raises(FileNotFoundError, match=expected):
        located(str(folder))
    (folder / "val").mkdir()
    with tarfile.open(folder / "ILSVRC2012_img_val.tar") as tar:
        tar.extractall(folder / "val", filter="data")
    (folder / "ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"val holds ImageNet's validation images"):
        located(str(folder))
    written_devkit(folder)
    source = located(str(folder))
    assert source.layout == "ImageNet's official tars and class folders"
    assert [source.classes[each] for each in source.labels[6:]] == [WNIDS[n - 1] for n in NUMBERS]
    (folder / "val").rename(folder / "validation")
    written_tar(folder / "val.tar", {f"{name}/x.JPEG": picture(1) for name in WNIDS[:3]})
    assert located(str(folder)).name(6) == "validation/ILSVRC2012_val_00000001.JPEG"


def test_one_of_the_official_tars_is_not_enough(tmp_path: Path) -> None:
    folder = written_official(tmp_path)
    (folder / "ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"ILSVRC2012_img_train\.tar.* no data set"):
        located(str(folder))


@pytest.mark.parametrize(
    ("meta_mat", "numbers", "message"),
    [
        (b"no mat", None, r"is damaged"),
        (meta()[:300], None, r"is damaged"),
        (
            None,
            "4\n" * 6,
            r"is damaged: ValueError: line 1 of data/ILS.* is no class of data/meta.mat: 4",
        ),  # no leaf
        (None, "cat\n", r"is damaged: ValueError"),
    ],
)
def test_a_damaged_development_kit_is_named(
    tmp_path: Path, meta_mat: bytes | None, numbers: str | None, message: str
) -> None:
    written_devkit(tmp_path, meta_mat, numbers)
    with pytest.raises(ValueError, match=rf"{DEVKIT}\.tar\.gz {message}"):
        listed_labels(tmp_path, tmp_path / "val")
    (tmp_path / f"{DEVKIT}.tar.gz").write_bytes(b"no tar")
    with pytest.raises(ValueError, match=rf"{DEVKIT}\.tar\.gz is damaged"):
        listed_labels(tmp_path, tmp_path / "val")


def test_tiny_imagenet_as_it_is_unpacked(tmp_path: Path) -> None:
    """Its validation images lie in one folder, and a list has their classes."""
    wnids = ("n02124075", "n04067472")
    lines = []
    for number in range(6):
        wnid = wnids[number % 2]
        for name in (f"train/{wnid}/images/{wnid}_{number}.JPEG", f"val/images/val_{number}.JPEG"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(picture(number))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
        (tmp_path / f"train/{wnid}/{wnid}_boxes.txt").write_text("0 0 1 1\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    (tmp_path / "test" / "images").mkdir(parents=True)
    (tmp_path / "wnids.txt").write_text("")
    source = located(str(tmp_path))
    assert (source.classes, source.layout) == (wnids, "class folders")
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1]
    shown = {name.name.rpartition("/")[2] for name in source.left_out}
    boxes = {f"{wnid}_boxes.txt" for wnid in wnids}
    assert shown == {*boxes, "val_annotations.txt", "test", "wnids.txt"}
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG n02124075\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt holds a line"):
        located(str(tmp_path))


def test_a_list_changes_no_class_folders(tmp_path: Path) -> None:
    """Whoever has sorted the images has said their classes."""
    for name in ("cat", "dog"):
        for split in ("train", "val"):
            file = tmp_path / split / name / "ILSVRC2012_val_00000001.JPEG"
            file.parent.mkdir(parents=True)
            file.write_bytes(picture(1))
    before = located(str(tmp_path)).fingerprint()
    written_devkit(tmp_path)
    assert located(str(tmp_path)).fingerprint() == before
