"""Networks that are saved and loaded again, whole or changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pareco
from pareco import Bundle, FrontNetwork, save_bundle
from pareco.bundle import sealed as sealed_module
from pareco.bundle.sealed import Description, opened, sealed
from pareco.models import create_model
from pareco.slimmable import NormStatistics, SlimmableNet, calibrated_statistics
from pareco.widths import Widths


def statistics_of(net: SlimmableNet, widths: Widths, seed: int = 0) -> NormStatistics:
    generator = torch.Generator().manual_seed(seed)
    side = 8
    return calibrated_statistics(net, widths, [torch.randn(9, 1, side, side, generator=generator)])


def saved(path: Path, net: SlimmableNet, **losses: tuple[float, float]) -> Path:
    """Save uniform networks by their multipliers in percent, with search loss and test error."""
    networks = {net.space.uniform(int(name[1:]) / 100): each for name, each in losses.items()}
    front = [
        FrontNetwork(
            widths=widths,
            statistics=statistics_of(net, widths),
            search_loss=loss,
            test_top1_error=error,
        )
        for widths, (loss, error) in networks.items()
    ]
    save_bundle(
        path,
        net,
        front,
        builder="tests.no_such_module:made",
        image_size=8,
        classes=[*map(str, range(10))],
        mean=[100],
        std=[50],
    )
    return path


def made() -> nn.Module:
    return create_model("cifar_resnet8", num_classes=10, in_chans=1, base_width=4)


def loaded_with(path: Path, change: Callable[[dict[str, Any]], Any]) -> Bundle:
    """Load a bundle after its description is changed, and sealed again."""
    description, tensors = opened(path.read_bytes())
    return loaded_as(path.with_name("changed.pareco"), description, tensors, change)


def loaded_as(
    path: Path,
    description: Description,
    tensors: dict[str, Tensor],
    change: Callable[[dict[str, Any]], Any] = lambda each: None,
) -> Bundle:
    fields = json.loads(description.model_dump_json(exclude={"sha256", "format"}))
    change(fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed_module, "_described", lambda text: None)
        content = sealed(fields, tensors)
    path.write_bytes(content)
    return pareco.load(path)
