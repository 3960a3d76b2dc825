"""A run on a small file system that fills up, and is then made read-only; run in a namespace."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from pareco.training import RunError, StepReport, execute_run
from replications.catalogue import method_named
from tests.experiments import TINY
from tests.training.attempts import EACH_STEP


def main(disk: Path) -> None:
    """Print what the run said, which checkpoints were there, and the records at its end."""
    os.environ["WANDB_MODE"] = "disabled"
    told: dict[str, object] = {}

    def fill(report: StepReport) -> None:
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while report.step == 5:
                file.write(bytes(1024))

    def go_on(name: str, path: Path = disk / "run", full: bool = False) -> None:
        listen = fill if full else lambda report: None
        try:
            execute_run(TINY, method_named("us_net"), 0, path, listen, EACH_STEP)
        except RunError as error:
            told[name] = str(error)

    go_on("full", full=True)
    told["checkpoints"] = sorted(file.name for file in (disk / "run/checkpoints").iterdir())
    (disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    go_on("read_only")
    go_on("read_only_from_the_start", disk / "other")
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    go_on("end")
    files = ("front.csv", "metrics.jsonl")
    print(json.dumps(told | {name: (disk / "run" / name).read_text() for name in files}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
