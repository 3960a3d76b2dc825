import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize

from pareco.data.transforms import Views, jittered, random_box
from tests.data.pictures import small


def photograph(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (32, 32), (20, 90)])
@pytest.mark.parametrize("central_crop", [1.0, 0.875])
def test_evaluation_agrees_with_torchvision(size: tuple[int, int], central_crop: float) -> None:
    image = photograph(*size)
    expected = CenterCrop(32)(Resize(round(32 / central_crop), InterpolationMode.BILINEAR)(image))
    found = Views(small(image_size=32, central_crop=central_crop)).pixels(image, None)
    assert found.shape == (3, 32, 32)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = photograph(32, 32)
    found = Views(small(image_size=32)).pixels(image, None)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(image))


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
    orders = set()
    for seed in range(30):
        drawing = generator(seed)
        order = torch.randperm(3, generator=drawing).tolist()
        expected = image
        for kind in order:
            factor = 0.6 + 0.8 * float(torch.rand(1, generator=drawing))
            expected = kinds[kind](expected).enhance(factor)
        found = jittered(image, 0.4, generator(seed))
        difference = np.asarray(found).astype(int) - np.asarray(expected)
        assert abs(difference).max() <= 1  # the factor's last bit may round a pixel otherwise
        orders.add(tuple(order))
    assert len(orders) == 6


def test_the_training_view_depends_on_the_seed_alone() -> None:
    image = photograph(60, 40)
    views = Views(small(image_size=32, crop_scale=0.25, colour_jitter=0.4))
    before = torch.random.get_rng_state()
    first = views.pixels(image, 5)
    assert torch.equal(views.pixels(image, 5), first)
    assert not torch.equal(views.pixels(image, 6), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert math.prod(first.shape) == 3 * 32 * 32


def test_without_random_crop_and_jitter_training_sees_what_evaluation_sees() -> None:
    image, views = photograph(60, 40), Views(small(image_size=32))
    assert torch.equal(views.pixels(image, 5), views.pixels(image, None))
