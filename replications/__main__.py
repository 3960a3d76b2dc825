"""The entry of `python -m replications`: answers help at once, before the heavy imports."""

import sys

USAGE = """usage: python -m replications COMMAND

  list              the experiments
  run NAME          train and measure every method with every seed, then report;
                    an interrupted run goes on where it was, a finished one is skipped
  report NAME       make tables and figures again from the finished runs

SIGTERM and Ctrl-C have the runs save and end (exit status 143 and 130); a second one ends at once.
Options and fields of the configuration: python -m replications run NAME --help"""


def main(arguments: list[str]) -> int:
    """Carry out a command line; return the exit status.

    0 well, 1 failed, 2 bad request; ended by a signal: 130 for SIGINT, 143 for SIGTERM.
    """
    named = len(arguments) > 1 and not arguments[1].startswith("-")
    if arguments != ["list"] and not (named and arguments[0] in ("run", "report")):
        wants_help = bool({"--help", "-h"} & set(arguments))
        print(USAGE, file=sys.stdout if wants_help else sys.stderr)
        return 0 if wants_help else 2
    try:
        return _carried_out(arguments[0], arguments[1:])
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the checkpoints", file=sys.stderr)
        return 130


def _carried_out(command: str, arguments: list[str]) -> int:
    from pareco.training.interruption import Interrupted
    from replications.command_line import carry_out

    try:
        return carry_out(command, arguments)
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
