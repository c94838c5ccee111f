"""Sets of the kernel (ipset) that hold holes: read over netlink, written through pyroute2, never by the ipset program.

`entry` says how a hole's entry looks in the kernel's answers, `kernel` reads, writes and takes back, `explained` says
what went wrong.
"""
