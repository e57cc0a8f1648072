"""The command line: `edgepd`, one module per group of commands. It talks to the daemon and never loads a model."""

from edgepd.cli.app import main

__all__ = ["main"]
