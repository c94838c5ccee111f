"""The iptables backend: a rule a hole, in chains of its own in the legacy filter tables.

`layout` says which rules stand where, `record` how a hole stands in a rule, `backend` has the verbs.
"""

from nfknock.backends.iptables.backend import IptablesBackend

__all__ = ["IptablesBackend"]
