import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pareco.config import Machine
from pareco.data import TrainingLoader, load_data, loading
from pareco.data.loading import decoding_workers
from pareco.data.pixels import HIDDEN, NO_IMAGE
from tests.data.pictures import CLASSES, PACKS, small, written_folders, written_tars
from tests.experiments import TINY


@pytest.fixture(autouse=True)
def _loaded_anew() -> Iterator[None]:
    yield
    load_data.cache_clear()


def test_digits_keep_their_pixels() -> None:
    data = load_data(TINY.data)
    raw = load_digits().images[data.splits.test[0]]  # type: ignore[attr-defined]
    pixels, labels = data.test.normalized(torch.tensor([0]))
    np.testing.assert_allclose(pixels[0, 0] * 90 + 73, raw * 15, atol=1e-4)
    assert labels.tolist() == [load_digits().target[data.splits.test[0]]]  # type: ignore[attr-defined]
    assert data.train.store.classes == tuple("0123456789")
    assert (data.num_classes, data.in_chans, data.store.reasons) == (10, 1, {})
    normalized, _ = data.train.normalized(torch.arange(len(data.train)))
    assert abs(float(normalized.mean())) < 0.05  # mean and deviation are rounded to whole levels
    assert abs(float(normalized.std()) - 1) < 0.05


def test_digits_in_three_channels_are_the_same_in_each() -> None:
    grey = load_data(TINY.data).test.normalized(torch.arange(20))[0]
    three = replace(TINY.data, name="digits_rgb", mean=(73.0,) * 3, std=(90.0,) * 3)
    data = load_data(three)
    assert data.in_chans == 3
    assert torch.equal(data.test.normalized(torch.arange(20))[0], grey.expand(-1, 3, -1, -1))
    larger = load_data(replace(TINY.data, image_size=16))
    assert larger.test.normalized(torch.tensor([0]))[0].shape == (1, 1, 16, 16)


def test_what_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.test_images"):
        load_data(replace(TINY.data, test_images=None))
    with pytest.raises(ValueError, match=r"data\.mean has 3 values, the images have 1 channels"):
        load_data(replace(TINY.data, mean=(73.0,) * 3, std=(90.0,) * 3))
    with pytest.raises(ValueError, match="digits is embedded"):
        load_data(TINY.data, Machine(images="somewhere"))


@pytest.mark.parametrize(
    ("name", "count"), [("cifar10", 10), ("cifar100", 100), ("imagenet", 1000)]
)
def test_other_images_than_the_name_says_are_refused(tmp_path: Path, name: str, count: int) -> None:
    folder = str(written_folders(tmp_path))
    message = rf"holds 3 classes, {name} has {count}; .*--data\.name NAME \(make: DATA_NAME=NAME\)"
    with pytest.raises(ValueError, match=message):
        load_data(small(name=name), Machine(images=folder))


def test_images_of_ones_own_have_a_name_of_their_own_and_are_counted(tmp_path: Path) -> None:
    data = load_data(small(name="pets"), Machine(images=str(written_folders(tmp_path))))
    images = {"train_images": 30, "search_images": 6, "held_out_images": 0, "test_images": 12}
    assert data.counts == {"classes": 3} | images
    held = small(name="pets", search_split="holdout")
    counts = load_data(held, Machine(images=str(tmp_path))).counts
    assert counts == data.counts | {"train_images": 24, "held_out_images": 6}


def test_an_unknown_name_without_images_is_refused_with_the_nearest_known_one() -> None:
    message = r"unknown data set 'imagnet'\. Did you mean 'imagenet'\? Known: .*--images FOLDER"
    with pytest.raises(ValueError, match=message):
        load_data(small(name="imagnet"))


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_data_set_is_found_at_a_location(tmp_path: Path, in_memory: bool) -> None:
    folder = str(written_folders(tmp_path / "one"))
    config = small(in_memory=in_memory)
    data = load_data(config, Machine(images=folder, decoding_workers=2))
    assert (data.train.store.classes, data.in_chans) == (CLASSES, 3)
    assert data.splits.test.tolist() == list(range(30, 42))
    assert set(data.search.indices.tolist()) < set(data.train.indices.tolist())
    batches = list(TrainingLoader(images=data.train, batch_size=10, seed=0).epoch(0))
    assert [images.shape for images, _ in batches] == [(10, 3, 16, 16)] * 3
    elsewhere = Machine(images=str(written_tars(tmp_path / "two")), decoding_workers=0)
    again = load_data(config, elsewhere)
    assert again.fingerprint == data.fingerprint
    repeated = TrainingLoader(images=again.train, batch_size=10, seed=0).epoch(0)
    for batch, expected in zip(repeated, batches, strict=True):
        assert all(map(torch.equal, batch, expected))
    for other in ({"split_seed": 1}, {"image_size": 8}, {"central_crop": 0.5}):
        assert load_data(replace(config, **other), elsewhere).fingerprint != data.fingerprint


def test_what_is_not_read_is_told_when_the_data_are_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written_folders(tmp_path)
    for name in ("train/ant/a.heic", "train/bee/b.heic", "val/.hidden"):
        (folder / name).touch()
    with caplog.at_level(logging.WARNING, "pareco.data"):
        load_data(small(), Machine(images=str(folder)))
    assert [record.getMessage() for record in caplog.records] == [
        f"pictures: 2 not read ({NO_IMAGE}): train/ant/a.heic, train/bee/b.heic",
        f"pictures: 1 not read ({HIDDEN}): val/.hidden",
    ]


def test_what_memory_cannot_hold_is_refused_at_once(tmp_path: Path) -> None:
    machine = Machine(images=str(written_folders(tmp_path)))
    with pytest.raises(ValueError, match=r"data\.in_memory: 42 images .* set in_memory=False"):
        load_data(small(in_memory=True, image_size=500_000), machine)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet"])
def test_a_missing_data_set_is_an_error_at_once(tmp_path: Path, name: str) -> None:
    machine = Machine(images=str(tmp_path / "absent"))
    expected = r"absent: there is no such folder(.|\n)*train\.tar and val\.tar"
    with pytest.raises(FileNotFoundError, match=expected):
        load_data(small(name=name), machine)


@pytest.mark.parametrize(
    ("pack", "options", "counts"),
    [
        ("cifar10-jpeg", {"image_size": 32, "search_split": "holdout"}, (45_000, 5000, 10_000)),
        ("tiny-imagenet-50", {"image_size": 64, "search_images": 500}, (15_000, 500, 2500)),
    ],
)
def test_photographs_as_they_are(pack: str, options: dict[str, Any], counts: tuple) -> None:
    if not (PACKS / pack).is_dir():
        pytest.skip(f"the data pack {pack} is not in {PACKS}")
    views = {"crop_scale": 0.25, "colour_jitter": 0.4, "lighting": 0.1, "flip": True}
    config = small(**{"search_images": 5000} | views | options)
    data = load_data(config, Machine(images=str(PACKS / pack), decoding_workers=2))
    assert tuple(map(len, (data.train, data.search, data.test))) == counts
    tested = data.test.store.labels[data.test.indices].bincount()
    assert (tested == counts[2] / data.num_classes).all()
    batches = TrainingLoader(images=data.train, batch_size=64, seed=0).epoch(0)
    for images, _ in (next(batches), data.test.normalized(torch.arange(0, counts[2], 25))):
        assert images.shape[1:] == (3, config.image_size, config.image_size)
        # Normalized photographs: near 0 and 1, the views' own variation within a generous margin.
        assert abs(float(images.mean())) < 0.6
        assert 0.5 < float(images.std()) < 1.5
    batches.close()  # type: ignore[attr-defined]
    assert not data.store.reasons


@pytest.mark.parametrize(
    ("told", "local", "runs", "expected"),
    [
        (None, None, 1, 24),
        (None, "8", 1, 3),
        (None, None, 5, 4),
        (None, "64", 1, 1),
        (None, "", 100, 1),
        (7, "8", 5, 7),
        (0, None, 1, 0),
    ],
)
def test_cores_are_shared_by_all_that_runs_here(
    monkeypatch: pytest.MonkeyPatch, told: int | None, local: str | None, runs: int, expected: int
) -> None:
    monkeypatch.setattr(loading, "usable_cores", lambda: 24)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert decoding_workers(Machine(decoding_workers=told), runs) == expected
