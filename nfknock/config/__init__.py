"""The configuration file: TOML in, checked values out.

`load` is all that the rest needs. Everything that is wrong is a `ConfigError` that names the file and the key path
and says what would be right.
"""

from nfknock.config.load import DEFAULT_PATH, Config, Log, load, read

__all__ = ["DEFAULT_PATH", "Config", "Log", "load", "read"]
