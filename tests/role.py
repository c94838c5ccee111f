"""The Ansible role, and what Ansible itself evaluates its templates with; tests that need either come by here.

Its plugins can be loaded once in a process and no more. Where there is no Ansible, who imports this is skipped.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

pytest.importorskip("ansible")
# It makes a directory in there as soon as it is imported, in the home directory otherwise.
os.environ["ANSIBLE_LOCAL_TEMP"] = tempfile.gettempdir()

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

__all__ = ["COLLECTION", "ROLE", "DataLoader", "Templar", "something_like_ssh", "trust_as_template"]

COLLECTION = Path(__file__).parent.parent / "ansible"
ROLE = COLLECTION / "roles/nfknock"

init_plugin_loader()


@contextmanager
def something_like_ssh() -> Iterator[int]:
    """Listen, and say what SSH says; give the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"SSH-2.0-test\r\n")

        Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
