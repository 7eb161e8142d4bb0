"""`python -m bench COMMAND`, which is what `sagacity bench COMMAND` runs."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from sagacity.errors import Malformed, SagacityError

EXIT_INTERRUPTED = 130

# Each a module with add_arguments(parser) and run(options).
COMMANDS = {
    "run": ("bench.run", "put a load on a cluster and measure it"),
    "floor": ("bench.floored", "put the same load on the least program that could do it"),
    "peak": ("bench.scenarios", "scenario: as many as it can, beside the floor"),
    "alone": ("bench.scenarios", "scenario: one in flight, beside the floor"),
    "steady": ("bench.scenarios", "scenario: half of peak in the open loop, beside the floor"),
    "shards": ("bench.scenarios", "scenario: what a checkout costs with 1 to 8 shards"),
    "overload": ("bench.overload", "scenario: three times as many as can be served"),
    "flash-sale": ("bench.flash_sale", "scenario: one thing, and more buyers than units"),
    "failover": ("bench.failover", "scenario: kill -9 of a shard, a worker, the router"),
    "growth": ("bench.growth", "scenario: three million finished sagas"),
    "soak": ("bench.soak", "scenario: hours at half of peak"),
    "in-flight": ("bench.in_flight", "scenario: a hundred thousand that wait"),
    "declines": ("bench.scenarios", "scenario: what a growing share of declines costs"),
    "sweep": ("bench.sweep", "runs over in flight, rate or share of declines, for a curve"),
    "report": ("bench.page", "one page with plots and tables, from result files"),
    "compare": ("bench.compare", "two results beside each other: is it faster, or cannot one tell"),
}
NEEDED = {"hdrh": "hdrhistogram", "matplotlib": "matplotlib"}  # packages, by what is imported


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; give the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        parser, run = _parser(words[0] if words else "")
        options = parser.parse_args(words)
        if run is None:
            parser.print_help(sys.stderr)
            return 2
        return run(options)
    except SystemExit as ended:  # argparse has said what is wrong, or a signal ended it
        return int(ended.code or 0)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Who read us has read enough. What is still buffered must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        print(f"sagacity bench: cannot write: {error}", file=sys.stderr)
        return 1
    except SagacityError as error:
        print(f"sagacity bench: {error.text}", file=sys.stderr)
        return error.exit_code


def _parser(
    command: str,
) -> tuple[argparse.ArgumentParser, Callable[[argparse.Namespace], int] | None]:
    parser = argparse.ArgumentParser(
        prog="sagacity bench", description="How fast, and what it costs.", allow_abbrev=False
    )
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    run = None
    for name, (home, text) in COMMANDS.items():
        chosen = commands.add_parser(name, help=text, allow_abbrev=False)
        if name == command:
            try:
                module = import_module(home)
            except ModuleNotFoundError as error:
                needed = NEEDED.get((error.name or "").partition(".")[0])
                if needed is None:
                    raise
                raise Malformed(f"it needs {needed}: pip install 'sagacity[bench]'") from None
            chosen.set_defaults(scenario=name)
            module.add_arguments(chosen)
            run = module.run
    return parser, run


if __name__ == "__main__":
    sys.exit(main())
