"""The words for costs."""

import pytest

from pareco.config import COSTS
from pareco.reporting.records import AXES, COST_WORDS, LATENCY, amount


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"),
        (16_300, "16.3 k"),
        (300_774_272, "301 M"),
        (999_700_000, "1 G"),
        (4_089_184_256, "4.09 G"),
    ],
)
def test_amounts_have_three_digits(count: int, text: str) -> None:
    assert amount(count) == text
    assert COST_WORDS["macs"].full(count) == f"{text} MACs"


def test_a_cost_with_a_unit_is_no_count() -> None:
    assert COST_WORDS[LATENCY].amount(3.2149) == "3.21 ms"
    assert COST_WORDS[LATENCY].full(0.0123456) == "0.0123 ms latency"


def test_every_cost_has_words_and_a_plot_of_its_own() -> None:
    assert tuple(COST_WORDS) == (*COSTS, LATENCY)
    assert tuple(COST_WORDS) == AXES
    figures = [words.figure for words in COST_WORDS.values()]
    assert figures[0] == "error_vs_flops"
    assert figures[-1] == "error_vs_latency"
    assert figures[1:-1] == [f"error_vs_{cost}" for cost in COSTS[1:]]
