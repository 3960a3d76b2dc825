"""The entry of `python -m replications`: answers help at once, before the heavy imports."""

import sys

USAGE = """usage: python -m replications COMMAND

  list              the experiments
  run NAME          train and measure every method with every seed, then report;
                    an interrupted run goes on where it was, a finished one is skipped
  report NAME       records from the finished runs, tables and figures from the records
  report --all      all results made again from the records that they hold
  claims            the paper's claims: reproduced, not reproduced, not run at that scale
  wandb-sync        upload to Weights & Biases what was recorded offline
  wandb-report NAME upload fronts and curves of an experiment, and write a report about it

SIGTERM and Ctrl-C have the runs save and end (exit status 143 and 130); a second one ends at once.
Options of each: python -m replications COMMAND [NAME] --help"""


def main(arguments: list[str]) -> int:
    """Carry out a command line; return the exit status.

    0 well, 1 failed, 2 bad request; ended by a signal: 130 for SIGINT, 143 for SIGTERM.
    """
    from replications.commands import COMMANDS, WITH_NAME

    command, *rest = arguments or [""]
    name = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if command not in COMMANDS or (command in WITH_NAME and name is None):
        wants_help = bool({"--help", "-h"} & set(arguments))
        print(USAGE, file=sys.stdout if wants_help else sys.stderr)
        return 0 if wants_help else 2
    try:
        return _carried_out(command, name, rest)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the checkpoints", file=sys.stderr)
        return 130


def _carried_out(command: str, name: str | None, arguments: list[str]) -> int:
    from pareco.training.interruption import Interrupted
    from replications.commands import carry_out

    try:
        return carry_out(command, name, arguments)
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
