from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pareco.config import DataConfig
from pareco.data.images import FileStore, MemoryStore
from pareco.data.loading import Images, TrainingLoader
from pareco.data.locations import located
from pareco.data.transforms import Preparation
from pareco.processes import Share
from tests.data.pictures import small, written_folders


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
    assert isinstance(images.store, MemoryStore)
    pixels = torch.randint(0, 255, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return replace(images, store=replace(images.store, pixels=pixels.to(torch.uint8)))


def loader(**options: Any) -> TrainingLoader:
    return TrainingLoader(**{"images": numbered(50), "batch_size": 8, "seed": 3} | options)


def test_an_epoch_shows_no_image_twice_and_drops_the_incomplete_batch() -> None:
    labels = torch.cat([labels for _, labels in loader().epoch(0)])
    assert loader().batches_per_epoch == 6
    assert len(labels) == len(set(labels.tolist())) == 48


def test_images_stay_with_their_labels() -> None:
    images = numbered(50, crop_padding=2, crop_padding_mode="replicate", flip=True)
    for pixels, labels in loader(images=images).epoch(1):
        torch.testing.assert_close(pixels[:, 0, 0, 0], labels.float(), rtol=0, atol=0)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat([labels for _, labels in loader(seed=seed).epoch(epoch)]).tolist()

    assert order(3, 0) == order(3, 0)
    assert order(3, 0) != order(3, 1)
    assert order(3, 0) != order(4, 0)


def test_an_epoch_started_in_the_middle_continues_it_exactly() -> None:
    images = noisy(50, crop_padding=1, flip=True)
    whole = list(loader(images=images).epoch(2))
    rest = list(loader(images=images).epoch(2, start=4))
    assert len(rest) == 2
    for (pixels, labels), (expected, expected_labels) in zip(rest, whole[4:], strict=True):
        assert torch.equal(pixels, expected)
        assert torch.equal(labels, expected_labels)


def test_shares_join_to_the_whole_batch() -> None:
    images = noisy(50, crop_padding=1, flip=True)
    shares = [loader(images=images, share=Share(rank, 4)).epoch(1) for rank in range(4)]
    for (pixels, labels), *parts in zip(loader(images=images).epoch(1), *shares, strict=True):
        assert torch.equal(torch.cat([each for each, _ in parts]), pixels)
        assert torch.equal(torch.cat([each for _, each in parts]), labels)


@dataclass(frozen=True)
class Recording(MemoryStore):
    """Notes the seeds of the images that it is asked for."""

    seen: list[int] = field(default_factory=list)

    def read(self, batches: Any, seeds: Any) -> Any:
        self.seen.extend(torch.cat(list(seeds)).tolist())
        return super().read(batches, seeds)


def test_no_two_views_share_a_seed() -> None:
    images = numbered(50)
    store = Recording(images.store.pixels, images.labels, images.store.classes)  # type: ignore[attr-defined]
    for epoch in range(3):
        list(loader(images=replace(images, store=store)).epoch(epoch))
    assert len(store.seen) == len(set(store.seen)) == 3 * 48


def test_loading_leaves_the_global_random_stream_alone() -> None:
    before = torch.random.get_rng_state()
    list(loader(images=numbered(50, crop_padding=1, flip=True)).epoch(0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_impossible_batches_are_refused() -> None:
    expected = r"training\.batch_size 51 exceeds the 50 training images"
    with pytest.raises(ValueError, match=expected):
        loader(batch_size=51)
    expected = r"training\.batch_size 8 cannot be shared by 3 processes"
    with pytest.raises(ValueError, match=expected):
        loader(share=Share(0, 3))


def test_a_subset_is_of_positions_in_the_selection() -> None:
    chosen = numbered(50).subset([10, 20, 30]).subset(torch.tensor([2, 0]))
    assert chosen.labels.tolist() == [30, 10]
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


@pytest.mark.parametrize("in_files", [False, True])
def test_held_images_are_the_batches_of_a_share(tmp_path: Path, in_files: bool) -> None:
    images = noisy(42)
    if in_files:
        source = located(str(written_folders(tmp_path)))
        store = FileStore(source, small(), 2, torch.device("cpu"))
        images = Images(store, torch.arange(42).flip(0), Preparation(small()))
    for share in (Share(), Share(0, 2), Share(1, 2), Share(9, 10)):
        held = images.held(5, share)
        assert isinstance(held.store, MemoryStore)
        expected = list(images.batches(5, share))
        for one, other in zip(held.batches(5), expected, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


def test_the_fingerprint_is_of_pixels_labels_and_classes() -> None:
    store = MemoryStore(torch.zeros(2, 1, 2, 2).to(torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    assert replace(store).fingerprint() == store.fingerprint()
    for change in (
        {"pixels": store.pixels + 1},
        {"pixels": store.pixels.reshape(2, 1, 1, 4)},
        {"labels": torch.tensor([1, 0])},
        {"classes": ("a", "c")},
        {"own_test": 1},
    ):
        assert replace(store, **change).fingerprint() != store.fingerprint()
