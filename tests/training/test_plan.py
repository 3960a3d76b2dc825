"""What a run will spend is known before, limits what it spends, and is what it has spent."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pareco.config import DataConfig, Experiment
from pareco.data import load_data
from pareco.data.loading import KNOWN_SIZES
from pareco.data.splits import split_sizes, stratified_splits
from pareco.methods import Method
from pareco.schema import PHASES
from pareco.training import RunError, check_runnable, execute_run
from pareco.training.folder import RunFolder
from pareco.training.interruption import Interrupted
from pareco.training.plan import Limits, RunPlan
from pareco.training.preparation import planner_before
from pareco.widths import Widths, WidthSpace
from replications.catalogue import experiment_named, method_named, method_names
from tests.experiments import TINY, quick
from tests.training.attempts import SELDOM
from tests.training.conftest import Whole

Runs = Callable[[str], Whole]
# As long as makes a plan of what is drawn: TINY's 14 steps ask for 14 widths.
LONGER = replace(TINY, training=replace(TINY.training, epochs=6))


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def ledger(path: Path) -> dict[str, int]:
    """Return the MACs of a run by phase."""
    found = json.loads((path / "result.json").read_text())["ledger"]
    return {each: found[each]["forward_macs"] + found[each]["backward_macs"] for each in PHASES}


def before_test(path: Path) -> int:
    spent = ledger(path)
    return spent["training"] + spent["search"] + spent["choice"]


def planned(experiment: Experiment, method: str, seed: int = 0) -> RunPlan:
    return planner_before(experiment).plan(method_named(method), seed)


PLAIN = [name for name in method_names() if "pareco" not in name]


@pytest.mark.parametrize("method", quick(PLAIN, "two_stage", "s_net"))
def test_a_plan_is_what_a_run_has_spent_where_losses_decide_nothing(
    whole: Runs, method: str
) -> None:
    """Training to the MAC, and the choice but for what is searched for once training has ended."""
    plan, spent = planned(TINY, method), ledger(whole(method).path)
    assert plan.of("training") == spent["training"]
    assert plan.of("search") == spent["search"] == 0
    if method not in ("two_stage", "autoslim"):
        assert plan.of("choice") == spent["choice"]
    result = json.loads((whole(method).path / "result.json").read_text())
    assert plan.gradient_steps == result["budget"]["gradient_steps"]
    if method not in ("two_stage", "autoslim"):
        assert plan.evaluations == result["budget"]["search_evaluations"]


def test_named_networks_are_planned_trained_and_reported(tmp_path: Path) -> None:
    """Two of them, in place of four uniform ones; a misspelt one is refused before training."""
    space = planner_before(TINY).space
    named = tuple(str(each) for each in [*space.spread(5)][1:3])

    def trained_alone(*alone: str) -> Experiment:
        return replace(TINY, training=replace(TINY.training, alone=alone))

    experiment, method = trained_alone(*named), method_named("independent")
    check_runnable(experiment, method)
    execute_run(experiment, method, 0, tmp_path / "run")
    front = pd.read_csv(tmp_path / "run" / "front.csv")
    assert set(front["widths"]) <= set(named)
    assert len(front) > 0
    assert planned(experiment, "independent").of("training") == ledger(tmp_path / "run")["training"]
    assert planned(experiment, "independent").total < planned(TINY, "independent").total
    wrong = trained_alone(named[0], named[1].replace(" ", " 999 ", 1))
    refused = r"independent: training\.alone '.* 999"
    with pytest.raises(ValueError, match=refused):
        check_runnable(wrong, method)
    with pytest.raises(ValueError, match=refused):
        execute_run(wrong, method, 0, tmp_path / "wrong")
    refusal = "training.alone names networks to train alone, which us_net does not do"
    for asked in (planned, lambda *of: check_runnable(of[0], method_named(of[1]))):
        with pytest.raises(ValueError, match=refusal):
            asked(experiment, "us_net")


def test_a_plan_of_widths_that_are_searched_for_is_close(whole: Runs) -> None:
    """Fourteen visits at random targets: within a tenth of all, a third of what they are."""
    plan, spent = planned(TINY, "pareco"), ledger(whole("pareco").path)
    assert plan.of("training") == pytest.approx(spent["training"], rel=0.1)
    assert plan.of("search") == pytest.approx(spent["search"], rel=0.33)
    assert plan.of("choice") == pytest.approx(spent["choice"], rel=0.33)
    assert plan.total == pytest.approx(sum(spent.values()), rel=0.1)


@pytest.mark.parametrize("method", quick(method_names(), "pareco", "two_stage", "us_net"))
def test_no_method_spends_more_than_the_search_budget(whole: Runs, method: str) -> None:
    """It is what PareCO's own search is planned to spend; a search is paid to the MAC."""
    run, kind = whole(method), method_named(method)
    limits = Limits(**json.loads((run.path / "result.json").read_text())["limits"])
    assert limits == planner_before(TINY).limits(kind, 0)
    published = planned(TINY, "pareco")
    free = kind.budget_exempt or kind.sets_search_budget
    if kind.search_budget is None:
        assert limits.search == (None if free else published.of("search", "choice"))
        assert limits.in_training == (None if free else published.of("search"))
    else:
        assert limits.search == round(kind.search_budget * planner_before(TINY).nominal_training)
    spent = ledger(run.path)
    assert spent["search"] + spent["choice"] <= limits.after(spent["search"])


@pytest.mark.parametrize("name", ["digits", "cifar10_resnet20", "imagenet_mbv2"])
def test_at_smoke_every_method_can_pay_what_it_needs(name: str) -> None:
    experiment = experiment_named(name, "smoke")
    for method in experiment.methods:
        assert planned(experiment, method).of("choice") > 0


class Insisting(Method):
    """Wants a thousand networks measured, whatever is left."""

    name = "insisting"

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        return self.completed((), self.random_widths)

    def candidates(self) -> Sequence[Widths]:
        wanted = {self.random_widths() for _ in range(1000)}
        self.task.evaluate(sorted(wanted))
        return sorted(wanted)


def test_a_method_that_insists_is_refused_before_training(tmp_path: Path) -> None:
    match = r"method insisting asked for the losses of \d+ networks .* MACs, where \d+ are left"
    with pytest.raises(ValueError, match=match):
        check_runnable(TINY, Insisting)
    with pytest.raises(RunError, match=match):
        execute_run(TINY, Insisting, 0, tmp_path / "run", machine=SELDOM)


@pytest.mark.parametrize("part", quick([0.07, 0.15], 0.07))
def test_a_smaller_budget_measures_less_from_the_beginning(tmp_path: Path, part: float) -> None:
    experiment = replace(TINY, search=replace(TINY.search, budget=part))
    planner, path = planner_before(experiment), tmp_path / "run"
    limits = planner.limits(method_named("pareco"), 0)
    assert limits.search == round(part * planner.nominal_training)
    execute_run(experiment, method_named("pareco"), 0, path, machine=SELDOM)
    spent = ledger(path)
    assert limits.in_training is not None
    assert 0 < spent["search"] <= limits.in_training
    assert spent["search"] + spent["choice"] <= limits.after(spent["search"])
    visits = pd.read_csv(path / "visits.csv")
    assert len(visits) == 14  # as many as without
    front = pd.read_csv(path / "front.csv")
    assert len(front) >= 2


def test_the_part_of_a_budget_for_training_can_be_set() -> None:
    search = replace(TINY.search, budget=0.1, part_in_training=0.25)
    planner = planner_before(replace(TINY, search=search))
    limits = planner.limits(method_named("pareco"), 0)
    whole = round(0.1 * planner.nominal_training)
    assert limits.search == whole
    assert limits.in_training == round(0.25 * whole)
    plan = planner.plan(method_named("pareco"), 0)
    assert 0 < plan.of("search") <= 0.25 * whole + 1
    assert plan.of("search", "choice") <= whole
    with pytest.raises(ValueError, match=r"part_in_training must be in \[0, 1\], got 1.5"):
        replace(TINY.search, part_in_training=1.5)


class TwoAlone(Insisting):
    """Trains two networks one after the other, and does not say that this is its nature."""

    name = "two_alone"
    trains_alone = True

    @classmethod
    def spaces(cls, space: WidthSpace, sampled_per_step: int) -> Sequence[WidthSpace]:
        return [replace(space, only=each) for each in space.spread(2)]

    def candidates(self) -> Sequence[Widths]:
        return [self.task.space.largest]


def test_sets_of_weights_share_a_search_budget_and_can_not_share_macs() -> None:
    one, two = (planner_before(TINY).limits(each, 0) for each in (Insisting, TwoAlone))
    halves = [(one.search or 0) // 2, (one.in_training or 0) // 2]
    assert [two.search, two.in_training] == halves
    assert min(halves) > 0
    experiment = replace(TINY, training=replace(TINY.training, macs=10**9))
    named = [str(each) for each in planner_before(TINY).space.spread(3)]
    alone = replace(TINY, training=replace(TINY.training, alone=(named[1],)))
    assert planner_before(alone).limits(TwoAlone, 0) == one  # of as many sets as are named
    with pytest.raises(ValueError, match=r"training\.macs: two_alone trains 2 sets of weights"):
        check_runnable(experiment, TwoAlone)


def test_a_budget_that_does_not_pay_the_ends_is_refused() -> None:
    tiny = replace(TINY, search=replace(TINY.search, budget=1e-6))
    with pytest.raises(ValueError, match=r"method us_net asked for the losses of 2 networks"):
        planned(tiny, "us_net")


@pytest.mark.parametrize("method", quick(method_names(), "pareco_exact", "us_net", "independent"))
def test_with_equal_compute_methods_train_until_it_is_spent(tmp_path: Path, method: str) -> None:
    """Totals agree within one step and its search; a choice that is searched for may leave some."""
    macs = planned(TINY, "pareco").before_test
    experiment = replace(TINY, training=replace(TINY.training, macs=macs))
    path, kind = tmp_path / "run", method_named(method)
    execute_run(experiment, kind, 0, path, machine=SELDOM)
    spent, plan = ledger(path), planned(experiment, method)
    result = json.loads((path / "result.json").read_text())
    steps = result["budget"]["gradient_steps"]
    assert result["equal_macs"] == macs
    if kind.budget_exempt:
        assert steps == 4 * 14
        return
    limits = Limits(**result["limits"])
    assert limits.training is not None
    step = (spent["training"] + spent["search"]) / steps
    assert limits.training <= spent["training"] + spent["search"] < limits.training + 3 * step
    assert limits.choice is not None
    assert spent["choice"] <= limits.choice
    left = macs - limits.training - spent["choice"]
    if method in ("us_net", "s_net"):
        assert left == 0
        assert steps > 14  # they search less than PareCO, and so train for longer
        assert (plan.gradient_steps, plan.of("training")) == (steps, spent["training"])
    assert 0 <= left < 0.05 * macs
    lines = (path / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rate"] for line in lines]
    after = rates.index(max(rates))  # the warm-up, an epoch of two
    assert rates[after:] == sorted(rates[after:], reverse=True)
    assert rates[:after] == sorted(rates[:after])
    assert after == pytest.approx(len(rates) / 2, abs=2)
    assert 0 < rates[-1] < 0.25 * max(rates)


def test_equal_compute_goes_on_where_it_was(tmp_path: Path) -> None:
    macs = planned(TINY, "pareco").before_test
    experiment = replace(TINY, training=replace(TINY.training, macs=macs))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    execute_run(experiment, method_named("us_net"), 0, whole, machine=SELDOM)
    steps: list[tuple[int, int]] = []

    def stop(report: Any) -> None:
        steps.append((report.step, report.steps))
        if report.step == 5:
            raise KeyboardInterrupt

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        execute_run(
            *(experiment, method_named("us_net"), 0, cut, stop),
            machine=replace(SELDOM, checkpoint_minutes=0),
        )
    execute_run(experiment, method_named("us_net"), 0, cut, machine=SELDOM)
    for name in ("front.csv", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert ledger(cut) | {"lost": 0} == ledger(whole)
    total = json.loads((whole / "result.json").read_text())["budget"]["gradient_steps"]
    assert [abs(expected - total) <= 3 for _, expected in steps] == [True] * 5


def test_macs_that_only_pay_the_choice_are_refused() -> None:
    experiment = replace(TINY, training=replace(TINY.training, macs=1000))
    with pytest.raises(ValueError, match=r"training.macs 1000: choosing the front of us_net"):
        check_runnable(experiment, method_named("us_net"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"search_split": "batch"},
        {"train_images": 500},
        {"train_images": 500, "search_split": "batch", "test_images": 50},
    ],
)
@pytest.mark.parametrize("own_test", [0, 300])
def test_split_sizes_are_those_of_the_splits(changes: dict[str, Any], own_test: int) -> None:
    known = {"name": "own", "image_size": 8, "search_split": "holdout", "search_images": 100}
    config = DataConfig(**{**known, "test_images": None if own_test else 200, **changes})
    labels = np.arange(1000 + own_test) % 7
    splits = stratified_splits(labels, own_test, config)
    sizes = tuple(len(each) for each in (splits.train, splits.search, splits.test))
    assert split_sizes(1000, own_test, config) == sizes


def test_the_known_size_of_the_digits_is_theirs() -> None:
    data = load_data(TINY.data)
    size = KNOWN_SIZES["digits"]
    assert (data.num_classes, data.in_chans, len(data.store.labels)) == size[:3]
    planner = planner_before(TINY)
    assert planner.train_images == len(data.train)
    assert (planner.search_images, planner.test_images) == (len(data.search), len(data.test))


def test_a_long_run_is_planned_from_some_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw of US-Net deviates by a quarter of the full network's cost, so the mean of two in 126
    steps, of 2.2, by 1.5%: twice that is allowed."""
    experiment = replace(
        TINY, training=replace(TINY.training, epochs=40, ask_every_steps=20, macs=None)
    )
    exact = planned(experiment, "us_net")
    monkeypatch.setattr("pareco.training.plan._PLAYED_WHOLE", 10)
    some = planner_before(replace(experiment, scale="thinned")).plan(method_named("us_net"), 0)
    assert some.gradient_steps == exact.gradient_steps == 280
    assert some.of("training") != exact.of("training")
    assert some.of("training") == pytest.approx(exact.of("training"), rel=0.03)
    assert some.of("choice") == exact.of("choice")


@pytest.mark.slow
def test_the_small_scales_keep_the_papers_share_of_search() -> None:
    """Within a quarter: what is left of it is that asks and epochs are whole numbers."""

    def share(scale: str) -> float:
        plan = planned(experiment_named("cifar10_resnet20", scale), "pareco")
        return plan.of("search") / plan.of("training")

    assert share("short") == pytest.approx(share("paper"), rel=0.25)


def test_limits_are_kept_by_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version may plan another budget; a run under way keeps its own."""
    path = tmp_path / "run"

    def stop(report: Any) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    machine = replace(SELDOM, checkpoint_minutes=0)
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        execute_run(TINY, method_named("us_net"), 0, path, stop, machine=machine)
    done, _, _ = RunFolder(path=path, experiment=TINY, method="us_net", seed=0).load()
    limits = planner_before(TINY).limits(method_named("us_net"), 0)
    assert done.limits == asdict(limits)
    monkeypatch.setattr("pareco.training.plan.Planner.limits", lambda *_: Limits(search=1))
    execute_run(TINY, method_named("us_net"), 0, path, machine=machine)
    assert json.loads((path / "result.json").read_text())["limits"] == asdict(limits)
