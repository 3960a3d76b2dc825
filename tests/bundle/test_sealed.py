"""Damaged files are refused, with what is wrong; bundles are small."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as tensors_in
from safetensors.torch import save

import pareco
from pareco import BundleError, FrontNetwork, save_bundle
from pareco.bundle.sealed import opened
from pareco.models import create_model
from pareco.slimmable import NormStatistics
from tests.bundle.making import loaded_as

pytestmark = pytest.mark.filterwarnings("error")


def test_files_that_are_no_bundle_are_refused_with_what_is_wrong(
    bundled: Callable[..., Path], tmp_path: Path
) -> None:
    content, path = bundled("us_net").read_bytes(), tmp_path / "some.pareco"
    size = int.from_bytes(content[:8], "little")
    changed = bytearray(content)
    changed[-1] ^= 1
    for damaged, message in (
        (b"", "truncated, or no bundle: 0 bytes"),
        (content[:5], "truncated, or no bundle: 5 bytes"),
        (content[: size - 9], "truncated, or no bundle"),
        (content[:-1], rf"truncated: {len(content) - 1} bytes of {len(content)}"),
        (content + b"0", "checksum is another"),
        (bytes(changed), "checksum is another"),
        (content.replace(b"bundle-1", b"bundle-2"), "newer bundle: of format 2, .* up to 1"),
        (content.replace(b"pareco-bundle-1", b"pareco-checkpt-3"), "truncated|damaged|no bundle"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "it is no bundle"),
        (save({"a": torch.zeros(3)}), "a safetensors file, but no bundle"),
        (save({"a": torch.zeros(3)}, {"pareco": "x"}), "header is damaged"),
        (save({"a": torch.zeros(3)}, {"pareco": "[" * 100_000}), "header is damaged"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=message) as told:
            pareco.load(path)
        assert str(told.value).startswith(f"{path}: ")
    with pytest.raises(FileNotFoundError):
        pareco.load(tmp_path / "none")
    assert {name: each.tolist() for name, each in tensors_in(content).items()}  # by any reader


def test_thousands_of_damaged_files_are_refused(bundled: Callable[..., Path]) -> None:
    """Flips, truncations, insertions, deletions, blocks that are swapped or zero: 20,000 files."""
    content, source = bundled("us_net").read_bytes(), random.Random(0)
    size = int.from_bytes(content[:8], "little")
    refused = 0
    for number in range(20_000):
        end = (8, 8 + size, len(content))[number % 3]  # the length, the header, everything
        at, data = source.randrange(end), bytearray(content)
        other, count = source.randrange(len(content)), source.randrange(1, 64)
        match number // 3 % 7:
            case 0:
                data[at] ^= 1 << source.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = source.randbytes(count)
            case 3:
                del data[at : at + count]
            case 4:
                data[at : at + count] = content[other : other + count]
            case 5:
                data[at : at + count] = bytes(len(data[at : at + count]))
            case 6:
                data[at : at + count] = source.randbytes(len(data[at : at + count]))
        if bytes(data) != content:
            with pytest.raises(BundleError):
                opened(bytes(data))
            refused += 1
    assert refused > 19_000


@pytest.mark.slow
def test_descriptions_that_are_sealed_again_load_or_are_refused(
    bundled: Callable[..., Path],
) -> None:
    """Every field of a description replaced by every kind of nonsense, with a right checksum."""
    path = bundled("us_net")
    description, tensors = opened(path.read_bytes())
    fields = json.loads(description.model_dump_json(exclude={"sha256", "format"}))
    fields["origin"]["packages"] = {"torch": "2"}  # one of many is enough
    nonsense = (None, True, -1, 0, 2**70, 1e308, "", "os:system", [], {}, ["a"], {"a": 1})
    images, places = torch.zeros(2, 1, 8, 8), [*_places(fields)]
    scores = pareco.load(path).network(0)(images)
    refused = 0
    for *parents, last in places:
        for value in nonsense:

            def change(each: Any, path: Any = parents, key: Any = last, value: Any = value) -> None:
                each["origin"]["packages"] = {"torch": "2"}
                for part in path:
                    each = each[part]
                each[key] = value

            try:
                bundle = loaded_as(path.with_name("n.pareco"), description, tensors, change)
            except BundleError:
                refused += 1
            else:  # a number that is only told
                assert torch.equal(bundle.network(0)(images), scores)
    assert 0.5 < refused / (len(places) * len(nonsense)) < 1


def _places(fields: Any, *above: Any) -> Any:
    """Yield the path of every field, of lists that of the first item."""
    items = fields.items() if isinstance(fields, dict) else enumerate(fields[:1])
    for key, value in items:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from _places(value, *above, key)


def test_a_network_of_mobilenetv2_takes_at_most_two_percent_of_the_weights(tmp_path: Path) -> None:
    """The full one, whose statistics are the most, with its names in the file's header."""
    model = create_model("mobilenetv2_100", num_classes=1000)
    net = pareco.make_slimmable(model, torch.zeros(1, 3, 224, 224))
    front = []
    for widths in (net.space.largest, net.space.uniform(0.99), net.space.smallest):
        with net.at(widths):
            channels = {layer.name: layer.used_outputs for layer in net.norms()}
        means = {name: torch.zeros(count) for name, count in channels.items()}
        variances = {name: torch.ones(count) for name, count in channels.items()}
        found = NormStatistics(means, variances)
        front.append(FrontNetwork(widths=widths, statistics=found, search_loss=0))
    sizes, classes = [], [*map(str, range(1000))]
    for count in (1, 2, 3):
        path = tmp_path / "a.pareco"
        save_bundle(path, net, front[:count], builder="", image_size=224, classes=classes)
        sizes.append(path.stat().st_size)
    weights = sum(each.numel() * each.element_size() for each in net.state_dict().values())
    assert sizes[0] < 1.02 * weights
    assert sizes[1] - sizes[0] < 0.014 * weights
    assert 0.005 * weights < sizes[2] - sizes[1] < 0.006 * weights
