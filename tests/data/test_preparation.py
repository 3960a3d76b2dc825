import pytest
import torch
import torch.nn.functional as F

from pareco.config import DataConfig
from pareco.data.transforms import Preparation, lighting, padded_crops


def preparation(**options) -> Preparation:  # type: ignore[no-untyped-def]
    defaults = {"name": "digits", "image_size": 8, "mean": (0.0,), "std": (1.0,)}
    return Preparation(DataConfig(**defaults | options))


def test_a_padded_crop_by_hand() -> None:
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    corners = torch.tensor([[0], [2]])  # row 0 and column 2 of the image with a border of 1
    black = padded_crops(image, corners, 1, "constant")
    assert black.tolist() == [[[[0, 0], [2, 0]]]]
    edge = padded_crops(image, corners, 1, "replicate")
    assert edge.tolist() == [[[[2, 2], [2, 2]]]]
    centre = padded_crops(image, torch.tensor([[1], [1]]), 1, "constant")
    assert torch.equal(centre, image)


@pytest.mark.parametrize("mode", ["constant", "replicate"])
def test_crops_are_windows_of_the_padded_image(mode: str) -> None:
    image = torch.arange(1, 10).reshape(1, 1, 3, 3).byte()
    padded = F.pad(image.float(), (1, 1, 1, 1), mode=mode)
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).reshape(9, 3, 3)
    prepared, seen = preparation(crop_padding=1, crop_padding_mode=mode), []
    for seed in range(60):
        crop = prepared.training(image, torch.Generator().manual_seed(seed), 1, slice(0, 1))
        seen.extend((windows == crop[0]).all((1, 2)).nonzero().flatten().tolist())
    assert len(seen) == 60
    assert set(seen) == set(range(9))


def test_flipping_mirrors_about_half_of_the_images() -> None:
    images = torch.arange(3).expand(1000, 1, 1, 3).to(torch.uint8)
    generator = torch.Generator().manual_seed(0)
    flipped = preparation(flip=True).training(images, generator, 1000, slice(0, 1000))
    mirrored = int((flipped[:, 0, 0, 0] == 2).sum())
    assert 430 < mirrored < 570  # 500 +- 4.4 standard deviations of a fair coin
    assert torch.equal(flipped.sort(-1).values, images.float())


def test_lighting_by_hand() -> None:
    """One unit of the first component, two of the third, for two images."""
    strengths = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    first = [0.2175 * -0.5675, 0.2175 * -0.5808, 0.2175 * -0.5836]
    third = [0.009 * 0.4009, 0.009 * -0.8140, 0.009 * 0.4203]
    torch.testing.assert_close(lighting(strengths), torch.tensor([first, third]))


def test_lighting_adds_one_colour_to_each_image() -> None:
    prepared = preparation(lighting=0.1, mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = torch.full((400, 3, 2, 2), 100, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    added = prepared.training(pixels, generator, 400, slice(0, 400)) - 100
    assert torch.equal(added, added[:, :, :1, :1].expand_as(added))
    # Eigenvalues, times the strengths' deviation, on the 0-255 scale, are the colours' deviations.
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    found = torch.linalg.svdvals(added[:, :, 0, 0] / 400**0.5)
    torch.testing.assert_close(found, 255 * 0.1 * values, rtol=0.15, atol=0)  # 4 deviations


def test_normalization_is_per_channel() -> None:
    prepared = preparation(mean=(90.0, 80.0, 70.0), std=(5.0, 10.0, 15.0))
    found = prepared.evaluation(torch.full((1, 3, 1, 1), 100, dtype=torch.uint8))
    assert found.flatten().tolist() == [2.0, 2.0, 2.0]


def test_what_does_not_fit_the_channels_is_named() -> None:
    with pytest.raises(ValueError, match=r"data\.mean has 1 values, the images have 3 channels"):
        preparation().check(3)
    with pytest.raises(ValueError, match=r"data\.lighting needs images with 3 channels"):
        preparation(lighting=0.1).check(1)
