"""The command line: which command was meant, and what its end means to a shell (SPEC 4 and 6).

Knows options and exit codes; what a command does stands in `commands`, `maelstrom` and `up`, which
are imported only for their own command: the Maelstrom node answers `init` within a blink.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module

from sagacity import __version__
from sagacity.errors import InvariantBroken, SagacityError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count

COMMANDS = {
    "up": "run a cluster on this machine, in the foreground",
    "checkout": "check out, and wait for the outcome",
    "show": "tell the history of a saga",
    "list": "list sagas, newest first",
    "cancel": "turn a saga back",
    "retry": "ask a stuck compensation again now",
    "status": "tell how the cluster is",
    "top": "watch the cluster: rates, latency, shards, pools, what needs a person",
    "audit": "compare the books of the services with the journals",
    "check": "check the invariants of a stopped cluster, from all that it left",
    "journal": "verify the journals of a stopped cluster",
    "config": "show the configuration, and where each value comes from",
    "bench": "measure how fast a cluster is: sagacity bench run --help",
    "spans": "export finished sagas as OpenTelemetry spans",
    "maelstrom": "speak the Maelstrom protocol on stdin and stdout",
}
# Where each command lives: a module with add_arguments(parser), and a function of the options.
_HOMES = {
    "up": ("cluster.up", "add_arguments", "run_up"),
    "maelstrom": ("cluster.maelstrom", "add_arguments", "run_maelstrom"),
    **{
        name: ("cluster.commands", f"{name}_arguments", name)
        for name in ("checkout", "show", "cancel", "retry", "status", "audit")
    },
    "list": ("cluster.commands", "list_arguments", "list_sagas"),
    "check": ("cluster.checking", "add_arguments", "run_check"),
    "top": ("cluster.top", "add_arguments", "run_top"),
    "bench": ("cluster.measuring", "add_arguments", "run_bench"),
    "spans": ("cluster.exporting", "add_arguments", "run_spans"),
    "journal": ("cluster.commands", "journal_arguments", "verify_journal"),
    "config": ("cluster.commands", "config_arguments", "show_config"),
}

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: without the program's name; those of this process if left out.

    Returns:
        The exit code of SPEC 4 and 6.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who read us has read enough. What is still buffered must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SagacityError as error:
        _say(error.text)
        return error.exit_code
    except InvariantBroken as error:
        _say(f"a bug: {error}")
        return 1
    except OSError as error:  # stdout takes nothing: what was asked may have happened, untold
        _say(f"cannot write: {error.strerror or error}")
        return 1
    return code


def _say(text: str) -> None:
    """Say why; where nobody can hear it, the exit code says it alone."""
    with suppress(OSError, AttributeError):  # full; closed by who started us
        sys.stderr.write(f"sagacity: {text}\n")


def _run(words: list[str]) -> int:
    try:
        parser, run = _parser(words[0] if words else "")
        options = parser.parse_args(words)
    except SystemExit as ended:  # argparse has said what is wrong, or has helped
        return int(ended.code or 0)
    if run is None:
        parser.print_help(sys.stderr)
        return 2
    return run(options)


def _parser(command: str) -> tuple[argparse.ArgumentParser, Run | None]:
    """Make the parser, with the options of one command: the others' are slow to import."""
    parser = argparse.ArgumentParser(
        prog="sagacity", description="Sagas that finish.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"sagacity {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    run: Run | None = None
    for name, text in COMMANDS.items():
        chosen = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == command:
            home, add_arguments, entry = _HOMES[name]
            module = import_module(home)
            getattr(module, add_arguments)(chosen)
            run = getattr(module, entry)
    return parser, run
