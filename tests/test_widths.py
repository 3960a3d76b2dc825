"""Widths and the space of multipliers."""

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch

from pareco.config import Granularity
from pareco.widths import ChannelGroup, Widths, WidthSpace
from tests.conftest import shapes_only


def space(*maxima: int, stages: tuple[int, ...] | None = None, **options: Any) -> WidthSpace:
    stages = stages or (0,) * len(maxima)
    groups = tuple(
        ChannelGroup(name=f"g{index}", maximum=maximum, stage=stage)
        for index, (maximum, stage) in enumerate(zip(maxima, stages, strict=True))
    )
    return WidthSpace(groups=groups, **options)


def test_widths_are_values() -> None:
    widths = Widths(torch.tensor([3, 4]))  # type: ignore[arg-type]
    assert widths == Widths([3, 4]) == (3, 4)
    assert len({widths, Widths([3, 4]), Widths([4, 3])}) == 2
    assert Widths.parse(str(widths)) == widths
    assert isinstance(pickle.loads(pickle.dumps(widths)), Widths)
    assert copy.deepcopy(widths) == widths


@pytest.mark.parametrize("count", [1.0, float("nan"), "3", None, torch.tensor(1.5), 0, -3])
def test_widths_are_positive_integers(count: Any) -> None:
    error, message = (ValueError, "at least 1") if count in (0, -3) else (TypeError, "integer")
    with pytest.raises(error, match=message):
        Widths([4, count])


def test_the_floor_of_the_paper() -> None:
    assert space(10, 64, 1).decode([0.59, 0.42, 0.42]) == (5, 26, 1)
    assert space(10, alpha_min=0.01).decode([0.01]) == (1,)
    assert space(100, alpha_min=0.1).decode([0.29]) == (29,)  # 0.29 * 100 is just below 29


@pytest.mark.parametrize(
    ("maximum", "multiplier", "channels"),
    [
        (32, 0.35, 16),  # 11.2 rounds to 8, which loses more than 10%
        (32, 0.5, 16),
        (24, 0.5, 16),  # 12 rounds half up
        (16, 0.35, 8),
        (64, 0.75, 48),
        (96, 0.35, 32),  # 33.6 rounds to 32, which loses less than 10%
        (160, 0.4, 64),
        (320, 0.35, 112),
        (1280, 0.35, 448),
        (16, 0.1, 8),
        (4, 0.5, 4),  # never above the maximum
        (17, 1.0, 17),  # the full network, though 17 rounds to 16
        (25, 1.0, 25),
    ],
)
def test_divisor_8_is_make_divisible(maximum: int, multiplier: float, channels: int) -> None:
    assert space(maximum, alpha_min=0.1, divisor=8).decode([multiplier]) == (channels,)


@pytest.mark.parametrize("divisor", [1, 3, 8])
@pytest.mark.parametrize("maximum", [1, 3, 7, 16, 17, 25, 64, 100, 1000])
def test_largest_is_the_full_network(maximum: int, divisor: int) -> None:
    assert space(maximum, divisor=divisor).largest == (maximum,)


@pytest.mark.parametrize("maximum", [1, 2, 3, 7, 16, 49, 96, 333, 1280])
def test_every_count_encodes_and_decodes(maximum: int) -> None:
    whole = space(maximum, alpha_min=1e-4)
    for count in range(1, maximum + 1):
        assert whole.decode(whole.encode(Widths([count]))) == (count,)


@pytest.mark.parametrize(
    ("granularity", "alpha", "widths"),
    [
        ("network", [0.5], (5, 10, 15, 20)),
        ("stage", [0.5, 1.0], (5, 10, 30, 40)),
        ("layer", [0.5, 1.0, 0.6, 0.7], (5, 20, 18, 28)),
    ],
)
def test_granularity(granularity: Granularity, alpha: list[float], widths: tuple) -> None:
    whole = space(10, 20, 30, 40, stages=(0, 0, 2, 2), granularity=granularity)
    assert whole.dimensions == len(alpha)
    assert whole.decode(alpha) == widths
    assert whole.decode(torch.tensor(alpha)) == widths
    assert whole.encode(Widths(widths)).tolist() == pytest.approx(alpha)
    assert whole.uniform(0.5) == (5, 10, 15, 20)


def test_encode_takes_the_largest_of_shared_multipliers() -> None:
    whole = space(10, 20, 30, stages=(0, 0, 1), granularity="stage")
    assert whole.encode(Widths([5, 15, 24])).tolist() == pytest.approx([0.75, 0.8])


def padded(**options: Any) -> WidthSpace:
    """Return a space like a CIFAR ResNet's: later groups are at least as wide as earlier ones."""
    groups = (
        ChannelGroup(name="a", maximum=16),
        ChannelGroup(name="b", maximum=32, at_least=(0,)),
        ChannelGroup(name="inside", maximum=32),
        ChannelGroup(name="c", maximum=64, at_least=(1, 0)),
    )
    return WidthSpace(groups=groups, alpha_min=0.1, **options)


def test_decode_repairs_zero_padding() -> None:
    assert padded().decode([1.0, 0.1, 0.1, 0.1]) == (16, 16, 3, 16)
    assert padded().decode([0.5, 1.0, 0.1, 0.1]) == (8, 32, 3, 32)
    assert padded().decode([0.5, 0.5, 0.5, 0.5]) == (8, 16, 16, 32)
    with pytest.raises(ValueError, match=r"b \(8 channels\) may not be narrower than a \(16"):
        padded().check(Widths([16, 8, 32, 64]))


def test_a_step_keeps_groups_of_channels_whole() -> None:
    """Rounded down, as the floor of the paper is; with a divisor to multiples of both."""
    group = ChannelGroup(name="a", maximum=48, step=6)
    counts = [WidthSpace(groups=(group,), alpha_min=0.1).uniform(m)[0] for m in (0.1, 0.42, 0.9, 1)]
    assert counts == [6, 18, 42, 48]
    by_four = WidthSpace(groups=(group,), alpha_min=0.1, divisor=4)
    assert [by_four.uniform(m)[0] for m in (0.1, 0.3, 0.42, 0.8, 1)] == [12, 24, 24, 36, 48]
    with pytest.raises(ValueError, match=r"a keeps groups of 6 channels whole: .* asked for 20"):
        by_four.check(Widths([20]))
    wide = ChannelGroup(name="b", maximum=64, at_least=(1,), step=16)
    space = WidthSpace(groups=(wide, group), alpha_min=0.1)
    assert space.decode([0.1, 0.5]) == (32, 24)  # 24 needs 32 there


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        *(([0.5, wrong], r"must be in \[0.42, 1\]") for wrong in (0.3, 1.1, math.nan, math.inf)),
        *(([0.5] * count, f"expected 2 multipliers, got {count}") for count in (0, 1, 3)),
    ],
)
def test_wrong_multipliers_are_refused(alpha: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space(8, 8).decode(alpha)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_min": 0.0}, "alpha_min"),
        ({"alpha_min": 1.5}, "alpha_min"),
        ({"divisor": 0}, "divisor"),
        ({"granularity": "block"}, "granularity must be one of network, stage, layer"),
        ({"only": Widths([9])}, "g0 has 8 channels, asked for 9"),
    ],
)
def test_wrong_fields_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space(8, **options)
    with pytest.raises(ValueError, match="no free channel group"):
        WidthSpace(groups=())


def test_restricted_to_one_network(generator: torch.Generator) -> None:
    widths = Widths([5, 6])
    one = space(8, 8, only=widths)
    points = [one.largest, one.smallest, one.uniform(0.7), one.sample(generator), *one.spread(3)]
    assert set(points) == {widths}
    assert one.dimensions == 2
    with pytest.raises(ValueError, match="multipliers must be"):
        one.decode([0.1, 0.5])


def test_spread_goes_evenly_from_largest_to_smallest() -> None:
    whole = space(100, alpha_min=0.4)
    assert list(whole.spread(4)) == [(100,), (80,), (60,), (40,)]
    assert list(whole.spread(1)) == [whole.largest]
    assert list(space(3, alpha_min=0.4).spread(100)) == [(3,), (2,), (1,)]


def test_sampling_is_seeded_and_leaves_the_global_generator_alone() -> None:
    whole = space(100, 200, 300)
    state = torch.get_rng_state()
    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    drawn = [whole.sample(first) for _ in range(5)]
    assert drawn == [whole.sample(second) for _ in range(5)]
    assert len(set(drawn)) == 5
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_are_uniform(generator: torch.Generator) -> None:
    alpha = torch.stack([space(8, 8).sample_alpha(generator) for _ in range(4000)])
    assert alpha.dtype == torch.double
    assert 0.42 <= alpha.min() < 0.425
    assert 0.995 < alpha.max() <= 1
    torch.testing.assert_close(alpha.mean(0), torch.full((2,), 0.71).double(), atol=0.01, rtol=0)


@pytest.mark.parametrize("granularity", ["network", "stage", "layer"])
@pytest.mark.parametrize("divisor", [1, 8])
@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18", "cifar_resnet20", "regnetx_002"])
def test_what_decodes_encodes_to_itself_in_every_space(
    generator: torch.Generator, name: str, divisor: int, granularity: Granularity
) -> None:
    size = 32 if name.startswith("cifar") else 64
    space = replace(shapes_only(name, size).space, divisor=divisor, granularity=granularity)
    for widths in [space.smallest, space.largest, *(space.sample(generator) for _ in range(50))]:
        alpha = space.encode(widths)
        assert alpha.dtype == torch.double
        assert alpha.min() >= 0.42
        assert space.decode(alpha) == widths


@pytest.mark.parametrize("divisor", [1, 4, 8])
@pytest.mark.parametrize("granularity", ["network", "stage", "layer"])
def test_many_points_at_once_decode_and_encode_as_each_alone(
    divisor: int, granularity: Granularity
) -> None:
    groups = (
        ChannelGroup(name="a", maximum=24),
        ChannelGroup(name="b", maximum=30, stage=1, step=5),
        ChannelGroup(name="c", maximum=17, stage=1),
        ChannelGroup(name="d", maximum=64, stage=2, at_least=(0, 2, 4), step=16),
        ChannelGroup(name="e", maximum=40, stage=2, at_least=(2,), step=20),
    )
    space = WidthSpace(groups=groups, alpha_min=0.3, divisor=divisor, granularity=granularity)
    generator = torch.Generator().manual_seed(0)
    alphas = torch.stack([space.sample_alpha(generator) for _ in range(300)])
    edges = torch.tensor([0.3, 1.0, 0.5, 13 / 17]).unsqueeze(1).expand(4, space.dimensions)
    alphas = torch.cat([alphas, edges.double()])
    decoded = [space.decode(alpha) for alpha in alphas]
    assert space.counts(alphas).tolist() == [list(each) for each in decoded]
    encoded = torch.stack([space.encode(each) for each in decoded])
    torch.testing.assert_close(space.canonical(alphas), encoded, rtol=0, atol=0)
