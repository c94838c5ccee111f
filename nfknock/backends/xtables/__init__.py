"""Legacy x_tables through python-iptables, with that library's defects kept in here.

`binding` loads the library and encodes rules, `entry` reads what the kernel returns, `table` edits a filter table,
`lock` keeps other tools out meanwhile. Nothing outside this package touches `iptc`.

One thread only: the library and the C code below it share buffers across rules and tables.
"""
