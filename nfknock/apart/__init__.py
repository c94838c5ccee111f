"""What takes strangers' packets apart, in a process of its own that may do nothing else.

The daemon binds the socket and starts `child`, which gives up every right (`confinement`), takes packets from that
socket (`copies`, `logged`) and hands over numbers of fixed size (`records`) when it is asked. The daemon's side is
`readers.apart`. Why it is so: docs/design/0018-read-apart.md.

Such a process is to stay small: nothing in here needs more than the standard library and `core.packet`.
"""
