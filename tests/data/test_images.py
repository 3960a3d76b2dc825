from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pareco.config import DataConfig
from pareco.data.images import FileStore, Images, MemoryStore
from pareco.data.loading import TrainingLoader
from pareco.data.locations import located
from pareco.data.transforms import Preparation
from pareco.processes import Share
from tests.data.pictures import small, written_tars


def config(**options: Any) -> DataConfig:
    return DataConfig(
        **{"name": "digits", "image_size": 8, "mean": (0.0,), "std": (1.0,)} | options
    )


def numbered(count: int, size: int = 4, **options: Any) -> Images:
    """Return images whose every pixel is their own number, and labels alike."""
    numbers = torch.arange(count)
    pixels = numbers[:, None, None, None].expand(count, 1, size, size).to(torch.uint8)
    store = MemoryStore(pixels.contiguous(), numbers, tuple(map(str, range(count))))
    return Images(store, numbers, Preparation(config(**options)))


def noisy(count: int, **options: Any) -> Images:
    images = numbered(count, **options)
    pixels = torch.randint(0, 255, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    store = MemoryStore(pixels.byte(), images.store.labels, images.store.classes)
    return replace(images, store=store)


@pytest.fixture(params=["memory", "files", "workers"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> Images:
    """Return images with random views, in memory, in files, or decoded by other processes."""
    if request.param == "memory":
        return noisy(30, crop_padding=1, flip=True)
    config = small(crop_scale=0.25, colour_jitter=0.4, flip=True, lighting=0.1, crop_padding=2)
    workers = 2 if request.param == "workers" else 0
    store = FileStore(located(str(written_tars(tmp_path))), config, workers, torch.device("cpu"))
    return Images(store, torch.arange(30), Preparation(config))


def loader(**options: Any) -> TrainingLoader:
    return TrainingLoader(**{"images": numbered(50), "batch_size": 8, "seed": 3} | options)


def test_images_stay_with_their_labels() -> None:
    images = numbered(50, crop_padding=2, crop_padding_mode="replicate", flip=True)
    for pixels, labels in loader(images=images).epoch(1):
        torch.testing.assert_close(pixels[:, 0, 0, 0], labels.float(), rtol=0, atol=0)


def test_an_epoch_shows_no_image_twice_and_drops_the_incomplete_batch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat([labels for _, labels in loader(seed=seed).epoch(epoch)]).tolist()

    assert loader().batches_per_epoch == 6
    assert len(order(3, 0)) == len(set(order(3, 0))) == 48
    assert order(3, 0) == order(3, 0)
    assert order(3, 0) != order(3, 1)
    assert order(3, 0) != order(4, 0)


def test_an_epoch_started_in_the_middle_continues_it_exactly(images: Images) -> None:
    before = torch.random.get_rng_state()
    whole, other = (list(loader(images=images).epoch(epoch)) for epoch in (2, 1))
    rest = list(loader(images=images).epoch(2, start=1))
    assert len(rest) == len(whole) - 1 == 2
    for batch, expected in zip(rest, whole[1:], strict=True):
        assert all(map(torch.equal, batch, expected))
    assert not torch.equal(whole[0][0], other[0][0])
    assert torch.equal(torch.random.get_rng_state(), before)  # it draws from streams of its own


def test_shares_join_to_the_whole_batch(images: Images) -> None:
    shares = [loader(images=images, share=Share(rank, 4)).epoch(1) for rank in range(4)]
    for whole, *parts in zip(loader(images=images).epoch(1), *shares, strict=True):
        assert all(map(torch.equal, map(torch.cat, zip(*parts, strict=True)), whole))


class Recording(MemoryStore):
    """Notes the seeds of the images that it is asked for."""

    def read(self, batches: Any, seeds: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), *torch.cat(list(seeds)).tolist()]
        return super().read(batches, seeds)


def test_no_two_views_share_a_seed() -> None:
    images = numbered(50)
    store = Recording(torch.zeros(50, 1, 4, 4), images.store.labels, images.store.classes)
    for epoch in range(3):
        list(loader(images=replace(images, store=store)).epoch(epoch))
    assert len(store.seen) == len(set(store.seen)) == 3 * 48


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\.batch_size 51 exceeds the 50 training images"):
        loader(batch_size=51)
    with pytest.raises(ValueError, match=r"\.batch_size 8 cannot be shared by 3 processes"):
        loader(share=Share(0, 3))


def test_a_subset_is_of_positions_in_the_selection() -> None:
    chosen = numbered(50).subset([10, 20, 30]).subset(torch.tensor([2, 0]))
    assert chosen.indices.tolist() == [30, 10]
    assert len(chosen) == 2
    pixels, labels = chosen.normalized(torch.tensor([1]))
    assert pixels.unique().tolist() == [10.0]
    assert labels.tolist() == [10]


def test_evaluation_shows_every_image_once_in_order_in_one_share_or_many() -> None:
    images = numbered(23)
    whole = [labels.tolist() for _, labels in images.batches(5)]
    assert [label for labels in whole for label in labels] == list(range(23))
    shares = [[labels.tolist() for _, labels in images.batches(5, Share(r, 2))] for r in (0, 1)]
    assert shares == [whole[0::2], whole[1::2]]


def test_held_images_are_the_batches_of_a_share(images: Images) -> None:
    images = images.subset(torch.arange(30).flip(0))
    for share in (Share(), Share(0, 2), Share(1, 2), Share(9, 10)):
        held = images.held(5, share).batches(5)
        for batch, expected in zip(held, images.batches(5, share), strict=True):
            assert all(map(torch.equal, batch, expected))


def test_the_fingerprint_is_of_pixels_labels_and_classes() -> None:
    images: dict[str, Any] = {
        "pixels": torch.zeros(2, 1, 2, 2).byte(),
        "labels": torch.tensor([0, 1]),
        "classes": ("a", "b"),
    }
    first = MemoryStore(**images).fingerprint()
    assert first.startswith("2c715a31b6973d76")  # by which runs of before know their data
    changes: list[dict[str, Any]] = [
        {"pixels": images["pixels"] + 1},
        {"pixels": images["pixels"].reshape(2, 1, 1, 4)},
        {"labels": torch.tensor([1, 0])},
        {"classes": ("a", "c")},
        {"own_test": 1},
    ]
    for change in changes:
        assert MemoryStore(**images | change).fingerprint() != first
