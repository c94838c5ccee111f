"""The backends iptables and ipset: chains of their own in the legacy filter tables.

`layout` says which rules stand where, `edits` changes a table in memory, `backend` has the verbs. What a hole is stored
as is a `store`: `rules` (the backend iptables) or entries of `sets` (ipset). `record` is what is written beside it.
"""

from nfknock.backends.iptables.backend import IptablesBackend

__all__ = ["IptablesBackend"]
