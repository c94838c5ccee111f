"""What decides: values in, commands out. No I/O, no clock, no netfilter.

`packet` turns bytes into a packet, `tracker` follows each source's sequences, `model` holds the values that they
and the edges share, `plan` says what the firewall should hold, `lint` what an administrator should know.
"""
