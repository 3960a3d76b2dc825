"""The command `searches`: it compares searches, and makes the table that they are compared on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pareco.arguments import Flag

if TYPE_CHECKING:
    from replications.searches.comparison import Reached
    from replications.searches.landscapes import SearchProblem
    from replications.searches.trained import TrainedNetwork

TABLE = "vgg_table.csv.gz"
SIX = (0.42, 0.536, 0.652, 0.768, 0.884, 1.0)
FEW_SEEDS = 3
SLOW_EVALUATIONS = 200


@dataclass(frozen=True, kw_only=True)
class SearchesCommand:
    """Compare searches by the hypervolume that they reach after equally many evaluations.

    `search/` in the results gets a record, a table and a figure; what the record has already is
    not searched again, and it is refused where it is of another table or network. --make-table
    measures the networks of a finished run for it.
    """

    problems: tuple[str, ...] = ("analytic", "table", "noisy", "live")
    """analytic; table and noisy: of the table that --make-table made; live: the network of --run.
    The last three only where there is a table or a run."""

    searchers: tuple[str, ...] = ("exact", "paper", "random", "uniform", "qlognehvi", "nsga2")
    """exact, paper, random, uniform, qlognehvi, nsga2 (which needs pymoo: the extra bench)."""

    evaluations: tuple[int, ...] = (50, 100, 200, 500)
    """After how many a hypervolume is recorded; of paper and qlognehvi up to 200."""

    seeds: int = 10
    """How many seeds, from 0; three of paper and qlognehvi, and of the live network."""

    run: Path | None = None
    """Folder of the finished run whose network is measured."""

    images: str | None = None
    """Where its images lie."""

    make_table: Flag = False
    """Measure all networks of a grid instead, a multiplier for each stage of the network of --run;
    the same command goes on after an interruption."""

    multipliers: tuple[float, ...] = SIX
    """Of the table's grid."""

    search_images: int = 1_000
    """Held-out images that networks are measured on."""

    test_images: int = 1_000
    """Test images that the table's networks are measured on."""

    results: Path = Path("results")
    """Folder of all results."""

    def carried_out(self, console: Console) -> int:
        """Write what was asked for; return 0. Raises `ValueError` for what can't be had."""
        self._check()
        folder = self.results / "search"
        folder.mkdir(parents=True, exist_ok=True)
        if self.make_table:
            from replications.searches.trained import make_table

            make_table(self._trained(), self.multipliers, folder / TABLE, console)
            return 0
        from replications.searches.comparison import write_search_results

        self._search(folder, console)
        write_search_results(folder)
        console.out(folder)
        return 0

    def _search(self, folder: Path, console: Console) -> None:
        """Search what the record has not yet, and write the record and where it comes from."""
        from replications.searches import comparison

        record, sources = comparison.read_record(folder), self._sources(folder, console)
        origins, here = comparison.read_origins(folder, record, sources), _environment()
        for name, source in sources.items():
            first = {"source": source, "environment": here, "commits": []}
            for rows in self._searched(self._problem(name, folder), record, console):
                commits = origins.setdefault(name, first)["commits"]
                if here["commit"] not in commits:
                    commits.append(here["commit"])
                comparison.write_origins(folder, origins)
                replaced = {each[:4] for each in rows}
                record = [each for each in record if each[:4] not in replaced] + rows
                comparison.write_record(folder, record)

    def _check(self) -> None:
        known = {"problems": type(self).problems, "searchers": type(self).searchers}
        for name, there in known.items():
            for each in getattr(self, name):
                if each not in there:
                    known_names = ", ".join(there)
                    raise ValueError(f"--{name}: unknown {each!r}. Known: {known_names}")
        if self.make_table and self.run is None:
            raise ValueError("--make-table needs the finished run: --run FOLDER")
        if self.seeds < 1 or min(self.evaluations, default=0) < 1:
            raise ValueError("--seeds and --evaluations must be at least 1")

    def _trained(self) -> TrainedNetwork:
        from replications.searches.trained import TrainedNetwork

        assert self.run is not None
        return TrainedNetwork(
            folder=self.run,
            images=self.images,
            search_images=self.search_images,
            test_images=self.test_images,
        )

    def _sources(self, folder: Path, console: Console) -> dict[str, dict[str, object]]:
        """Return those of the problems that can be had, each with what it is searched on."""
        from replications.searches.landscapes import LIVE_IMAGES

        found: dict[str, dict[str, object]] = {}
        if "analytic" in self.problems:
            found["analytic"] = {}
        asked = [each for each in ("table", "noisy") if each in self.problems]
        if asked and (folder / TABLE).exists():
            found |= {each: {"table": _digest(folder / TABLE)} for each in asked}
        elif asked:
            console.print(f"no {folder / TABLE}: {' and '.join(asked)} are left out")
        if "live" in self.problems and self.run is not None:
            found["live"] = {
                "weights": _digest(self._trained().weights),
                "training_images": LIVE_IMAGES,
                "search_images": self.search_images,
            }
        elif "live" in self.problems:
            console.print("no --run: live is left out")
        return found

    def _problem(self, name: str, folder: Path) -> SearchProblem:
        from replications.searches import landscapes
        from replications.searches.grid import read_grid

        if name == "analytic":
            return landscapes.analytic()
        if name == "live":
            return landscapes.live(self._trained())
        return landscapes.tabulated(read_grid(folder / TABLE), noisy=name == "noisy")

    def _searched(
        self, problem: SearchProblem, record: list[Reached], console: Console
    ) -> Iterator[list[Reached]]:
        """Yield the rows of each search that the record has not yet."""
        from replications.searches.searchers import SEARCHERS, SLOW, reached

        done = {each[:4] for each in record}
        for searcher in self.searchers:
            slow = searcher in SLOW
            seeds = min(self.seeds, FEW_SEEDS) if slow or problem.best is None else self.seeds
            most = SLOW_EVALUATIONS if slow else max(self.evaluations)
            counts = [each for each in self.evaluations if each <= most]
            for seed in range(seeds):
                if not done.issuperset((problem.name, searcher, seed, each) for each in counts):
                    console.print(f"{problem.name}, {searcher}, seed {seed}")
                    yield reached(problem, searcher, SEARCHERS[searcher], counts, seed)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _environment() -> dict[str, Any]:
    from pareco.processes import joined_processes
    from pareco.training.environment import environment

    found = environment("", joined_processes("cpu"))
    del found["data_fingerprint"]
    return found
