"""Port knocking tied directly to the kernel firewall."""

__version__ = "0.1.0"
