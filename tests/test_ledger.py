"""What a network does is booked as it runs, to the MAC of torch's own counter."""

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pareco.ledger import Ledger, Macs
from pareco.schema import PHASES
from pareco.slimmable import calibrated_statistics, make_slimmable
from tests.conftest import named_model, tiny_net


def alone(own: Macs) -> list[Macs]:
    return [own]


def spent(ledger: Ledger, *fields: str) -> dict[str, tuple[Any, ...]]:
    """Return these fields of the phases in which anything is settled."""
    found = {phase: tuple(each[f] for f in fields) for phase, each in ledger.state().items()}
    return {phase: each for phase, each in found.items() if any(each)}


def macs(ledger: Ledger) -> dict[str, tuple[Any, ...]]:
    return spent(ledger, "forward_macs", "backward_macs")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time that the ledger sees, which tests set."""
    now = [100.0]
    monkeypatch.setattr("pareco.ledger.time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_a_backward_pass_is_booked_as_two_forward_ones_as_torch_counts_it() -> None:
    """But for the gradient of the images, which the first convolution need not compute.

    Each of the others multiplies once for the gradient of its input, once for that of its weights.
    """
    net, images = tiny_net().train(), torch.randn(3, 1, 8, 8)
    labels = torch.tensor([1, 2, 3])
    ledger = Ledger()
    net.book_in(ledger)
    widths = net.space.uniform(0.6)
    with net.at(widths), ledger.during("training"):
        with FlopCounterMode(display=False) as forward:
            loss = F.cross_entropy(net(images), labels)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    ledger.settle(alone)
    count = forward.get_total_flops() // 2
    stem = net.get_submodule("conv1")
    first = 3 * widths[0] * 8 * 8 * 9  # images, output channels, positions, weights of each
    assert isinstance(stem, torch.nn.Module)
    assert count == 3 * int(net.cost.macs(widths))
    assert backward.get_total_flops() // 2 == 2 * count - first
    assert macs(ledger) == {"training": (count, 2 * count)}


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet18"])
def test_every_pass_is_booked_by_its_widths_and_images(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = named_model(name, num_classes=10)
    net = make_slimmable(model, torch.zeros(1, 3, 32, 32))
    ledger = Ledger()
    net.book_in(ledger)
    passes = [(net.space.largest, 2), (net.space.uniform(0.5), 3), (net.space.smallest, 1)]
    with ledger.during("choice"), torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            for widths, images in passes:
                with net.at(widths):
                    net.eval()(torch.randn(images, 3, 32, 32))
        with FlopCounterMode(display=False) as calibration:
            calibrated_statistics(net, net.space.smallest, [torch.randn(4, 3, 32, 32)] * 2)
    ledger.settle(alone)
    counted = (counter.get_total_flops() + calibration.get_total_flops()) // 2
    by_hand = [images * int(net.cost.macs(widths)) for widths, images in passes]
    assert counted == sum(by_hand) + 8 * int(net.cost.macs(net.space.smallest))
    assert macs(ledger) == {"choice": (counted, 0)}


def test_the_count_for_a_pass_is_the_cost_models(generator: torch.Generator) -> None:
    net = tiny_net()
    for widths in [net.space.sample(generator) for _ in range(20)]:
        assert net.cost.macs_at(widths) == int(net.cost.macs(widths))


def test_what_is_not_differentiated_has_no_backward_pass() -> None:
    """A backward pass is booked when it runs, in the phase that it runs in, as often as it does."""
    net, ledger = tiny_net().train(), Ledger()
    net.book_in(ledger)
    full = int(net.cost.macs(net.space.largest))
    with ledger.during("search"):
        scores = net(torch.randn(2, 1, 8, 8))  # could be, but is not
        score = net(torch.randn(2, 1, 8, 8)).sum()
    with ledger.during("training"):
        score.backward(retain_graph=True)
        score.backward()
    ledger.settle(alone)
    assert scores.requires_grad
    assert macs(ledger) == {"search": (4 * full, 0), "training": (0, 8 * full)}


def test_booking_changes_no_score_and_no_gradient() -> None:
    images = torch.randn(4, 1, 8, 8)

    def outcome(ledger: Ledger | None) -> list[Tensor]:
        net = tiny_net().train()
        net.book_in(ledger)
        scores = net(images)
        scores.square().sum().backward()
        return [scores, *(each.grad for each in net.parameters() if each.grad is not None)]

    ledger = Ledger()
    with ledger.during("training"):
        booked = outcome(ledger)
    assert all(map(torch.equal, booked, outcome(None)))


def test_a_network_of_a_run_runs_in_no_phase_unbooked() -> None:
    net = tiny_net()
    net.book_in(Ledger())
    with pytest.raises(RuntimeError, match="only in a phase of its ledger"):
        net(torch.randn(2, 1, 8, 8))
    net.book_in(None)
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_time_within_a_phase_within_another_is_the_inner_ones(clock: list[float]) -> None:
    ledger = Ledger()
    with ledger.during("training"):
        clock[0] += 3
        with ledger.during("search"):
            clock[0] += 5
        ledger.settle(lambda own: [own] * 4)  # four processes
        clock[0] += 7
        with suppress(ZeroDivisionError), ledger.during("search"):
            clock[0] += 1
            raise ZeroDivisionError
        clock[0] += 2
    clock[0] += 50  # in no phase
    assert spent(ledger, "seconds", "device_seconds") == {"training": (3, 12), "search": (5, 20)}
    ledger.settle(alone)
    assert spent(ledger, "seconds", "device_seconds") == {"training": (12, 21), "search": (6, 21)}


def test_all_processes_settle_what_each_of_them_did() -> None:
    ledger = Ledger()
    with ledger.during("test"):
        ledger.book(forward_macs=2**60 + 1)  # no float has it
    other: Macs = {**dict.fromkeys(PHASES, (0, 0)), "test": (10, 0), "training": (7, 14)}
    ledger.settle(lambda own: [own, other])
    assert macs(ledger) == {"test": (2**60 + 11, 0), "training": (7, 14)}
    assert ledger.total().forward_macs == 2**60 + 18


def test_what_is_not_settled_can_be_lost_and_is_no_part_of_the_total(clock: list[float]) -> None:
    ledger = Ledger()
    with ledger.during("choice"):
        ledger.book(forward_macs=5)
        ledger.settle(alone)
        ledger.book(forward_macs=3)
        clock[0] += 2
        ledger.lose()
        ledger.settle(alone)
    assert macs(ledger) == {"choice": (5, 0), "lost": (3, 0)}
    assert spent(ledger, "seconds") == {"lost": (2,)}
    assert ledger.total().forward_macs == 5
    ledger.lose_up_to(forward_macs=25, backward_macs=40)
    assert macs(ledger) == {"choice": (5, 0), "lost": (23, 40)}
    ledger.lose_up_to(forward_macs=0, backward_macs=0)
    again = Ledger(ledger.state())
    assert again.state() == ledger.state()
    assert macs(again) == {"choice": (5, 0), "lost": (23, 40)}
