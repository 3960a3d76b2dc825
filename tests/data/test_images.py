import pytest
import torch

from pareco.data.images import Images, TrainingLoader, augmented


def numbered(count: int, size: int = 4) -> Images:
    """Return images whose every pixel is their own number, and labels alike."""
    numbers = torch.arange(count)
    pixels = numbers[:, None, None, None].expand(count, 1, size, size).to(torch.uint8)
    return Images(pixels.contiguous(), numbers, mean=0.0, std=1.0)


def loader(**options: int) -> TrainingLoader:
    return TrainingLoader(**{"images": numbered(50), "batch_size": 8, "seed": 3} | options)  # type: ignore[arg-type]


def test_an_epoch_shows_no_image_twice_and_drops_the_incomplete_batch() -> None:
    labels = torch.cat([labels for _, labels in loader().epoch(0)])
    assert loader().batches_per_epoch == 6
    assert len(labels) == len(set(labels.tolist())) == 48


def test_images_stay_with_their_labels() -> None:
    for images, labels in loader(crop_padding=2, flip=True).epoch(1):
        torch.testing.assert_close(images[:, 0, 0, 0], labels.float(), rtol=0, atol=0)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat([labels for _, labels in loader(seed=seed).epoch(epoch)]).tolist()

    assert order(3, 0) == order(3, 0)
    assert order(3, 0) != order(3, 1)
    assert order(3, 0) != order(4, 0)


def test_an_epoch_started_in_the_middle_continues_it_exactly() -> None:
    noisy = Images(
        torch.randint(0, 255, (50, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte(),
        torch.arange(50),
        0.0,
        1.0,
    )
    whole = list(loader(images=noisy, crop_padding=1).epoch(2))  # type: ignore[arg-type]
    rest = list(loader(images=noisy, crop_padding=1).epoch(2, start=4))  # type: ignore[arg-type]
    assert len(rest) == 2
    for (images, labels), (expected, expected_labels) in zip(rest, whole[4:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_loading_leaves_the_global_random_stream_alone() -> None:
    before = torch.random.get_rng_state()
    list(loader(crop_padding=1, flip=True).epoch(0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 51 exceeds the 50 training images"):
        loader(batch_size=51)


def test_crops_are_windows_of_the_padded_image() -> None:
    images = torch.arange(2 * 9, dtype=torch.float32).reshape(2, 1, 3, 3)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    seen = set()
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        for index, crop in enumerate(augmented(images, generator, 1, flip=False)):
            matches = [
                (row, column)
                for row in range(3)
                for column in range(3)
                if torch.equal(padded[index, :, row : row + 3, column : column + 3], crop)
            ]
            assert matches
            seen.update(matches)
    assert len(seen) == 9


def test_flipping_mirrors_about_half_of_the_images() -> None:
    images = torch.arange(3.0).expand(1000, 1, 1, 3)
    flipped = augmented(images, torch.Generator().manual_seed(0), 0, flip=True)
    mirrored = int((flipped[:, 0, 0, 0] == 2).sum())
    assert 430 < mirrored < 570  # 500 +- 4.4 standard deviations of a fair coin
    assert torch.equal(flipped.sort(-1).values, images)


def test_normalization_and_fingerprint() -> None:
    images = Images(torch.full((2, 1, 2, 2), 100).byte(), torch.tensor([0, 1]), mean=90.0, std=5.0)
    normalized, labels = images.normalized(torch.tensor([1]))
    assert normalized.unique().tolist() == [2.0]
    assert labels.tolist() == [1]
    other = Images(images.pixels, torch.tensor([1, 0]), 90.0, 5.0)
    assert images.fingerprint() != other.fingerprint()
