"""Files decoded when they are needed: exact, whatever the number of workers; damaged or whole."""

import io
import logging
import os
import signal
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pareco.data import DamagedImages, TrainingLoader
from pareco.data.images import DecodedStore, FileStore, with_progress
from pareco.data.loading import Images
from pareco.data.locations import located
from pareco.data.transforms import Preparation
from pareco.processes import Share
from tests.data.pictures import (
    contents,
    picture,
    pixels_of,
    small,
    written_folders,
    written_shards,
    written_tar,
    written_tars,
)

CPU = torch.device("cpu")


def store(folder: Path, workers: int = 0, **options: Any) -> FileStore:
    return FileStore(located(str(folder)), small(**options), workers, CPU)


def read(files: FileStore, *batches: list[int], seeds: list[Tensor] | None = None) -> list[Any]:
    return list(files.read([torch.tensor(batch) for batch in batches], seeds))


def equal(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(left[part], right[part])
        for left, right in zip(one, other, strict=True)
        for part in (0, 1)
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("write", [written_folders, written_tars, written_shards])
def test_pixels_are_pillows(tmp_path: Path, write: Any, workers: int) -> None:
    files = store(write(tmp_path), workers)
    batches = [[3, 29, 3], [41, 0], [30]]
    found = read(files, *batches)
    for batch, (pixels, labels) in zip(batches, found, strict=True):
        assert pixels.dtype == torch.uint8
        assert labels.tolist() == files.labels[batch].tolist()
        for index, each in zip(batch, pixels, strict=True):
            number = index if index < 30 else 10_000 + index - 30
            assert np.array_equal(each.numpy(), pixels_of(picture(number)))


def test_processes_do_not_share_the_position_in_a_tar(tmp_path: Path) -> None:
    """This process has the tar open and in use when two others begin to read it."""
    alone = store(written_tars(tmp_path), 0)
    files = FileStore(alone.source, small(), 2, CPU)
    batches = [torch.randperm(30)[:7] for _ in range(40)]
    expected = list(alone.read(batches, None))
    mine = alone.read([*batches, *batches], None)
    next(mine)
    state: Any = alone.source._train.reader.tar_state  # type: ignore[attr-defined]
    assert state.tf is not None
    theirs = files.read(batches, None)
    first = next(theirs)
    assert state.tf is None  # closed before the processes began, so that none inherits it
    assert equal([first], expected[:1])
    for own, other, found in zip(mine, theirs, expected[1:] + expected[:1], strict=False):
        assert torch.equal(own[0], found[0])
        assert other[0].shape == found[0].shape  # it goes on beside them
    assert not files.damaged
    assert equal(list(files.read(batches, None)), expected)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_random_views_do_not_depend_on_the_workers(tmp_path: Path, workers: int) -> None:
    written_folders(tmp_path)
    options: dict[str, Any] = {"crop_scale": 0.25, "colour_jitter": 0.4}
    batches = [torch.arange(start, start + 6) for start in (0, 6, 12)]
    seeds = [torch.arange(start, start + 6) * 1000 for start in (5, 6, 7)]
    expected = list(store(tmp_path, 0, **options).read(batches, seeds))
    before = torch.random.get_rng_state()
    assert equal(list(store(tmp_path, workers, **options).read(batches, seeds)), expected)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not equal(list(store(tmp_path, **options).read(batches, seeds[::-1])), expected)


def loader(files: FileStore, **options: Any) -> TrainingLoader:
    config = small(crop_scale=0.25, colour_jitter=0.4, flip=True, lighting=0.1, crop_padding=2)
    images = Images(files, torch.arange(30), Preparation(config))
    return TrainingLoader(**{"images": images, "batch_size": 6, "seed": 3} | options)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_started_in_the_middle_continues_it_exactly(tmp_path: Path, workers: int) -> None:
    written_tars(tmp_path)
    options: dict[str, Any] = {"crop_scale": 0.25, "colour_jitter": 0.4}
    whole = list(loader(store(tmp_path, 0, **options)).epoch(2))
    rest = list(loader(store(tmp_path, workers, **options)).epoch(2, start=3))
    assert len(whole) == 5
    assert equal(rest, whole[3:])
    assert not equal(list(loader(store(tmp_path, 0, **options)).epoch(1)), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_shares_join_to_the_whole_batch(tmp_path: Path, workers: int) -> None:
    written_folders(tmp_path)
    options: dict[str, Any] = {"crop_scale": 0.25, "colour_jitter": 0.4}
    whole = list(loader(store(tmp_path, 0, **options)).epoch(0))
    shares = [
        loader(store(tmp_path, workers, **options), share=Share(rank, 3)).epoch(0)
        for rank in range(3)
    ]
    joined = [
        tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        for parts in zip(*shares, strict=True)
    ]
    assert equal(joined, whole)  # type: ignore[arg-type]


def test_an_epoch_left_in_the_middle_leaves_no_process(tmp_path: Path) -> None:
    batches = loader(store(written_folders(tmp_path), 2)).epoch(0)
    next(batches)
    assert torch.multiprocessing.active_children()
    batches.close()  # type: ignore[attr-defined]
    assert not torch.multiprocessing.active_children()


def test_signals_to_all_processes_leave_the_workers_at_work(tmp_path: Path) -> None:
    """Slurm and a terminal signal every process: the main one saves, with its workers alive."""
    files = store(written_folders(tmp_path), 2)
    batches = [torch.tensor([index]) for index in range(42)]
    expected = list(store(tmp_path).read(batches, None))
    reading = files.read(batches, None)
    found = [next(reading), next(reading)]  # one of each worker
    for worker in torch.multiprocessing.active_children():
        for kind in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid or 0, kind)
    assert equal([*found, *reading], expected)
    assert not torch.multiprocessing.active_children()


def truncated(size: int = 64) -> bytes:
    return picture(1, (size, size), kind="JPEG")[:-400]


def bomb() -> bytes:
    """Return a PNG of a few bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


DAMAGE = {"truncated": truncated(), "bomb": bomb(), "empty": b"", "text": b"no image at all"}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return 1,002 files: one of them may be damaged, two may not."""
    return contents(334)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_image_in_a_tar_is_named_once_replaced_and_counted(
    tmp_path: Path,
    many: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
    workers: int,
    damage: str,
) -> None:
    written_tar(tmp_path / "train.tar", many | {"bee/000.png": DAMAGE[damage]})
    written_tar(tmp_path / "val.tar", contents(2))
    files = store(tmp_path, workers)
    with caplog.at_level(logging.WARNING, "pareco.data"):
        found = read(files, [333, 334, 335], [334], [335])
    good = picture(335)
    for pixels, labels in found[1:]:
        assert np.array_equal(pixels[0].numpy(), pixels_of(good))
        assert labels.tolist() == [1]
    assert torch.equal(found[0][0][1], found[0][0][2])
    assert files.damaged == ["train.tar/bee/000.png"]
    (record,) = caplog.records
    assert record.name == "pareco.data"
    assert "train.tar/bee/000.png" in record.message


def test_the_last_image_is_replaced_by_the_first_of_its_split(
    tmp_path: Path, many: dict[str, bytes]
) -> None:
    last = next(reversed(many))
    written_tar(tmp_path / "train.tar", many | {last: truncated()})
    written_tar(tmp_path / "val.tar", contents(2, first=10_000))
    ((pixels, labels),) = read(store(tmp_path), [1001])
    assert np.array_equal(pixels[0].numpy(), pixels_of(picture(0)))
    assert labels.tolist() == [0]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_a_thousandth_fails_with_the_list(
    tmp_path: Path, many: dict[str, bytes], workers: int
) -> None:
    bad = {"ant/005.png": truncated(), "cow/000.png": b""}
    written_tar(tmp_path / "train.tar", many | bad)
    written_tar(tmp_path / "val.tar", contents(2))
    files = store(tmp_path, workers)
    assert len(read(files, [5])) == 1
    expected = r"2 of 1002 images cannot be read, more than 0\.1%(.|\n)*ant/005(.|\n)*cow/000"
    with pytest.raises(DamagedImages, match=expected):
        read(files, [668])


def test_a_thousandth_of_each_split_may_be_damaged(tmp_path: Path, many: dict[str, bytes]) -> None:
    for name in ("train.tar", "val.tar"):
        written_tar(tmp_path / name, many | {"bee/000.png": b""})
    files = store(tmp_path)
    read(files, [334], [1002 + 334])
    assert files.damaged == ["train.tar/bee/000.png", "val.tar/bee/000.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_counted_for_each_split(tmp_path: Path, workers: int) -> None:
    """One of twelve test images is too much, however many training images there are."""
    folder = written_folders(tmp_path, train=40)
    (folder / "val" / "bee" / "001.png").write_bytes(truncated())
    with pytest.raises(DamagedImages, match=r"1 of 12 images(.|\n)*val/bee/001\.png"):
        read(store(folder, workers), [0], [125])


@pytest.mark.parametrize("workers", [0, 2])
def test_missing_files_and_nothing_but_damage(tmp_path: Path, workers: int) -> None:
    files = store(written_folders(tmp_path, train=30), workers)
    (tmp_path / "train" / "ant" / "001.png").unlink()
    with pytest.raises(DamagedImages, match=r"train/ant/001\.png \(FileNotFoundError"):
        read(files, [0, 1])
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DamagedImages, match="cannot be read"):
        read(store(tmp_path, workers), *([each] for each in range(90)))


def test_long_lists_of_damage_are_cut(tmp_path: Path) -> None:
    folder = written_folders(tmp_path)
    files = store(folder)
    files.reasons.update(dict.fromkeys(range(25), "damaged"))
    (folder / "train" / "cow" / "009.png").unlink()
    with pytest.raises(DamagedImages) as raised:
        read(files, [29])
    assert str(raised.value).count("\n  train/") == 20
    assert str(raised.value).endswith("and 6 more")


def test_odd_metadata_is_no_damage(tmp_path: Path) -> None:
    """Warnings are errors here, so a warning of Pillow's would count as damage."""
    folder = written_folders(tmp_path)
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x00\x99garbage")
    (folder / "train" / "ant" / "000.png").write_bytes(file.getvalue())
    palette = image.convert("P")
    palette.save(folder / "train" / "ant" / "001.png", transparency=bytes(range(256)))
    files = store(folder)
    ((pixels, _),) = read(files, [0, 1])
    assert not files.damaged
    assert int(pixels.float().amax()) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_images_decoded_once_are_what_evaluation_sees(tmp_path: Path, workers: int) -> None:
    files = store(written_folders(tmp_path), workers, in_memory=True)
    decoded = DecodedStore(files).only(torch.arange(42))
    batches = [torch.tensor([5, 40, 2]), torch.arange(42)]
    expected = list(store(tmp_path).read(batches, None))
    assert equal(list(decoded.read(batches, [torch.zeros(3), torch.zeros(42)])), expected)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert equal(list(decoded.read(batches, None)), expected)
    assert decoded.fingerprint() == files.fingerprint()


def test_only_the_images_that_are_needed_are_decoded(tmp_path: Path) -> None:
    files = store(written_folders(tmp_path), in_memory=True)
    expected = read(files, [31, 4], [9])
    for index in set(range(42)) - {4, 9, 31}:
        (tmp_path / files.source.name(index)).unlink()
    decoded = DecodedStore(files).only(torch.tensor([4, 9, 31]))
    batches = [torch.tensor([31, 4]), torch.tensor([9])]
    assert equal(list(decoded.read(batches, None)), expected)
    assert decoded.memory.pixels.shape == (3, 3, 16, 16)
    for absent in (5, 41):
        with pytest.raises(IndexError, match="left out"):
            next(decoded.read([torch.tensor([4, absent])], None))


def test_what_memory_cannot_hold_is_refused_at_once(tmp_path: Path) -> None:
    files = store(written_folders(tmp_path), in_memory=True, image_size=500_000)
    with pytest.raises(ValueError, match=r"data\.in_memory: 42 images .* set in_memory=False"):
        DecodedStore(files).only(torch.arange(42))


def test_the_fingerprint_knows_the_size_and_not_the_place(tmp_path: Path) -> None:
    first = store(written_folders(tmp_path / "a")).fingerprint()
    assert store(written_folders(tmp_path / "b")).fingerprint() == first
    assert store(tmp_path / "a", image_size=8).fingerprint() != first
    assert store(tmp_path / "a", central_crop=0.5).fingerprint() != first


def test_progress_passes_everything_on_and_ends_with_an_error() -> None:
    assert list(with_progress(iter("abc"), 3)) == ["a", "b", "c"]

    def failing() -> Iterator[int]:
        yield 1
        raise KeyError

    with pytest.raises(KeyError):
        list(with_progress(failing(), 2))
