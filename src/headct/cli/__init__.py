"""The command line: one thin file per command. `headct.cli.commands` lists them."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `headct` command: runs it on `sys.argv` and exits with its code."""
    import sys

    from headct.cli.app import run

    sys.exit(run(sys.argv[1:]))
