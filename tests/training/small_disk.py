"""A run on a small file system that fills up, and is then made read-only; run in a namespace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from pareco.training import RunError, StepReport, execute_run
from replications.catalogue import method_named
from tests.experiments import TINY
from tests.training.attempts import EACH_STEP


def main(disk: Path, end: Path) -> None:
    """Write what the run said to `end/told.json`, and its records beside it."""
    os.environ["WANDB_MODE"] = "disabled"
    path, told = disk / "run", {}

    def fill(report: StepReport) -> None:
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while report.step == 5:
                file.write(bytes(1024))

    def message(path: Path) -> str:
        try:
            execute_run(TINY, method_named("us_net"), 0, path, on_step[0], EACH_STEP)
        except RunError as error:
            return str(error)
        return "nothing went wrong"

    on_step = [fill]
    told["full"] = message(path)
    told["checkpoints"] = sorted(file.name for file in (path / "checkpoints").iterdir())
    on_step[0] = lambda report: None
    (disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    told["read_only"] = message(path)
    told["read_only_from_the_start"] = message(disk / "other")
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    execute_run(TINY, method_named("us_net"), 0, path, machine=EACH_STEP)
    shutil.copytree(path, end)
    (end / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
