"""The loop that holds a latency, on its page and in the script that tries it."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from tests.documents import DOCS, blocks_of, python_in

SCRIPT = DOCS / "examples" / "latency_target.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("latency_target", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_down_after_misses_and_up_after_slack(script: ModuleType) -> None:
    pace = script.Pace([300, 100, 200], target_ms=10)
    levels = []

    def told(milliseconds: float, times: int) -> int:
        for _ in range(times):
            pace.tell(milliseconds)
            levels.append(pace.budgets[pace.level])
        return levels[-1]

    assert told(50, 4) == 300
    assert told(50, 1) == 200  # the median of five is above the target
    assert told(50, 4) == 200  # what was measured before counts no more
    assert told(50, 20) == 100  # and there is nothing below
    assert told(8, 60) == 100  # in time, but no slack
    assert told(6, 19) == 100  # half of the last 40 have none
    assert told(6, 2) == 200
    assert told(6, 39) == 200
    assert told(6, 200) == 300


def test_a_network_is_chosen_for_each_budget(
    script: ModuleType, bundled: Callable[..., Path]
) -> None:
    bundle = script.pareco.load(bundled("pareco"))
    image = script.torch.zeros(2, 1, 8, 8)
    budgets = sorted(bundle.front.macs)[:2]
    pace = script.Pace(budgets, target_ms=0)  # every request misses it
    found = [*script.served(bundle, [image] * 7, pace)]
    assert [macs for _, macs, _ in found] == [budgets[1]] * 5 + [budgets[0]] * 2
    for scores, macs, _ in found:
        expected = bundle.for_budget(macs=macs)(image)
        # One addition order or another: the rounding of a few hundred 32-bit terms.
        script.torch.testing.assert_close(scores, expected.detach(), atol=1e-5, rtol=1e-4)


def test_the_script_writes_what_it_saw(
    script: ModuleType,
    bundled: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "BUSY", ["sleep", "60"])  # other tests need the cores
    output = tmp_path / "made" / "serving"
    asked = ["--images", "2", "--seconds", "0.6", "--output", str(output)]
    assert script.main([str(bundled("pareco")), *asked]) == 0
    rows = pd.read_csv(output.with_suffix(".csv"))
    assert set(rows.loaded) == {False, True}
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("alone", "other work", "paced", "fixed"))
    front = pd.read_csv(bundled("pareco").parent / "front.csv").set_index("macs")
    assert front.test_top1_error[rows.macs].to_list() == pytest.approx(rows.error.to_list())
    assert all(output.with_suffix(each).stat().st_size > 0 for each in (".json", ".png", ".svg"))


def test_the_page_has_the_loop_of_the_script_and_runs(
    bundled: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(bundled("pareco"), "digits.pareco")
    names: dict[str, Any] = {}
    loop, use = python_in("serving.md", 120)
    assert loop[loop.index("class Pace") :].strip() in SCRIPT.read_text()
    for block in (loop, use):
        exec(block, names)
    assert len(capsys.readouterr().out.splitlines()) == len(names["requests"])


def test_the_page_tells_what_was_measured(script: ModuleType) -> None:
    rows = pd.read_csv(DOCS.parent / "results" / "bench" / "serving.csv")
    text = (DOCS / "serving.md").read_text()
    assert f"{len(rows)} requests" in text
    for loaded, part in rows.groupby("loaded"):
        late = [100 * (part[f"{way}_ms"] > part.target_ms).mean() for way in ("paced", "fixed")]
        median = [part[f"{way}_ms"].median() for way in ("paced", "fixed")]
        row = f"| {late[0]:.1f} / {late[1]:.1f} | {median[0]:.1f} / {median[1]:.1f} | "
        assert row + f"{part.error.mean():.2f} / " in text, loaded
    assert blocks_of("serving.md", 120)
