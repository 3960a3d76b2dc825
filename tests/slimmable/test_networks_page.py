"""The page on making one's own network slimmable runs as it stands, and says what comes out."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from pareco.slimmable.layers import SlicedLayer
from tests.documents import DOCS, python_in

PAGE = python_in("networks.md", 85)


def test_a_network_of_timm_becomes_slimmable_and_plain_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names: dict[str, Any] = {}
    exec(PAGE[0], names)
    assert capsys.readouterr().out.split() == re.findall(r"print\(.*\)  # (\w+)", PAGE[0])
    plain = names["plain"].eval()
    assert not [each for each in plain.modules() if isinstance(each, SlicedLayer)]
    with torch.inference_mode():
        torch.testing.assert_close(plain(names["images"]), names["scores"].detach())


def test_the_loop_of_ones_own_trains_all_widths() -> None:
    """On stripes that lie or stand: every width tells them apart, and did not before."""
    names: dict[str, Any] = {"torch": torch}
    exec(PAGE[0].partition("\nnet")[0], names)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (40, 32), generator=generator)
    lying = (torch.arange(8) % 2).float().expand(8, 8)
    noise = torch.randn(40, 32, 1, 8, 8, generator=generator)
    images = torch.where(labels[..., None, None].bool(), lying, lying.T)[:, :, None] + noise / 4
    names["batches"] = list(zip(images, labels, strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(PAGE[1], names)
    net = names["net"]
    for widths in (net.space.largest, net.space.uniform(0.7), net.space.smallest):
        with net.at(widths), torch.no_grad():
            found = net(images[0]).argmax(dim=1)
        assert (found == labels[0]).float().mean() > 0.95
    assert (net.space.maxima, [*net.space.smallest]) == ((16, 32), [6, 13])


def test_what_the_page_says_of_a_network_that_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names: dict[str, Any] = {"torch": torch, "nn": nn}
    exec(PAGE[0].partition("\nnet")[0], names)
    exec(PAGE[2], names)
    said = " ".join(capsys.readouterr().out.split())
    assert said
    assert said in " ".join((DOCS / "networks.md").read_text().split())
