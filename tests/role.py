"""The Ansible role, and what Ansible itself evaluates its templates with; tests that need either come by here.

Its plugins can be loaded once in a process and no more. Where there is no Ansible, who imports this is skipped.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("ansible")
# It makes a directory in there as soon as it is imported, in the home directory otherwise.
os.environ["ANSIBLE_LOCAL_TEMP"] = tempfile.gettempdir()

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

__all__ = ["COLLECTION", "ROLE", "DataLoader", "Templar", "trust_as_template"]

COLLECTION = Path(__file__).parent.parent / "ansible"
ROLE = COLLECTION / "roles/nfknock"

init_plugin_loader()
