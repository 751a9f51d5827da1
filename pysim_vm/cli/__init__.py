"""The command line: `pysim-vm` and what is behind each of its commands.

`app` is the entry and holds the commands that need few words; a command with more has a room of its own here,
imported when it is called.
"""

from pysim_vm.cli.app import main, run_command

__all__ = ["main", "run_command"]
