from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms import RandomResizedCrop

from pareco.data.transforms import jittered, random_box, view
from tests.data.pictures import small


def photograph(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shown(image: Image.Image, seed: int | None, **options: Any) -> np.ndarray:
    return view(image, seed, small(image_size=32, **options)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (32, 32), (20, 90)])
@pytest.mark.parametrize("central_crop", [1.0, 0.875])
def test_evaluation_is_pillows_central_crop(size: tuple[int, int], central_crop: float) -> None:
    image, shorter = photograph(*size), round(32 / central_crop)
    width, height = (shorter * side // min(size) for side in size)
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)))
    assert np.array_equal(shown(image, None, central_crop=central_crop), expected)
    # Without random crop and jitter, training sees what evaluation sees.
    assert np.array_equal(shown(image, 5, central_crop=central_crop), expected)


def test_training_is_pillows_crop_of_the_random_box() -> None:
    image = photograph(60, 40)
    for seed in range(5):
        top, left, height, width = random_box(40, 60, 0.25, generator(seed))
        crop = image.crop((left, top, left + width, top + height))
        expected = np.asarray(crop.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.array_equal(shown(image, seed, crop_scale=0.25), expected)


@pytest.mark.parametrize("size", [(60, 40), (7, 200), (200, 7)])
def test_random_boxes_are_torchvisions(size: tuple[int, int]) -> None:
    """Long images exhaust the ten tries and end at the central box."""
    width, height = size
    blank = torch.zeros(3, height, width)
    for seed in range(40):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = RandomResizedCrop.get_params(blank, [0.25, 1.0], [3 / 4, 4 / 3])
        assert random_box(height, width, 0.25, generator(seed)) == tuple(expected)


def test_jitter_applies_pillows_enhancers_in_the_drawn_order() -> None:
    image = photograph(12, 12)
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for seed in range(30):
        drawing, expected = generator(seed), image
        for kind in torch.randperm(3, generator=drawing).tolist():
            factor = 0.6 + 0.8 * float(torch.rand(1, generator=drawing))
            expected = kinds[kind](expected).enhance(factor)
        found = jittered(image, 0.4, generator(seed))
        difference = np.asarray(found).astype(int) - np.asarray(expected)
        assert abs(difference).max() <= 1  # the factor's last bit may round a pixel otherwise


def test_the_training_view_depends_on_the_seed_alone() -> None:
    image, options = photograph(60, 40), {"crop_scale": 0.25, "colour_jitter": 0.4}
    before = torch.random.get_rng_state()
    first = shown(image, 5, **options)
    assert first.shape == (32, 32, 3)
    assert np.array_equal(shown(image, 5, **options), first)
    assert not np.array_equal(shown(image, 6, **options), first)
    assert torch.equal(torch.random.get_rng_state(), before)
