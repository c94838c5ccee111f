"""The daemon: a thin shell around the core.

`service` is the loop, `firewall` the one thread that writes, `control` how others find it, `logs` what it says.
"""
