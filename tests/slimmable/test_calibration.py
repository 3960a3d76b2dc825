"""Re-calibrated batch-norm statistics, against the batches that a plain network sees."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from pareco.slimmable import (
    SlimmableNet,
    calibrated_statistics,
    jointly_calibrated,
    make_slimmable,
    normalized_by_batch,
)
from pareco.slimmable.layers import NormStatistics
from pareco.widths import Widths
from tests.conftest import tiny_net


def batches(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [1 + 2 * torch.randn(6, 3, 32, 32, generator=generator) for _ in range(3)]


@pytest.fixture(scope="module")
def net() -> SlimmableNet:
    return tiny_net(in_chans=3, size=32)


def _keep_input(seen: list[Tensor], module: nn.Module, arguments: tuple[Tensor]) -> None:
    seen.append(arguments[0].clone())


def statistics_by_hand(
    plain: nn.Module, images: list[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return means and variances of what enters each batch norm, averaged over batches."""
    inputs: dict[str, list[Tensor]] = {}
    for name, module in plain.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            seen = inputs.setdefault(name, [])
            module.register_forward_pre_hook(functools.partial(_keep_input, seen))
    plain.train()
    with torch.no_grad():
        for batch in images:
            plain(batch)
    by_channel = {
        name: [x.transpose(0, 1).flatten(1) for x in seen] for name, seen in inputs.items()
    }
    means = {name: torch.stack([x.mean(1) for x in seen]) for name, seen in by_channel.items()}
    variances = {name: torch.stack([x.var(1) for x in seen]) for name, seen in by_channel.items()}
    return (
        {name: value.mean(0) for name, value in means.items()},
        {name: value.mean(0) for name, value in variances.items()},
    )


def assert_calibrated(net: SlimmableNet, widths: Widths, images: list[Tensor]) -> NormStatistics:
    """Check the statistics of these widths against those by hand, and return them."""
    found = calibrated_statistics(net, widths, images)
    means, variances = statistics_by_hand(net.extract(widths), images)
    assert found.batches == 3
    assert found.means.keys() == means.keys()
    for name in means:
        torch.testing.assert_close(found.means[name], means[name])
        torch.testing.assert_close(found.variances[name], variances[name])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_calibration_equals_statistics_by_hand(net: SlimmableNet, dtype: torch.dtype) -> None:
    net = copy.deepcopy(net).to(dtype)
    images = [batch.to(dtype) for batch in batches(0)]
    for widths in (net.space.sample(torch.Generator().manual_seed(3)), net.space.largest):
        found = assert_calibrated(net, widths, images)
        plain = net.extract(widths, found).eval()
        with net.eval().at(widths, found):
            torch.testing.assert_close(plain(images[0]), net(images[0]))
        with net.at(widths):
            assert not torch.allclose(plain(images[0]), net(images[0]))


def test_the_network_is_left_as_it_was(net: SlimmableNet) -> None:
    net = copy.deepcopy(net).train()
    net.get_submodule("layer1").eval()
    untouched = copy.deepcopy(net)
    modes = [module.training for module in net.modules()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    calibrated_statistics(net, net.space.smallest, iter(batches(0)))
    assert net.widths == net.space.largest
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(net(batches(1)[0]), untouched(batches(1)[0]))  # the batch is tracked again
    after = untouched.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in net.state_dict().items())


def test_sub_networks_calibrated_together_are_as_each_alone(net: SlimmableNet) -> None:
    widths = [net.space.smallest, net.space.largest, net.space.uniform(0.6), net.space.smallest]
    together = jointly_calibrated(net, widths, iter(batches(0)))
    for each, found in zip(widths, together, strict=True):
        alone = calibrated_statistics(net, each, batches(0))
        assert found.batches == alone.batches == 3
        assert all(torch.equal(found.means[name], alone.means[name]) for name in alone.means)
        kinds = found.variances, alone.variances
        assert all(torch.equal(kinds[0][name], kinds[1][name]) for name in alone.variances)


def test_the_batch_is_normalized_by_at_every_width_in_turn(net: SlimmableNet) -> None:
    """As torch does in training, in which the plain networks are."""
    (images, *_), widths = batches(0), [net.space.smallest, net.space.largest]
    plain = [net.extract(each).train() for each in widths]
    with torch.no_grad(), normalized_by_batch(net):
        for each, other in zip(widths, plain, strict=True):
            with net.at(each):
                torch.testing.assert_close(net(images), other(images))


def test_private_weights_are_calibrated_with(net: SlimmableNet) -> None:
    net, widths = copy.deepcopy(net), net.space.smallest
    net.privatize_norm([widths])
    with torch.no_grad():
        net.get_parameter("bn1.weight_switch0").mul_(3)
    assert_calibrated(net, widths, batches(0))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc((self.norm(self.norm(self.conv(images)) * 2)).mean((2, 3)))


def test_a_norm_called_twice_averages_over_its_calls() -> None:
    net = make_slimmable(Twice(), torch.zeros(1, 3, 32, 32))
    assert_calibrated(net, Widths([5]), batches(0))


class OfVectors(Twice):
    """Batch norm of images, of sequences and of pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.sequences, self.vectors = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, images: Tensor) -> Tensor:
        sequences = self.sequences(self.norm(self.conv(images)).flatten(2))
        return self.fc(self.vectors(sequences.amax(2)))


def test_norms_of_sequences_and_vectors() -> None:
    net = make_slimmable(OfVectors(), torch.zeros(1, 3, 32, 32))
    statistics = assert_calibrated(net, Widths([5]), batches(0))
    assert {name: len(mean) for name, mean in statistics.means.items()} == dict.fromkeys(
        ("norm", "sequences", "vectors"), 5
    )
    with net.eval().at(Widths([5]), statistics):
        plain = net.extract(Widths([5]), statistics)
        torch.testing.assert_close(net(batches(1)[0]), plain(batches(1)[0]))
        assert isinstance(plain.get_submodule("vectors"), nn.BatchNorm1d)


def test_norm_without_running_statistics() -> None:
    model = Twice()
    model.norm = nn.BatchNorm2d(8, track_running_stats=False, affine=False)
    net = make_slimmable(model, torch.zeros(1, 3, 32, 32)).eval()
    widths, images = Widths([5]), batches(0)
    found = calibrated_statistics(net, widths, images)
    with net.at(widths):
        torch.testing.assert_close(net(images[0]), net.extract(widths)(images[0]))
    with net.at(widths, found):
        torch.testing.assert_close(net(images[0]), net.extract(widths, found)(images[0]))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = calibrated_statistics(net, widths, images)
    assert mixed.means["norm"].dtype == mixed.variances["norm"].dtype == torch.float32
    # Bfloat16 has three digits.
    torch.testing.assert_close(mixed.means["norm"], found.means["norm"], rtol=0.05, atol=0.05)


def test_no_batch_is_refused(net: SlimmableNet) -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        calibrated_statistics(net, net.space.smallest, [])
    assert net.widths == net.space.largest


def test_what_is_no_batch_of_images_is_refused(net: SlimmableNet) -> None:
    """One of no image would count as one of zeros; a tensor in place of a list, as its images."""
    widths, images = net.space.uniform(0.5), batches(0)[0]
    for given, kind, message in (
        ([images, images[:0]], ValueError, "a calibration batch has no image"),
        (images, TypeError, r"n x 3 x 32 x 32 .* got a tensor \[3, 32, 32\]"),
        ([(images, torch.zeros(6))], TypeError, "without labels; got <class 'tuple'>"),
    ):
        with pytest.raises(kind, match=message):
            calibrated_statistics(net, widths, given)  # type: ignore[arg-type]


def test_statistics_of_other_widths_are_refused(net: SlimmableNet) -> None:
    widths, other = net.space.uniform(0.5), net.space.uniform(0.7)
    found = calibrated_statistics(net, widths, batches(0))
    before = net.widths
    for run in (
        lambda: net.set_widths(other, found),
        lambda: net.at(other, found).__enter__(),
        lambda: net.extract(other, found),
    ):
        with pytest.raises(ValueError, match=f"are of the widths {widths}, not {other}: calibrate"):
            run()
    assert net.widths == before
    by_hand = NormStatistics(found.means, found.variances)  # of nobody knows what
    with net.at(widths, by_hand):
        assert net.widths == widths


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.half, 0.01), (torch.double, 1e-6)]
)
def test_a_network_of_another_precision_is_calibrated_and_extracted(
    dtype: torch.dtype, tolerance: float
) -> None:
    """Tolerances, relative to the largest score: some roundings of 2^-9, 2^-12 and 2^-25."""
    net, images = tiny_net(in_chans=3, size=32).eval(), batches(0)[0]
    widths = net.space.uniform(0.5)
    found = calibrated_statistics(net, widths, [images])
    with torch.no_grad():
        expected = net.extract(widths, found)(images)
        net.to(dtype)
        images = images.to(dtype)
        for statistics in (found, calibrated_statistics(net, widths, [images])):
            plain = net.extract(widths, statistics)(images)
            with net.at(widths, statistics):
                scores = net(images)
            assert scores.dtype == plain.dtype == dtype
            for each in (scores, plain):
                assert (each.float() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.filterwarnings("error")
def test_a_sub_network_that_is_not_calibrated_warns_once_and_says_what_helps() -> None:
    net, widths = tiny_net(in_chans=3, size=32), tiny_net().space.smallest
    (images, *_) = batches(0)
    with net.at(widths):
        net(images)  # in training, by the batch
    net.eval()(images)  # at full width
    statistics = calibrated_statistics(net, widths, [images])
    with net.at(widths, statistics):
        net(images)
    net.set_widths(widths)
    with pytest.warns(UserWarning, match=r"calibrated_statistics\(net, widths, batches\)") as told:
        net(images)
    net(images)
    assert [each.filename for each in told] == [__file__]
