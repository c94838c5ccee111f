#!/usr/bin/python
"""Knocks at a host and makes a new connection to it: an Ansible module that needs nothing but Python."""

from __future__ import annotations

import errno
import re
import socket
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: nfknock_reach
short_description: Knock at a host and see whether a port answers
description:
  - Makes a new TCP connection to a port, knocking first if there is a sequence.
  - Runs where the knocks are to come from, usually with C(delegate_to=localhost). Needs no nfknock there.
author: The nfknock authors
options:
  host:
    description: A name or an address.
    type: str
    required: true
  port:
    description: The TCP port that is to answer.
    type: int
    default: 22
  sequence:
    description:
      - The knocks in order, as V(7101), V(7101/tcp) or V(8203/udp); V(8203:udp) as well.
      - Without any it only connects.
    type: list
    elements: str
    default: []
  banner:
    description: What the other end has to say first, as a regular expression. Empty; nothing.
    type: str
    default: "SSH-"
  timeout:
    description: Give up after so many seconds.
    type: float
    default: 20
attributes:
  check_mode:
    description: It changes nothing anyway.
    support: full
"""

EXAMPLES = r"""
- name: Knock, and see whether SSH answers
  nfknock_reach:
    host: bastion.example.org
    sequence: ["7101", "8203/udp", "9307", "4411/udp"]
  delegate_to: localhost
  become: false
  no_log: true
"""

RETURN = r"""
address:
  description: The address that answered.
  returned: success
  type: str
source:
  description: The address from which it connected, as this host knows it.
  returned: success
  type: str
rounds:
  description: How often the sequence was knocked.
  returned: always
  type: int
was_open:
  description: Whether the port answered before any knock.
  returned: always
  type: bool
"""

_KNOCK = re.compile(r"\s*(\d{1,5})(?:\s*[:/]\s*(tcp|udp))?\s*$", re.IGNORECASE)
# Seconds between the knocks of a round: where packets overtake each other, a slower one arrives in order.
_PAUSES = (0.01, 0.05, 0.1, 0.25)
_BETWEEN_ROUNDS = 2.0
_LOOK = 0.5
_BANNER = 5.0
# Of a port that is open already, nobody sees which knock arrived: some are sent, a second and more apart.
_ROUNDS_IF_OPEN = 3


def main():
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 22},
            "sequence": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "banner": {"type": "str", "default": "SSH-"},
            "timeout": {"type": "float", "default": 20},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    where = f"{wanted['host']} port {wanted['port']}"
    found = {"rounds": 0, "was_open": False, "source": ""}
    try:
        knocks = [parse(text) for text in wanted["sequence"]]
        addresses = resolve(wanted["host"])
        address, reason = reach(addresses, knocks, wanted, found)
    except (OSError, ValueError) as exc:
        module.fail_json(msg=f"reaching {where}: {getattr(exc, 'strerror', None) or exc}", **found)
    if not address:
        tried = f"after {found['rounds']} rounds of knocks" if knocks else "without a knock"
        module.fail_json(msg=f"{where} did not answer within {wanted['timeout']:g} s, {tried}: {reason}", **found)
    module.exit_json(changed=False, address=address, **found)


def parse(text):
    """Return a knock as a port and whether it is TCP. Raises ValueError, which does not say the knock."""
    match = _KNOCK.match(text)
    if not match or not 1 <= int(match[1]) <= 65535:
        raise ValueError("a knock is a port, 1 to 65535, as 7101, 7101/tcp or 7101/udp")
    return int(match[1]), (match[2] or "tcp").lower() == "tcp"


def resolve(host):
    """Return the addresses of a host, each as a family and a socket address. Raises OSError."""
    found = socket.getaddrinfo(host, None, socket.AF_UNSPEC, socket.SOCK_STREAM)
    return list(dict.fromkeys((family, place) for family, _kind, _protocol, _name, place in found))


def reach(addresses, knocks, wanted, found):
    """Return the address that answered, or none and why not. Raises OSError if there is no way to any."""
    give_up_at = time.monotonic() + wanted["timeout"]
    places = list(addresses)
    address, reason = connect(places, wanted, found)
    found["was_open"] = bool(address)
    if not knocks and address:
        return address, reason
    while time.monotonic() < give_up_at:
        if knocks:
            place = places[found["rounds"] % len(places)]
            try:
                knock(place, knocks, _PAUSES[min(found["rounds"], len(_PAUSES) - 1)])
            except OSError:
                # A name may have addresses of a kind that this host has not: the others count.
                places.remove(place)
                if not places:
                    raise
                continue
            found["rounds"] += 1
        until = min(time.monotonic() + _BETWEEN_ROUNDS, give_up_at)
        while time.monotonic() < until:
            address, reason = connect(places, wanted, found)
            if address:
                break
            time.sleep(0.05)
        if address and (not found["was_open"] or found["rounds"] >= _ROUNDS_IF_OPEN):
            return address, reason
        if address:
            time.sleep(1)
    return None, reason


def connect(addresses, wanted, found):
    """Try each address once; return the one that answered, or none and why not."""
    reason = "no answer"
    for family, place in addresses:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(_LOOK)
                connection.connect((place[0], wanted["port"], *place[2:]))
                found["source"] = connection.getsockname()[0]
                connection.settimeout(_BANNER)
                said = connection.recv(256).decode(errors="replace") if wanted["banner"] else ""
        except OSError as exc:
            reason = "no answer" if isinstance(exc, TimeoutError) else (exc.strerror or str(exc)).lower()
            continue
        if re.match(wanted["banner"], said):
            return place[0], ""
        reason = "what answers there is something else"
    return None, reason


def knock(where, knocks, pause):
    """Send a round of knocks. Raises OSError if there is no way there at all."""
    family, place = where
    for index, (port, is_tcp) in enumerate(knocks):
        if index:
            time.sleep(pause)
        with socket.socket(family, socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM) as knocking:
            knocking.settimeout(0)
            target = (place[0], port, *place[2:])
            if not is_tcp:
                knocking.sendto(b"\0", target)
                continue
            # The SYN leaves at once; the socket is closed before it is repeated.
            code = knocking.connect_ex(target)
            if code not in (0, errno.EINPROGRESS, errno.ECONNREFUSED):
                raise OSError(code, f"knocking: {errno.errorcode.get(code, code)}")


if __name__ == "__main__":
    main()
