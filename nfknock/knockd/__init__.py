"""What people come from: knockd.conf in, an nfknock configuration and a report out.

Text in, text out: nothing is run, looked up or opened, whatever stands in the file. The steps are those of the
modules: `reader` finds sections, `shell` splits commands, `commands` says what they do, `doors` and `pairs` make doors
of them, `toml` writes them.
"""

from nfknock.knockd.convert import Conversion, convert, looks_like_knockd
from nfknock.knockd.report import KnockdError, Note

__all__ = ["Conversion", "KnockdError", "Note", "convert", "looks_like_knockd"]
