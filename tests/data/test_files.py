"""Files decoded when they are needed: exact, whatever the number of workers; damaged or whole."""

import gc
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

from pareco.data import DamagedImages, TrainingLoader, decoding
from pareco.data.decoding import Decoded, Decoders, most_damaged
from pareco.data.images import FileStore, Images
from pareco.data.loading import decoding_speed
from pareco.data.locations import located
from pareco.data.splits import stratified_splits
from pareco.data.transforms import Preparation
from pareco.processes import Processes
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


@pytest.fixture(autouse=True)
def _processes_end() -> Iterator[None]:
    """As the store that is dropped ends them."""
    yield
    gc.collect()
    assert not torch.multiprocessing.active_children()


def store(folder: Path, workers: int = 0, **options: Any) -> FileStore:
    return FileStore(located(str(folder)), small(**options), workers, CPU)


def read(files: FileStore, *batches: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(files.read([torch.tensor(batch) for batch in batches], None))


def damaged(files: FileStore) -> list[str]:
    return [files.source.name(index) for index in files.reasons]


def equal(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = [
        pair for batches in zip(one, other, strict=True) for pair in zip(*batches, strict=True)
    ]
    return all(torch.equal(left, right) for left, right in pairs)


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


def test_readers_of_a_tar_do_not_disturb_each_other(tmp_path: Path) -> None:
    """This process is in the middle of a tar when two others begin to read it."""
    alone = store(written_tars(tmp_path))
    batches = [torch.randperm(30)[:7] for _ in range(20)]
    expected = list(alone.read(batches, None))
    others = FileStore(alone.source, small(), 2, CPU)
    both = zip(alone.read(batches, None), others.read(batches, None), strict=True)
    for (mine, theirs), each in zip(both, expected, strict=True):
        assert equal([mine, theirs], [each, each])


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_random_views_do_not_depend_on_the_workers(tmp_path: Path, workers: int) -> None:
    written_folders(tmp_path)
    options: dict[str, Any] = {"crop_scale": 0.25, "colour_jitter": 0.4}
    batches = [torch.arange(start, start + 6) for start in (0, 6, 12)]
    seeds = [torch.arange(start, start + 6) * 1000 for start in (5, 6, 7)]
    expected = list(store(tmp_path, 0, **options).read(batches, seeds))
    assert equal(list(store(tmp_path, workers, **options).read(batches, seeds)), expected)
    assert not equal(list(store(tmp_path, **options).read(batches, seeds[::-1])), expected)


def children() -> set[int | None]:
    return {child.pid for child in torch.multiprocessing.active_children()}


def test_workers_stay_for_all_epochs_until_the_store_is_closed(tmp_path: Path) -> None:
    """Also for one that is left in the middle, and for evaluation meanwhile."""
    files = store(written_folders(tmp_path), 2)
    images = Images(files, torch.arange(30), Preparation(small()))
    alone = Images(store(tmp_path), torch.arange(30), Preparation(small()))
    loader, expected = (
        TrainingLoader(images=each, batch_size=6, seed=3) for each in (images, alone)
    )
    left = loader.epoch(0)
    assert equal([next(left)], [next(expected.epoch(0))])
    assert equal([images.normalized(torch.arange(7))], [alone.normalized(torch.arange(7))])
    workers = children()
    assert len(workers) == 2
    left.close()  # type: ignore[attr-defined]
    for epoch in (1, 2):
        assert equal(list(loader.epoch(epoch)), list(expected.epoch(epoch)))
        assert equal(list(loader.epoch(epoch, start=3)), list(expected.epoch(epoch, start=3)))
    assert children() == workers
    files.close()
    assert not children()
    assert equal(list(loader.epoch(1)), list(expected.epoch(1)))
    files.close()


def test_workers_are_not_forked_off_this_process(tmp_path: Path) -> None:
    """It may hold threads and an accelerator, which no fork survives."""
    files = store(written_folders(tmp_path), 1)
    read(files, [0])
    (worker,) = torch.multiprocessing.active_children()
    status = Path(f"/proc/{worker.pid}/status").read_text()
    parent = int(status.partition("PPid:")[2].split()[0])
    assert parent != os.getpid()
    files.close()


@pytest.mark.parametrize("held", [False, True])
def test_decoding_to_hold_can_be_ended_and_begun_anew(tmp_path: Path, held: bool) -> None:
    files = store(written_tars(tmp_path, train=300), 2)
    indices = torch.arange(600)  # in pieces of 256
    images = files.held(indices)
    calls: list[int] = []

    def pause() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt

    (images if held else files).pause = pause
    with pytest.raises(KeyboardInterrupt):
        next(images.read([indices], None))
    assert equal(list(images.read([indices[300:310]], None)), read(files, [*range(300, 310)]))
    assert len(calls) == 2 + 3
    images.close()
    assert not children()


def test_images_pass_through_pinned_memory_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here memory is not really pinned, as that takes an accelerator."""
    pinned: list[Decoded] = []
    monkeypatch.setattr(decoding, "_pinned", lambda each: pinned.append(each) or each)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    source = located(str(written_folders(tmp_path)))
    decoders = Decoders(source, small(), 2, torch.device("cuda", 1))
    found = list(decoders.decoded([(torch.tensor([index]), None) for index in range(42)]))
    assert [int(each.indices) for each in found] == [*range(42)]
    assert all(one is other for one, other in zip(found, pinned, strict=True))
    decoders.close()


def test_long_lists_of_names_are_sent_in_little_memory() -> None:
    """Names need not be UTF-8; short lists, and lists of other things, are sent as they are."""
    names = [f"n{index:08}/\udcff_{index}.JPEG" for index in range(20_000)]
    labels = [(name, index % 7) for index, name in enumerate(names)]
    sent = {"names": tuple(names), "labels": labels, "odd": [*names, 1], "few": names[:5]}
    content = decoding._sent(sent)  # type: ignore[arg-type]
    received = decoding._Received(io.BytesIO(content)).load()
    assert list(received["names"]) == names
    assert list(received["labels"]) == labels
    assert type(received["labels"][-1][1]) is int
    assert received["labels"][-2] == labels[-2]
    with pytest.raises(IndexError):
        received["names"][20_000]
    assert (received["odd"], received["few"]) == (sent["odd"], sent["few"])
    assert type(received["names"]) is type(received["labels"]) is not list


def test_a_killed_worker_is_told_and_reading_begins_anew(tmp_path: Path) -> None:
    files = store(written_folders(tmp_path), 2)
    reading = files.read([torch.tensor([index]) for index in range(42)], None)
    next(reading)
    for worker in torch.multiprocessing.active_children():
        worker.kill()
    with pytest.raises(ChildProcessError, match=r"was killed .*--decoding-workers"):
        list(reading)
    assert len(read(files, [0, 1])) == 1
    files.close()


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
    files.close()


def truncated() -> bytes:
    return picture(1, (64, 64), kind="JPEG")[:-400]


def bomb() -> bytes:
    """Return a PNG of a few bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


DAMAGE = {"truncated": truncated(), "bomb": bomb(), "empty": b"", "text": b"no image at all"}


MANY = contents(334)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_image_in_a_tar_is_named_once_replaced_and_counted(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    workers: int,
    damage: str,
) -> None:
    written_tar(tmp_path / "train.tar", MANY | {"bee/000.png": DAMAGE[damage]})
    written_tar(tmp_path / "val.tar", contents(2))
    files = store(tmp_path, workers)
    with caplog.at_level(logging.WARNING, "pareco.data"):
        found = read(files, [333, 334, 335], [334], [335])
    for pixels, labels in found[1:]:
        assert np.array_equal(pixels[0].numpy(), pixels_of(picture(335)))
        assert labels.tolist() == [1]
    assert torch.equal(found[0][0][1], found[0][0][2])
    assert damaged(files) == ["train.tar/bee/000.png"]
    (record,) = caplog.records
    assert record.name == "pareco.data"
    assert "train.tar/bee/000.png" in record.message


def test_the_last_image_is_replaced_by_the_first_of_its_split(tmp_path: Path) -> None:
    last = next(reversed(MANY))
    written_tar(tmp_path / "train.tar", MANY | {last: truncated()})
    written_tar(tmp_path / "val.tar", contents(2, first=10_000))
    ((pixels, labels),) = read(store(tmp_path), [1001])
    assert np.array_equal(pixels[0].numpy(), pixels_of(picture(0)))
    assert labels.tolist() == [0]


def test_one_in_a_thousand_may_be_damaged_but_never_fewer_than_three() -> None:
    counts = [1, 60, 3999, 4000, 60_000, 1_281_167]
    assert [most_damaged(count) for count in counts] == [3, 3, 3, 4, 60, 1281]


@pytest.mark.parametrize("workers", [0, 2])
def test_three_of_sixty_are_replaced_and_four_fail_with_the_list(
    tmp_path: Path, workers: int
) -> None:
    bad = dict.fromkeys(("ant/005.png", "bee/001.png", "cow/000.png", "cow/019.png"), b"")
    written_tar(tmp_path / "train.tar", contents(20) | bad)
    written_tar(tmp_path / "val.tar", contents(2))
    files = store(tmp_path, workers)
    assert len(read(files, [5, 21], [40])) == 2
    expected = r"4 of 60 images cannot be read, 3 may be(.|\n)*ant/005(.|\n)*cow/000(.|\n)*cow/019"
    with pytest.raises(DamagedImages, match=expected):
        read(files, [59])


def test_damage_is_counted_for_each_split(tmp_path: Path) -> None:
    bad = dict.fromkeys(("ant/000.png", "bee/000.png", "cow/000.png"), b"")
    for name in ("train.tar", "val.tar"):
        written_tar(tmp_path / name, contents(20) | bad)
    files = store(tmp_path)
    read(files, [0, 20, 40], [60, 80, 100])
    assert damaged(files) == [f"{split}.tar/{name}" for split in ("train", "val") for name in bad]
    written_tar(tmp_path / "val.tar", contents(20) | bad | {"bee/001.png": truncated()})
    with pytest.raises(DamagedImages, match=r"4 of 60 images(.|\n)*val\.tar/bee/001\.png"):
        read(store(tmp_path, 2), [0, 20, 40], [60, 80, 100])


def test_a_split_without_a_whole_image_is_refused_however_small(tmp_path: Path) -> None:
    written_tar(tmp_path / "train.tar", contents(2))
    written_tar(tmp_path / "val.tar", dict.fromkeys(contents(1), b""))
    with pytest.raises(DamagedImages, match="3 of 3 images cannot be read"):
        read(store(tmp_path), [6])


@pytest.mark.parametrize("search_split", ["holdout", "batch"])
def test_a_damaged_image_is_replaced_by_one_of_its_split(tmp_path: Path, search_split: str) -> None:
    """Held-out images stay unseen in training, and the reverse, at every place of the damage."""
    written_tar(tmp_path / "val.tar", contents(4, first=10_000))
    config = small(search_split=search_split, search_images=9)
    labels = np.repeat([0, 1, 2, 0, 1, 2], [10] * 3 + [4] * 3)
    splits = stratified_splits(labels, 12, config)
    indices = [splits.train, splits.search, splits.test]
    for index in splits.search[[0, 4, 8]].tolist() + splits.train[[0, 12, -1]].tolist():
        name = [*contents(10)][index]
        written_tar(tmp_path / "train.tar", contents(10) | {name: truncated()})
        files = store(tmp_path).divided(indices)
        ((pixels, _),) = read(files, [index])
        shown = [
            number
            for number in range(30)
            if np.array_equal(pixels[0].numpy(), pixels_of(picture(number)))
        ]
        own = splits.train if index in splits.train else splits.search
        later = [each for each in own.tolist() if each > index]
        assert shown == [(later or own.tolist())[0]]
        assert list(files.reasons) == [index]


def test_damage_that_others_found_counts(tmp_path: Path) -> None:
    """Of other processes, and of the sessions of a run that was interrupted."""
    written_tar(tmp_path / "train.tar", contents(20) | {"cow/000.png": b""})
    written_tar(tmp_path / "val.tar", contents(2))
    files = store(tmp_path)
    for one in (files, files.held(torch.arange(60))):
        one.learn({0: "elsewhere", 1: "elsewhere", 2: "elsewhere"})
        assert one.untold == 3
        one.tell(Processes(CPU))
        assert (one.untold, len(one.reasons)) == (0, 3)
    with pytest.raises(DamagedImages, match=r"4 of 60(.|\n)*ant/000\.png \(elsewhere\)"):
        read(files, [40])
    with pytest.raises(DamagedImages, match="5 of 60"):
        files.learn({4: "elsewhere"})


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_damage_ends_with_a_list_that_is_cut(tmp_path: Path, workers: int) -> None:
    files = store(written_folders(tmp_path), workers)
    files.reasons.update(dict.fromkeys(range(25), "damaged"))
    (tmp_path / "train" / "cow" / "009.png").unlink()
    with pytest.raises(DamagedImages) as raised:
        read(files, [29])
    assert str(raised.value).count("\n  train/") == 20
    assert str(raised.value).endswith("and 6 more")
    files.close()
    assert not children()  # though the error is still held
    fresh = store(tmp_path, workers)
    for path in (tmp_path / "train").rglob("*.png"):
        path.unlink()
    with pytest.raises(DamagedImages, match=r"train/ant/000\.png \(FileNotFoundError"):
        read(fresh, [0], [1])


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
    assert not files.reasons
    assert int(pixels.float().amax()) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_held_images_are_decoded_once_and_as_evaluation_sees_them(
    tmp_path: Path, workers: int
) -> None:
    files = store(written_folders(tmp_path), workers)
    batches = [torch.tensor([31, 4]), torch.tensor([9, 31])]
    expected = list(files.read(batches, None))
    for index in set(range(42)) - {4, 9, 31}:
        (tmp_path / files.source.name(index)).unlink()
    held = files.held(torch.tensor([4, 9, 31]))
    assert equal(list(held.read(batches, [torch.zeros(2)] * 2)), expected)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert equal(list(held.read(batches, None)), expected)
    assert len(children()) == workers  # the store of files may be read again
    files.close()
    assert held.fingerprint() == files.fingerprint()
    assert held.memory.pixels.shape == (3, 3, 16, 16)
    for absent in (5, 41):
        with pytest.raises(IndexError, match="not held"):
            next(held.read([torch.tensor([4, absent])], None))


def test_the_speed_of_many_processes_is_told_by_several_batches_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few batches would be dealt unevenly, or be cut to pieces of a few images."""
    read: list[int] = []

    def counted(_: FileStore, batches: list[Tensor], __: list[Tensor]) -> Iterator[None]:
        read.append(len(batches))
        yield None

    monkeypatch.setattr(FileStore, "read", counted)
    where = written_folders(tmp_path / "images")
    for processes, timed in ((1, 31), (96, 8 * 96)):
        assert decoding_speed(str(where), processes, image_size=8, images=2_000) > 0
        assert read.pop() == timed
