"""The command line. One module for each group of commands; nothing is decided here.

Exit codes: 0 done, 1 it failed, 2 the call or the configuration is wrong. An error is one line on stderr, never a
traceback (`-v` shows one for errors that should not happen). Results go to stdout, logs to stderr.
"""

from nfknock.cli.app import main

__all__ = ["main"]
