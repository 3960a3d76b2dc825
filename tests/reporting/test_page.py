"""The page's text: content, escaping, nothing from outside, the same bytes again."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pandas as pd
import pytest

import pareco.reporting.page as package
from pareco.reporting.page import page_html
from pareco.reporting.page.chart import chart_data
from pareco.reporting.page.document import first_section, what_it_shows
from pareco.reporting.records import Records
from pareco.reporting.statistics import run_measures
from tests.reporting.pages import (
    ABSENT,
    CLAIM,
    HOSTILE,
    RAN,
    SVG,
    renamed,
    section_of,
    without_latency,
)

VENDOR = Path(package.__file__).parent / "files" / "vendor" / "chart.js"
ADDRESSES = {"href", "src", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """Elements, with their attributes, and the text within each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.visible = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img", "input"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data
            if self.open[-1] not in ("script", "style"):
                self.visible += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self) -> list[dict]:
        """The content of the data blocks."""
        kinds = [each.get("type") for each in self.all("script")]
        scripts = zip(kinds, self.texts["script"], strict=True)
        return [json.loads(text) for kind, text in scripts if kind == "application/json"]


@pytest.fixture(scope="module")
def text(records: Records) -> str:
    return page_html([section_of(without_latency(records))], [CLAIM], [RAN, ABSENT])


def test_everything_that_a_reader_looks_for_is_there(text: str, records: Records) -> None:
    shown = " ".join(Page(text).visible.split())
    for each in (
        *RAN.cells,
        "1 not run elsewhere: resnet8 on imagenet, 224 px, scale paper",
        *(CLAIM.statement, CLAIM.source, CLAIM.outcome, CLAIM.ours, CLAIM.evidence),
        *("0 reproduced", "0 contradicted", "0 inconclusive", "1 not run at that scale"),
        "digits: resnet8 on cifar10, 32 x 32 pixels",
        "make replicate-digits",
        *("3 methods, 2 seeds; A processor; commit 0123abc.", "torch 2.9.0"),
        *("pareco, seed0", "images per second812.0", "gpusnone"),
        "Error against MACs",
        "Latency not measured",
    ):
        assert each in shown
    tables = section_of(without_latency(records)).tables
    for each in (*tables.notes, *tables.footnotes):
        assert " ".join(each.split()) in shown
    assert not Page(text).texts.get("strong")  # of two seeds


def test_best_numbers_are_bold(records: Records) -> None:
    third = records.fronts[records.fronts["seed"] == 0].assign(seed=2)
    three = replace(without_latency(records), fronts=pd.concat([records.fronts, third]))
    section = section_of(three)
    best = [c.text for t in section.tables.tables for row in t.rows for c in row if c.best]
    assert best
    assert Page(page_html([section], [], [])).texts["strong"] == best


def test_a_smaller_scale_and_uncommitted_changes_are_told(records: Records) -> None:
    environment = {**records.environment}
    environment["environments"] = [{**records.environment["environments"][0], "dirty": True}]
    experiment = replace(records.experiment, scale="short: 3 epochs")
    small = replace(records, experiment=experiment, environment=environment)
    page = Page(page_html([section_of(small)], [], [RAN]))
    shown = " ".join(page.visible.split())
    assert "scale: short: 3 epochs, not the published schedule" in shown
    assert "Run at a smaller scale: digits" in shown
    assert "commit 0123abc with uncommitted changes" in shown
    assert "whole schedule" not in shown


def test_names_and_cells_stay_text(records: Records) -> None:
    hostile = section_of(renamed(records, HOSTILE))
    hostile = replace(hostile, figures={HOSTILE: SVG}, how=HOSTILE)
    fields = dict.fromkeys(("id", "statement", "source", "outcome", "ours", "evidence"), HOSTILE)
    claim = replace(CLAIM, **fields, experiments=(HOSTILE,))
    row = replace(RAN, experiment=HOSTILE, scale=HOSTILE, outcome=HOSTILE, folder=HOSTILE)
    text = page_html([hostile], [claim], [row])
    page, plain = Page(text), Page(page_html([section_of(records)], [CLAIM], [RAN]))
    assert len(page.all("script")) == len(plain.all("script")) == 3
    assert [each for each in page.all("img") if "onerror" in each] == []
    assert [(each["alt"] or "").startswith(HOSTILE) for each in page.all("img")] == [True]
    assert page.visible.count(HOSTILE) > 15
    data = page.data[0]
    assert data["groups"][0] == [HOSTILE, 16]
    assert HOSTILE in [method["label"] for method in data["methods"]]
    block = text[text.index('type="application/json">') :]
    assert not set(block[24 : block.index("</script>")]) & set("<>&\u2028\u2029")


def test_nothing_is_fetched(text: str) -> None:
    page = Page(text)
    for tag, attributes in page.elements:
        for name in ADDRESSES & attributes.keys():
            assert re.match(r"#|data:", attributes[name] or ""), (tag, name)
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    [style] = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style
    assert "sourceMappingURL" not in text


def test_the_policy_lets_only_the_scripts_and_the_style_of_the_page_run(text: str) -> None:
    page = Page(text)
    library, script, style = (
        base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()
        for each in (*page.texts["script"][-2:], *page.texts["style"])
    )
    [policy] = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert (policy or "").split("; ")[:4] == [
        *("default-src 'none'", "img-src data:"),
        f"style-src 'sha256-{style}'",
        f"script-src 'sha256-{library}' 'sha256-{script}'",
    ]


def unique_ids(page: Page) -> list[str | None]:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    return ids


def test_references_within_the_page_lead_somewhere(text: str) -> None:
    page = Page(text)
    ids = unique_ids(page)
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name, ids[0]) in ids
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert max(np.diff(levels)) == 1
    assert page.all("html") == [{"lang": "en"}]
    assert all(each["alt"] for each in page.all("img"))


def test_experiments_whose_names_differ_in_signs_only_have_links_of_their_own(
    records: Records,
) -> None:
    sections = [section_of(renamed(records, name)) for name in ("a b", "a/b", "a-b")]
    unique_ids(Page(page_html(sections, [], [])))


def test_a_figure_is_embedded_byte_for_byte(text: str) -> None:
    images = Page(text).all("img")
    assert len(images) == 2  # at the top, and in its section
    for image in images:
        kind, _, content = (image["src"] or "").partition(",")
        assert kind == "data:image/svg+xml"
        assert unquote_to_bytes(content) == SVG


def test_the_chart_has_the_networks_of_the_front_and_the_costs_that_were_measured(
    records: Records,
) -> None:
    page = Page(page_html([section_of(records)], [], []))
    [data] = page.data
    fronts, networks = records.fronts, data["networks"]
    labels = [data["methods"][index]["label"] for index in networks["method"]]
    assert labels == list(fronts["method"])
    for column in ("seed", "widths"):
        assert networks[column] == list(fronts[column])
    assert networks["costs"]["params"] == list(fronts["params"])
    assert networks["top1"] == pytest.approx(list(fronts["test_top1_error"]), abs=1e-4)
    assert data["groups"] == [[each.name, each.maximum] for each in records.experiment.groups]
    assert data["costs"]["latency_ms"]["full"] == 2.6
    latencies = networks["costs"]["latency_ms"]
    assert latencies == pytest.approx(list(fronts["latency_ms"]), abs=1e-4)
    assert not [each for each in page.all("input") if "disabled" in each]
    assert "How latency was measured" in page.visible
    assert "latency_ms" not in chart_data(without_latency(records), "pareco")["costs"]


def test_a_line_has_the_mean_and_the_interval_of_three_seeds(records: Records) -> None:
    """Of two there is no band. Of 40, 40, 46: 42 -+ 4.30265 x 2; where all agree there is none."""
    columns = ["seed", "macs", "search_loss", "test_top1_error"]
    rows = [(0, 10, 1.0, 50.0), (0, 20, 0.5, 30.0), (1, 15, 0.9, 40.0), (1, 30, 0.4, 20.0)]
    rows += [(1, 25, 0.95, 1.0)]  # of a worse search loss: no budget selects it
    front = records.fronts.iloc[: len(rows)].copy()
    front[columns] = rows
    lines = chart_data(replace(records, fronts=front), "pareco")["lines"]["macs"]
    assert lines == [[[15, 40, None, None], [20, 31.6667, None, None], [30, 25, None, None]]]
    rows = [(0, 10, 0.5, 40.0), (1, 10, 0.5, 40.0), (2, 10, 0.5, 46.0)]
    rows += [(seed, 20, 0.4, 30.0) for seed in range(3)]
    front = records.fronts.iloc[: len(rows)].copy()
    front[columns] = rows
    lines = chart_data(replace(records, fronts=front), "pareco")["lines"]["macs"]
    assert lines == [[[10, 42, 33.3947, 50.6053], [20, 30, None, None]]]


def test_methods_have_shapes_of_their_own(records: Records) -> None:
    fronts = [records.fronts.assign(method=f"method{index}") for index in range(7)]
    many = replace(records, fronts=pd.concat(fronts, ignore_index=True))
    methods = chart_data(many, "method3")["methods"]
    assert methods[0]["label"] == "method3"
    assert len({(method["point"], method["rotation"]) for method in methods}) == 7
    assert len({method["outline"] for method in methods}) == 7
    assert methods[0]["dash"] == []


def test_the_page_opens_with_the_best_experiment(records: Records) -> None:
    """The published scale, then the seeds of two methods, test images, and networks."""
    ranked = [
        replace(records, experiment=replace(records.experiment, scale="short")),
        replace(records, fronts=records.fronts.drop(index=records.fronts.query("seed == 1").index)),
        replace(records, fronts=records.fronts.iloc[:-1]),
        records,
        replace(records, experiment=replace(records.experiment, test_images=9)),
    ]
    sections = [section_of(each) for each in ranked]
    for count in range(1, 5):
        assert first_section(sections[count::-1]) is sections[count]
    assert first_section([replace(sections[0], figures={})]) is None
    assert Page(page_html([replace(sections[0], figures={})], [], [])).all("img") == []
    assert "No experiment has run." in Page(page_html([], [], [ABSENT])).visible


def test_the_first_sentence_is_true_of_the_records(records: Records) -> None:
    measures = run_measures(records.fronts, "macs", records.experiment.full_cost)
    areas = measures["area"].groupby("method").mean().map("{:.2f}".format)
    span = "over budgets from 20 to 100% of the full network’s MACs, the mean test error is"
    by_seed = measures["area"].unstack("method")
    reach = 25.4517 / 2**0.5  # Student's quantile for two seeds and 2.5% / 2
    for first, least in (("pareco", "random"), ("uniform", "pareco")):
        difference = by_seed[least] - by_seed[first]
        low, high = (difference.mean() + side * reach * difference.std() for side in (-1, 1))
        assert what_it_shows(records, first) == (
            f"{span} {areas[first]}% with {first}, and {areas[least]}% with {least}, the least of"
            f" the 2 others with equal budgets (means over 2 seeds; {least} minus {first}:"
            f" {low:+.2f} to {high:+.2f}, 95% t interval, adjusted for 2: no order)."
        )
    one = replace(records, fronts=records.fronts[records.fronts["seed"] == 0])
    assert "1 seed each; that settles no order" in what_it_shows(one, "pareco")
    exempt = replace(records.experiment, budget_exempt=("pareco",))
    assert "settles no order" in what_it_shows(replace(records, experiment=exempt), "pareco")


def test_the_chart_library_is_as_published_and_its_license_goes_with_it(text: str) -> None:
    digest = hashlib.sha256((VENDOR / "chart.umd.min.js").read_bytes()).hexdigest()
    assert digest == "87364cc2b2a76a6684929e7d6b80b18a897794db38400caff1fcf1791c6925d2"
    assert (VENDOR / "LICENSE.md").read_text().strip() in text
