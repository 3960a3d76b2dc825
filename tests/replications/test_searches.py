"""Searches at equal evaluations: their problems, what they visit, and what is said of them."""

import gzip
import hashlib
import io
import itertools
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from pareco.training.run import execute_run
from replications.__main__ import main
from replications.catalogue import method_named
from replications.searches import command, comparison, landscapes, searchers, trained
from replications.searches.command import TABLE, SearchesCommand
from replications.searches.comparison import (
    Reached,
    differences,
    read_record,
    write_search_results,
)
from replications.searches.grid import (
    Grid,
    GridRow,
    line_of,
    points,
    read_grid,
    row_of,
    write_grid,
)
from replications.searches.landscapes import (
    Posynomial,
    SearchProblem,
    analytic,
    geometric_front,
    hypervolume,
    quadratic,
    tabulated,
)
from replications.searches.searchers import SEARCHERS, visited
from replications.searches.trained import TrainedNetwork, by_module, make_table
from tests.experiments import TINY, quick

LEVELS = (0.42, 0.7, 1.0)
QUIET = Console(file=io.StringIO())


def grid() -> Grid:
    """Return a table of 27 networks with made-up losses, cheap ones the worst."""
    rows = []
    for a, b, c in points(LEVELS, 3):
        macs = int(10_000 * (a + a * b + b * c + c))
        rows.append(GridRow(macs, (2 - a) + 0.3 * (2 - b) + 0.1 / c, 0.05, 1.0, 50.0))
    return Grid(3, torch.tensor(LEVELS, dtype=torch.double), tuple(rows))


def write_table(results: Path, grid: Grid) -> None:
    """Write a table where the command looks for it."""
    (results / "search").mkdir(exist_ok=True)
    lines = [line_of(row) for row in grid.measured]
    write_grid(results / "search" / TABLE, ("a", "b", "c"), LEVELS, lines)


def test_a_posynomial_by_hand_and_its_slope_by_autograd() -> None:
    powers = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0]], dtype=torch.double)
    found = Posynomial(torch.tensor([1.0, 2.0, 1.0], dtype=torch.double), powers)
    alphas = torch.tensor([[1.0, 1.0], [0.5, 0.8]], dtype=torch.double)
    by_hand = (0.5 + 2 * 0.5 * 0.8 + 0.8**-2) / 4
    torch.testing.assert_close(found(alphas), torch.tensor([1.0, by_hand]).double())
    logs = alphas[1:].log().requires_grad_()
    (slope,) = torch.autograd.grad(found(logs.exp()).log().sum(), logs)
    value, gradient = found.logarithm(logs.detach().numpy()[0])
    assert value == pytest.approx(math.log(by_hand))
    np.testing.assert_allclose(gradient, slope[0].numpy(), rtol=1e-9)


def test_a_geometric_front_is_the_one_in_closed_form() -> None:
    """The least 1/a + 1/b where ab <= F is that of a = b = sqrt F."""
    eye = torch.eye(2, dtype=torch.double)
    product = Posynomial(torch.ones(1).double(), torch.ones(1, 2).double())
    costs, least = geometric_front(product, Posynomial(torch.ones(2).double(), -eye), targets=9)
    np.testing.assert_allclose(least, costs**-0.5, rtol=1e-6)


def test_nothing_random_lies_below_the_analytic_front() -> None:
    problem = analytic(targets=50)
    assert problem.dimensions == 24
    generator = torch.Generator().manual_seed(0)
    common = torch.rand(4000, 1, dtype=torch.double, generator=generator)
    own = torch.rand(4000, 24, dtype=torch.double, generator=generator)
    alphas = torch.lerp(problem.lower, problem.upper, 0.8 * common + 0.2 * own)
    reached = hypervolume(problem.noiseless(alphas), problem.cost(alphas), problem.reference)
    assert problem.best is not None
    assert 0.7 * problem.best < reached < problem.best
    ones, least = torch.ones(1, 24).double(), problem.lower.unsqueeze(0)
    assert float(problem.cost(ones)) == pytest.approx(1)
    assert float(problem.noiseless(least)) == problem.reference
    # No sum over layers: the first and the third one matter together.
    changed = [ones.clone() for _ in range(3)]
    changed[0][0, 0] = changed[1][0, 2] = changed[2][0, 0] = changed[2][0, 2] = 0.5
    first, third, both = (
        float(problem.noiseless(each) - problem.noiseless(ones)) for each in changed
    )
    assert abs(both - first - third) > 1e-3


def test_a_hypervolume_by_hand() -> None:
    losses, costs = torch.tensor([1.0, 2.0, 2.5]), torch.tensor([0.5, 0.25, 0.75])
    assert hypervolume(losses, costs, 3.0) == pytest.approx(0.25 * 1 + 0.5 * 2)
    assert hypervolume(losses[:0], costs[:0], 3.0) == 0
    assert hypervolume(torch.tensor([4.0]), torch.tensor([0.5]), 3.0) == 0


def test_points_belong_to_the_nearest_network_of_a_table() -> None:
    table = grid()
    asked = torch.tensor([[0.5, 0.69, 0.9], [0.42, 1.0, 0.57]], dtype=torch.double)
    wanted = torch.tensor([[0.42, 0.7, 1.0], [0.42, 1.0, 0.7]], dtype=torch.double)
    assert torch.equal(table.canonical(asked), wanted)
    assert torch.equal(table.canonical(table.alphas), table.alphas)
    assert table.rows(table.alphas).tolist() == list(range(27))
    with pytest.raises(ValueError, match="27 networks has 26 rows"):
        Grid(3, table.multipliers, table.measured[1:])
    with pytest.raises(ValueError, match="must ascend"):
        Grid(3, table.multipliers.flip(0), table.measured)


def test_the_best_of_a_table_is_that_of_all_its_networks() -> None:
    table = grid()
    problem = tabulated(table, noisy=False)
    costs = table.macs / table.macs.max()
    steps = sorted(zip(costs.tolist(), table.losses.tolist(), strict=True))
    area, least, last = 0.0, problem.reference, 0.0
    for cost, loss in [*steps, (1.0, 0.0)]:
        area += (problem.reference - least) * (cost - last)
        least, last = min(least, loss), cost
    assert problem.best == pytest.approx(area)
    relaxed = problem.relaxed_cost(table.alphas)
    torch.testing.assert_close(relaxed, costs.double(), atol=1e-4, rtol=0)  # MACs are rounded
    exact = quadratic(table, table.alphas[:, 0] * table.alphas[:, 2] + 0.5)
    assert float(exact(torch.tensor([[0.5, 0.9, 0.6]]))) == pytest.approx(0.8, abs=1e-6)


def test_the_noise_is_that_of_the_table_and_the_same_for_all_searches() -> None:
    problem = tabulated(grid(), noisy=True)
    alphas = torch.tensor([LEVELS] * 500, dtype=torch.double)
    generators = [landscapes.noise_generator(seed, problem) for seed in (0, 0, 1)]
    first, same, other = (problem.observed(alphas, each) for each in generators)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    off = first - problem.noiseless(alphas)
    assert float(off.std()) == pytest.approx(0.05, rel=0.1)  # 500 draws: 3% of it
    assert float(off.mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("name", quick(SEARCHERS, *(set(SEARCHERS) - {"qlognehvi"})))
def test_every_search_visits_distinct_points_of_the_box(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "nsga2":
        pytest.importorskip("pymoo")
    monkeypatch.setattr(searchers, "INITIAL", 4)
    problem = tabulated(grid(), noisy=True)
    # So many networks are uniform; the slow one does one round with a model.
    count = {"uniform": 3, "qlognehvi": 5}.get(name, 8)
    alphas, losses = visited(problem, SEARCHERS[name], count, seed=1)
    again, same = visited(problem, SEARCHERS[name], count, seed=1)
    assert torch.equal(alphas, again)
    assert torch.equal(losses, same)
    assert len(alphas.unique(dim=0)) == count
    assert torch.equal(problem.canonical(alphas), alphas)
    assert (losses - problem.noiseless(alphas)).abs().max() < 6 * 0.05


def test_a_search_that_finds_no_more_ends() -> None:
    alphas, losses = visited(tabulated(grid(), noisy=False), SEARCHERS["uniform"], 20, seed=0)
    assert sorted(alphas[:, 0].tolist()) == [*LEVELS]
    assert (alphas == alphas[:, :1]).all()
    assert len(losses) == 3


def test_the_exact_search_begins_with_the_smallest_network() -> None:
    problem = tabulated(grid(), noisy=False)
    alphas, losses = visited(problem, SEARCHERS["exact"], 3, seed=0)
    assert torch.equal(alphas[0], problem.lower)
    assert losses[0] == problem.reference


def test_qlognehvi_ends_where_all_of_a_table_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for again and again, a known point is replaced by one drawn, while there is one."""
    monkeypatch.setattr(searchers, "INITIAL", 3)
    monkeypatch.setattr(searchers, "IDLE", 20)
    asked = []

    def known(problem: SearchProblem, alphas: Tensor, losses: Tensor) -> Tensor:
        asked.append(len(alphas))
        return problem.lower.repeat(2, 1)

    monkeypatch.setattr(searchers, "_improving", known)
    rows = tuple(GridRow(n, 2 - n / 10, 0.0, 1.0, 50.0) for n in (1, 2, 3, 4))
    table = Grid(2, torch.tensor([0.5, 1.0], dtype=torch.double), rows)
    alphas, _ = visited(tabulated(table, noisy=False), SEARCHERS["qlognehvi"], 5, seed=0)
    assert len(alphas.unique(dim=0)) == len(alphas) == 4
    assert len(asked) > 1


def test_a_table_whose_noise_is_unknown_has_losses_without_it() -> None:
    table = grid()
    rows = tuple(row._replace(noise=math.nan) for row in table.measured)
    problem = tabulated(replace(table, measured=rows), noisy=False)
    seen = problem.observed(table.alphas, torch.Generator())
    assert torch.equal(seen, table.losses)


def test_a_front_is_chosen_by_what_was_seen_and_scored_without_noise() -> None:
    """Of two at one cost the worse seems better: its own loss counts, not the other's."""

    def one_by_one(problem: SearchProblem, seed: int) -> Iterator[Tensor]:
        for row in ([0.42, 0.42], [1.0, 0.42]):
            yield torch.tensor([row], dtype=torch.double)

    seen, true = {0.42: 0.2, 1.0: 0.5}, {0.42: 0.6, 1.0: 0.5}
    problem = SearchProblem(
        name="table",
        lower=torch.full((2,), 0.42).double(),
        upper=torch.ones(2).double(),
        cost=lambda alphas: torch.full((len(alphas),), 0.5).double(),
        relaxed_cost=lambda alphas: alphas.sum(dim=-1),
        canonical=torch.Tensor.clone,
        observed=lambda alphas, _: torch.tensor([seen[float(each)] for each in alphas[:, 0]]),
        noiseless=lambda alphas: torch.tensor([true[float(each)] for each in alphas[:, 0]]),
        reference=1.0,
        best=None,
    )
    rows = searchers.reached(problem, "random", one_by_one, [1, 2], 3)  # type: ignore[arg-type]
    assert [row[:4] for row in rows] == [("table", "random", 3, 1), ("table", "random", 3, 2)]
    assert [row.hypervolume for row in rows] == pytest.approx([0.2, 0.2])


def reached_by(values: dict[str, list[float]], evaluations: int = 50) -> list[Reached]:
    return [
        Reached("table", name, seed, evaluations, value, 2.0)
        for name, own in values.items()
        for seed, value in enumerate(own)
    ]


def test_differences_are_seed_by_seed_and_beaten_is_a_whole_interval_below_zero() -> None:
    record = reached_by(
        {
            "exact": [1.0, 1.2, 1.4],
            "paper": [0.9, 1.0, 1.4],
            "nsga2": [1.11, 1.30, 1.52],
            "random": [0.5, 0.69, 0.91],
            "uniform": [1.0],
        }
    )
    found = {each.searcher: each for each in differences(record)}
    assert {name: each.verdict for name, each in found.items()} == {
        "paper": "open",
        "nsga2": "beaten",
        "random": "better",
        "uniform": "open",
    }
    paper = found["paper"]
    assert (paper.seeds, paper.mean) == (3, pytest.approx(0.1))
    reach = 4.302653 * 0.1 / math.sqrt(3)  # Student's t of 2 degrees, deviation 0.1
    assert (paper.low, paper.high) == pytest.approx((0.1 - reach, 0.1 + reach))
    assert math.isnan(found["uniform"].low)


def test_the_same_record_gives_the_same_files(tmp_path: Path) -> None:
    record = reached_by({"random": [0.5, 0.6], "exact": [1.0, 1.2]})
    for place, rows in (("a", record), ("b", record[::-1])):
        (tmp_path / place).mkdir()
        comparison.write_record(tmp_path / place, rows)
        write_search_results(tmp_path / place)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        *("README.md", "differences.csv", "hypervolume.png", "hypervolume.svg", "hypervolumes.csv")
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    text = (tmp_path / "a" / "README.md").read_text()
    assert "| exact | 2 | 1.1000 ± 1.2706 |" in text  # 12.706 is Student's t of 1 degree
    assert "(-0.0853 to +1.1853: open)" in text  # 0.55, deviation 0.0707


def test_what_stands_in_the_results_is_what_its_record_gives(tmp_path: Path) -> None:
    there = Path(comparison.__file__).parents[2] / "results" / "search"
    record = read_record(there)
    if not record:
        pytest.skip("no searches are recorded")
    comparison.write_record(tmp_path, record)
    for path in there.glob("feeding.[cj]s*"):  # its record: rows and their origin
        shutil.copy(path, tmp_path)
    write_search_results(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (there / path.name).read_bytes(), path.name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the tiny experiment."""
    path = tmp_path_factory.mktemp("runs") / "tiny" / "us_net" / "seed0"
    execute_run(TINY, method_named("us_net"), 0, path)
    return path


def few(folder: Path) -> TrainedNetwork:
    return TrainedNetwork(folder=folder, search_images=70, test_images=30)


def test_a_network_has_a_multiplier_for_each_of_its_parts(finished: Path) -> None:
    net = few(finished).net
    space, parts = by_module(net.space)
    assert parts == ("conv1", "layer1", "layer2", "layer3")
    assert space.dimensions == 4
    narrow = space.decode([1.0, 1.0, 0.5, 1.0])
    assert sum(own < full for own, full in zip(narrow, space.maxima, strict=True)) == sum(
        name.startswith("layer2") for name in space.names
    )


def test_a_table_goes_on_after_an_interruption(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "AT_ONCE", 5)
    paths = tmp_path / "whole.csv.gz", tmp_path / "resumed.csv.gz"
    make_table(few(finished), (0.5, 1.0), paths[0], QUIET)

    class Interrupted(TrainedNetwork):
        def measured(self, widths):  # type: ignore[no-untyped-def]
            if len(counted) == 2:
                raise KeyboardInterrupt
            counted.append(len(widths))
            return super().measured(widths)

    counted: list[int] = []
    stopped = Interrupted(folder=finished, search_images=70, test_images=30)
    with pytest.raises(KeyboardInterrupt):
        make_table(stopped, (0.5, 1.0), paths[1], QUIET)
    partial = tmp_path / "resumed.csv.gz.partial"
    assert len(partial.read_text().splitlines()) == 1 + 10
    with partial.open("a") as file:
        file.write("123,0.5")  # killed while it wrote
    with pytest.raises(ValueError, match="of another table"):
        make_table(few(finished), (0.6, 1.0), paths[1], QUIET)
    make_table(few(finished), (0.5, 1.0), paths[1], QUIET)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert {each.name for each in tmp_path.iterdir()} == {
        *("whole.csv.gz", "whole.json", "resumed.csv.gz", "resumed.json")
    }
    assert str(finished) not in (tmp_path / "whole.json").read_text()


@pytest.mark.parametrize(
    "multipliers", [(), (1.0,), (1.0, 0.5), (0.5, 0.5000001), (0.0, 1.0), (0.5, 1.1)]
)
def test_a_table_of_other_than_ascending_multipliers_is_refused(
    multipliers: tuple[float, ...], finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"--multipliers: two or more must ascend in \(0, 1\]"):
        make_table(few(finished), multipliers, tmp_path / TABLE, QUIET)
    assert not list(tmp_path.iterdir())


def test_a_table_of_too_few_images_to_tell_their_noise_is_refused(
    finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--search-images: 16 or more are needed"):
        make_table(replace(few(finished), search_images=15), (0.5, 1.0), tmp_path / TABLE, QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["", "1,2,3,4", "1,2,3,4,5,6", "1.5,2,3,4,5"])
def test_a_line_that_is_no_row_of_a_table_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        row_of(line)


def test_a_run_of_other_images_or_of_several_networks_is_refused(
    finished: Path, tmp_path: Path
) -> None:
    ours = shutil.copytree(finished, tmp_path / "ours")
    sessions = json.loads((ours / "env.json").read_text())
    (ours / "env.json").write_text(json.dumps([sessions[0] | {"data_fingerprint": "other"}]))
    with pytest.raises(ValueError, match="is of other images"):
        _ = few(ours).data
    second = ours / "weights" / "1.safetensors"
    shutil.copy(ours / "weights" / "0.safetensors", second)
    with pytest.raises(ValueError, match="us_net has weights or batch norm for each"):
        few(ours)
    second.unlink()
    (ours / "env.json").write_text(json.dumps(sessions))
    file = ours / "weights" / "0.safetensors"
    weights = load_file(file)
    save_file(weights | {"bn1.weight_0": weights["bn1.weight"].clone()}, file)
    with pytest.raises(ValueError, match="us_net has weights or batch norm for each"):
        _ = few(ours).net


def test_a_table_has_what_the_evaluator_measures(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / TABLE
    make_table(few(finished), (0.5, 1.0), path, QUIET)
    table, ours = read_grid(path), few(finished)
    space, _ = by_module(ours.net.space)
    widths = [space.decode(each) for each in table.alphas]
    assert table.macs.tolist() == [ours.net.cost.macs_at(each) for each in widths]
    losses = torch.tensor(ours.evaluator.search_losses(widths), dtype=torch.double)
    torch.testing.assert_close(table.losses, losses, atol=1e-5, rtol=0)  # five digits
    test = ours.data.test.subset(range(30)).normalized(torch.arange(30))
    plain = ours.net.extract(widths[-1], ours.evaluator.statistics(widths[-1])).eval()
    with torch.no_grad():
        scores = plain(test[0])
    wrong = 100 * float((scores.argmax(dim=1) != test[1]).float().mean())
    assert table.measured[-1].test_error == pytest.approx(wrong, abs=0.01)
    search = ours.data.search.subset(range(70)).normalized(torch.arange(70))
    plain = ours.net.extract(widths[0], ours.evaluator.statistics(widths[0])).eval()
    with torch.no_grad():
        each = torch.nn.functional.cross_entropy(plain(search[0]), search[1], reduction="none")
    means = each[:64].double().reshape(8, 8).mean(dim=1)  # 200 images are calibrated on by eights
    assert table.measured[0].noise == pytest.approx(float(means.std()) / math.sqrt(8), abs=1e-4)
    broken = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join([*broken[:2], *broken[3:1:-1], *broken[4:]]).encode()))
    with pytest.raises(ValueError, match="not the rows of a table"):
        read_grid(path)


def test_a_live_network_is_seen_on_training_images_and_scored_on_held_out_ones(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscapes, "LIVE_IMAGES", 32)
    ours = few(finished)
    problem = landscapes.live(ours)
    assert problem.dimensions == len(ours.net.space.groups)
    ends = torch.stack([problem.lower, problem.upper])
    costs = problem.cost(ends)
    assert costs[1] == 1 > costs[0]
    torch.testing.assert_close(problem.relaxed_cost(ends)[1], costs[1])
    widths = [ours.net.space.smallest, ours.net.space.largest]
    assert problem.noiseless(ends).tolist() == ours.evaluator.search_losses(widths)
    generator = landscapes.noise_generator(0, problem)
    first, second = (problem.observed(ends, generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_the_command_compares_and_does_nothing_twice(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--results", str(tmp_path)]
    images = ["--search-images", "70", "--test-images", "30"]
    made = ["searches", "--make-table", "--run", str(finished), *images, *place]
    assert main([*made, "--multipliers", "0.5", "1.0"]) == 0
    asked = ["searches", *place, "--searchers", "random", "exact", "--evaluations", "4", "8"]
    asked += ["--seeds", "2", "--problems", "table", "noisy", "live"]
    capsys.readouterr()
    assert main(asked) == 0
    assert "no --run: live is left out" in capsys.readouterr().out
    record = read_record(tmp_path / "search")
    runs = itertools.product(("table", "noisy"), ("exact", "random"), (0, 1), (4, 8))
    assert [each[:4] for each in record] == list(runs)
    assert all(0 <= each.hypervolume <= each.best for each in record)
    before = (tmp_path / "search" / "hypervolumes.csv").read_bytes()
    assert main(asked) == 0
    assert "seed" not in capsys.readouterr().out
    assert (tmp_path / "search" / "hypervolumes.csv").read_bytes() == before


def test_other_evaluations_keep_what_was_recorded(tmp_path: Path) -> None:
    write_table(tmp_path, grid())
    asked = ["searches", "--results", str(tmp_path), "--seeds", "1", "--searchers", "random"]
    asked += ["--problems", "table", "--evaluations"]
    assert main([*asked, "4", "8"]) == 0
    before = read_record(tmp_path / "search")
    assert main([*asked, "4", "6"]) == 0
    after = read_record(tmp_path / "search")
    assert [each.evaluations for each in after] == [4, 6, 8]
    assert [after[0], after[2]] == before


def test_rows_of_another_table_are_not_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commits = iter("aab")
    monkeypatch.setattr(command, "_environment", lambda: {"commit": next(commits)})
    table = grid()
    write_table(tmp_path, table)
    asked = ["searches", "--results", str(tmp_path), "--searchers", "random"]
    asked += ["--evaluations", "4", "--problems", "table", "--seeds"]
    assert [main([*asked, each]) for each in "123"] == [0, 0, 0]
    digest = hashlib.sha256((tmp_path / "search" / TABLE).read_bytes()).hexdigest()
    first = {"source": {"table": digest}, "environment": {"commit": "a"}, "commits": ["a", "b"]}
    path = tmp_path / "search" / "hypervolumes.json"
    assert json.loads(path.read_text()) == {"table": first}
    rows = (table.measured[0]._replace(search_loss=9.0), *table.measured[1:])
    write_table(tmp_path, replace(table, measured=rows))
    assert main([*asked, "4"]) == 2
    assert "rows of table were not searched on what table is now" in capsys.readouterr().err
    write_table(tmp_path, table)
    path.unlink()  # what the rows are of is no longer known
    assert main([*asked, "4"]) == 2


def test_rows_of_a_live_network_are_not_averaged_with_those_of_other_images(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["searches", "--results", str(tmp_path), "--run", str(finished), "--problems", "live"]
    asked += ["--searchers", "random", "--evaluations", "2", "--seeds", "1", "--search-images"]
    assert main([*asked, "70"]) == 0
    (row,) = read_record(tmp_path / "search")
    assert math.isnan(row.best)
    assert str(finished) not in (tmp_path / "search" / "hypervolumes.json").read_text()
    assert main([*asked, "80"]) == 2
    assert "rows of live were not searched on what live is now" in capsys.readouterr().err


def test_the_environment_of_a_record_says_what_code_it_is_of() -> None:
    found = command._environment()
    assert {"commit", "dirty", "packages", "cpu"} <= found.keys()
    assert "data_fingerprint" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problems", "tabel"], "--problems: unknown 'tabel'. Known: analytic"),
        (["--searchers", "exactly"], "--searchers: unknown 'exactly'. Known: exact"),
        (["--make-table"], "--make-table needs the finished run"),
        (["--seeds", "0"], "must be at least 1"),
        (["--make-table", "--run", "nowhere"], "nowhere: no finished run"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["searches", "--results", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_more_images_than_there_are_are_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match="5000 images asked for, there are 100"):
        _ = replace(few(finished), search_images=5_000).evaluator


def test_pymoo_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pymoo.algorithms.moo.nsga2", None)
    with pytest.raises(ValueError, match=r"nsga2 needs pymoo: pip install 'pareco\[bench\]'"):
        visited(tabulated(grid(), noisy=False), SEARCHERS["nsga2"], 4, seed=0)


def test_the_command_knows_all_searches_and_problems() -> None:
    known = SearchesCommand()
    assert set(known.searchers) == set(SEARCHERS)
    assert set(known.problems) == set(comparison.TITLES)
