"""`python -m bench COMMAND`, which is what `sagacity bench COMMAND` runs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from sagacity.errors import Malformed, SagacityError

EXIT_INTERRUPTED = 130

# Each a module with add_arguments(parser) and run(options).
COMMANDS = {"run": ("bench.run", "put a load on a cluster and measure it")}


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
                if (error.name or "").partition(".")[0] != "hdrh":
                    raise
                raise Malformed("it needs hdrhistogram: pip install 'sagacity[bench]'") from None
            module.add_arguments(chosen)
            run = module.run
    return parser, run


if __name__ == "__main__":
    sys.exit(main())
