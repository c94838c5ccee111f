"""What the host is like: its other rulesets, who is here over SSH, who has a queue, what the kernel has.

Everything here looks and changes nothing: no module is loaded, no table is made by being asked for.

`probe` is a packet that somebody may send, `walk` takes it through chains; `nftables` and `legacy` read the two kinds
of ruleset that a host can have. What is not understood is never guessed: it may match, and it may not.
"""
