"""The backend nftables: one table of our own, holes in its sets, and an entrance in each chain that would drop them."""

from nfknock.backends.nftables.backend import NftablesBackend

__all__ = ["NftablesBackend"]
