"""The W&B report: its numbers worked out by hand, its content, and the whole way to the stub."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pareco.reporting.records import Records, write_records
from pareco.reporting.wandb_report import (
    GROUPING,
    digest,
    report_json,
    reports_library,
    reproduction,
    summary_lines,
    summary_widths,
    wandb_report,
)
from tests.reporting.claim_records import records_of
from tests.reporting.conftest import ENVIRONMENT
from tests.tracking.clients import ROOT, run_script
from tests.wandb_server import WandbServer

CURVES = pd.DataFrame({"method": "a", "seed": [0, 1, 0, 1], "step": [10, 10, 20, 20]}).assign(
    loss_largest=[4.0, 2.0, 1.0, 2.0], loss_smallest=[8.0, 6.0, 2.0, 4.0]
)


@pytest.fixture
def small() -> Records:
    """Two seeds of a method; the network with 20% (40% error), 30% (30%) and 100% (10%, 20%)."""
    fronts = {("a", 0): [(200, 40.0), (1000, 10.0)], ("a", 1): [(300, 30.0), (1000, 20.0)]}
    return replace(records_of(fronts, environment=ENVIRONMENT), curves=CURVES)


def test_a_summary_worked_out_by_hand(small: Records) -> None:
    expected = [*((float(percent), 35.0) for percent in range(30, 100)), (100.0, 15.0)]
    assert summary_lines(small, "a") == {
        ("front/macs/percent", "front/macs/error"): expected,
        ("front/peak_activations/percent", "front/peak_activations/error"): expected,
        ("curve/step", "curve/loss_largest"): [(10.0, 3.0), (20.0, 1.5)],
        ("curve/step", "curve/loss_smallest"): [(10.0, 7.0), (20.0, 3.0)],
    }
    assert summary_widths(small, "a") == {"stem": 25.0}  # 200 and 300 of 1000 channels


def test_what_has_no_meaning_is_left_out(small: Records) -> None:
    exempt = replace(small.experiment, budget_exempt=("a",))
    lines = summary_lines(replace(small, experiment=exempt), "a")
    assert [axis for axis, _ in lines] == ["front/macs/percent", "front/peak_activations/percent"]
    seeds = {("a", 0): [(200, 40.0)], ("a", 1): [(700, 30.0)]}
    assert (
        summary_widths(records_of(seeds), "a") == {}
    )  # the second seed has nothing that fits into 60%


def test_other_numbers_are_other_runs(small: Records) -> None:
    changed = small.fronts.assign(test_top1_error=[40.0, 10.0, 30.0, 20.1])
    assert digest(replace(small, fronts=changed)) != digest(small)
    assert digest(replace(small, fronts=small.fronts.copy())) == digest(small)


def content(records: Records) -> dict[str, Any]:
    texts = {"claims": "THE CLAIMS", "tables": "THE TABLES", "command": "make replicate-digits"}
    return json.loads(report_json(wandb_report(records, project="pareco", entity="", **texts)))


def test_a_report_is_made_without_a_network(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(reports_library().interface, "_get_api", refuse)
    found = content(records)
    assert found["title"] == "digits: resnet8 on cifar10, 32 x 32 pixels"
    blocks = found["blocks"]
    assert [each["text"] for each in blocks if each["type"] == "H2"] == [
        *("Claims of the paper", "Error over cost", "Training curves", "Widths"),
        *("Runs by method and seed", "Results", "How to reproduce"),
    ]
    texts = [each["text"] for each in blocks if each["type"] == "MarkdownBlock"]
    assert texts[:2] == ["THE CLAIMS", "THE TABLES"]
    for part in ("    make replicate-digits\n", "`0123abc`", "torch 2.9.0", "3 methods"):
        assert part in texts[2]
    grids = [each for each in blocks if each["type"] == "PanelGrid"]
    lines = [panel for grid in grids[:3] for panel in grid["panels"] if panel["type"] == "LinePlot"]
    assert [(each["x"], *each["y"]) for each in lines] == [*summary_lines(records, "pareco")]
    assert [each["x"] for each in lines] == [
        *(f"front/{cost}/percent" for cost in ("macs", "peak_activations", "latency_ms")),
        *("curve/step", "curve/step"),
    ]
    assert all(each["groupby"] == {"type": "Config", "name": "method"} for each in lines)
    (bars,) = grids[2]["panels"]
    groups = ("stem", "layer1-0", "layer2-0", "layer2-1", "layer3-0")
    assert [each["name"] for each in bars["metrics"]] == [f"width/{group}" for group in groups]
    group = f"Group = 'summary-digits-{digest(records)}'"
    assert [[each["filters"] for each in grid["runsets"]] for grid in grids[:3]] == [[group]] * 3
    (runs,) = grids[3]["runsets"]
    assert (runs["filters"], runs["groupby"]) == ("Group = 'digits'", [*GROUPING])
    assert [(each["x"], *each["y"]) for each in grids[3]["panels"]] == [
        ("front/cost", "front/error"),
        ("Step", "loss_largest"),
        ("Step", "loss_smallest"),
    ]
    assert not any("groupby" in each for each in grids[3]["panels"])  # the runset's groups


def test_a_smaller_scale_is_said_first(small: Records) -> None:
    scaled = replace(small, experiment=replace(small.experiment, scale="a tenth of the epochs"))
    found = content(scaled)
    warning = "**scale: a tenth of the epochs, not the published schedule**"
    assert found["blocks"][0] == {"type": "MarkdownBlock", "text": warning}
    assert "a tenth of the epochs" in found["description"]


def test_text_of_records_stays_text(small: Records) -> None:
    hostile = {**ENVIRONMENT, "cpu": "`</code><script>\n# x", "dirty": True}
    changed = replace(small, environment={"environments": [hostile]})
    text = reproduction(changed, "make replicate-digits")
    assert "on `'</code><script> # x`\n" in text
    assert "`0123abc with uncommitted changes`" in text


@pytest.mark.slow
def test_a_report_reaches_the_server_or_a_file(small: Records, tmp_path: Path) -> None:
    fronts = {
        (method, seed): [(250, 40.0 + extra), (1000, 30.0)]
        for method, extra in (("pareco", 0.0), ("us_net", 2.0))
        for seed in (0, 1)
    }
    records = records_of(fronts, experiment="imagenet_mbv2", environment=ENVIRONMENT)
    write_records(records, tmp_path / "results/imagenet_mbv2")
    named = replace(small.experiment, experiment="longer")
    longer = replace(small, experiment=named, fronts=small.fronts.assign(experiment="longer"))
    write_records(longer, tmp_path / "results/longer")
    shutil.copytree(ROOT / "results/published", tmp_path / "results/published")
    script = """
    from replications.wandb_commands import WandbReportCommand
    print(told(WandbReportCommand(name="imagenet_mbv2").carried_out))
    del os.environ["WANDB_API_KEY"], os.environ["WANDB_BASE_URL"]
    longer = WandbReportCommand(name="longer", json=Path("report.json"))
    print(told(longer.carried_out))
    """
    with WandbServer() as server:
        saved = run_script(tmp_path, server, script)
        assert not server.unknown
    address, *rest = saved.stdout.splitlines()
    assert address.startswith(f"{server.address}/someone/pareco/reports/imagenet_mbv2")
    assert rest == ["0", "report.json", "0"]
    (view,) = server.views
    spec = json.loads(view["spec"])
    for part in ("improvements up to 1.7%", "not run at that scale", "| pareco | 2 |", "0123abc"):
        assert part in view["spec"]
    assert {each["type"] for each in spec["blocks"]} >= {"panel-grid", "markdown-block", "heading"}
    *_, grid = [each for each in spec["blocks"] if each["type"] == "panel-grid"]
    (runset,) = grid["metadata"]["runSets"]
    keys = [(each["section"], each["name"]) for each in runset["grouping"]]
    assert keys == [("config", "method.value"), ("config", "seed.value")]
    assert '"imagenet_mbv2"' in json.dumps(runset["filters"])
    runs = {run.config["method"]: run for run in server.runs.values()}
    assert set(runs) == {"pareco", "us_net"}
    for method, error in (("pareco", 40.0), ("us_net", 42.0)):
        run = runs[method]
        assert run.attributes["groupName"].startswith("summary-imagenet_mbv2-")
        assert run.attributes["groupName"] in view["spec"]
        points = {
            row["front/macs/percent"]: row["front/macs/error"]
            for row in run.history
            if "front/macs/error" in row
        }
        assert points == {**dict.fromkeys(range(25, 100), error), 100: 30.0}
        assert run.summary["width/stem"] == 25.0
    text = (tmp_path / "report.json").read_text()
    for part in ("tests none of the paper's claims", "| a | 2 |", "run EXPERIMENT --name longer"):
        assert part in text
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.json"]
