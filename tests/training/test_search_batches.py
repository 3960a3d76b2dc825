"""The images that search losses are measured on in training."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pareco.config import Experiment
from pareco.data import Batch, load_data
from pareco.methods import Method
from pareco.processes import Share
from pareco.training.search_batches import SearchBatches
from replications.catalogue import method_named
from tests.experiments import TINY


class Own(Method):
    """Refreshes on images of its own number."""

    name = "own"
    own_search = {"refresh_images": 30}  # noqa: RUF012


def experiment(split: str, refresh_images: int | None) -> Experiment:
    data: Any = replace(TINY.data, search_split=split)
    return replace(TINY, data=data, search=replace(TINY.search, refresh_images=refresh_images))


def batches(
    split: str, refresh_images: int | None, *, share: Share = Share(), kind: str = "pareco"
) -> SearchBatches:
    chosen = experiment(split, refresh_images)
    return SearchBatches(chosen, method_named(kind), load_data(chosen.data), 3, share)


def trained_on() -> Batch:
    return torch.zeros(100, 1, 8, 8), torch.zeros(100, dtype=torch.int64)


def test_the_papers_is_the_training_batch() -> None:
    batch = trained_on()
    assert batches("batch", None).at(5, batch) is batch
    assert batches("batch", None).images == 100


@pytest.mark.parametrize(
    ("split", "refresh_images", "images"),
    [
        ("holdout", None, 100),  # as many as a batch, which are all there are
        ("holdout", 40, 40),
        ("holdout", 4000, 100),
        ("batch", 40, 40),
        ("batch", 250, 200),  # whole batches
        ("batch", 4000, 800),  # of 800 to train on
    ],
)
def test_others_are_drawn_anew_in_each_step(
    split: str, refresh_images: int | None, images: int
) -> None:
    found = batches(split, refresh_images)
    (first, labels), (again, _) = found.at(5, trained_on()), found.at(5, trained_on())
    other, _ = found.at(6, trained_on())
    assert len(first) == len(labels) == images == found.images
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    data = load_data(experiment(split, refresh_images).data)
    drawn_from = data.search if split == "holdout" else data.train
    pool, _ = drawn_from.normalized(torch.arange(len(drawn_from)))
    assert pictures(first) <= pictures(pool)


def pictures(images: Tensor) -> set[bytes]:
    """Return them as a set; the last digit of a float differs with the place in a vector."""
    return {each.numpy().tobytes() for each in (100 * images).round().to(torch.int32)}


@pytest.mark.parametrize(("split", "refresh_images"), [("holdout", 41), ("batch", 300)])
def test_parts_of_processes_are_those_of_one(split: str, refresh_images: int) -> None:
    """Batch by batch, as joint batch norm takes its statistics over all processes."""
    shares = [batches(split, refresh_images, share=Share(rank, 2)) for rank in range(2)]
    alone = batches(split, shares[0].images)
    whole = alone.at(7, trained_on())[0].split(100)
    parts = [each.at(7, trained_on())[0].split(50) for each in shares]
    assert len(whole) == len(parts[0]) == max(shares[0].images // 100, 1)
    for index, each in enumerate(whole):
        assert torch.equal(each, torch.cat([part[index] for part in parts]))


def test_a_methods_own_number_is_taken_where_none_is_set() -> None:
    data = load_data(TINY.data)
    assert SearchBatches(experiment("holdout", None), Own, data, 3, Share()).images == 30
    assert SearchBatches(experiment("holdout", 60), Own, data, 3, Share()).images == 60
