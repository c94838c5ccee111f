"""ansible.builtin.template, which keeps the sequences out of the difference that it shows."""

from __future__ import annotations

import re
from typing import Any

from ansible.plugins.action.template import ActionModule as Template

# Also in what was changed by hand: behind a comment's sign, in quotes, within an inline table.
_SECRET = re.compile(
    r"""(?P<key>sequence["']?[ \t]*=[ \t]*)(?P<knocks>\[.*?\]|"[^"\n]*"|'[^'\n]*')""", re.IGNORECASE | re.DOTALL
)
_OURS = re.compile(r"\s*# Ansible writes this file;")


class ActionModule(Template):
    """Write the configuration; the difference names the doors that have changed, and no knock."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do as the template action does."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        shown = result.get("diff")
        for each in [shown] if isinstance(shown, dict) else shown or []:
            before, after = each.get("before") or "", each.get("after") or ""
            # Of a file whose text stays as it is, these are its owner and its mode.
            if isinstance(before, str) and isinstance(after, str):
                each["before"], each["after"] = _hidden(before, after)
        return result


def _hidden(before: str, after: str) -> tuple[str, str]:
    if before and not _OURS.match(before):
        # A knockd.conf, or half a file: nobody knows where the secrets are.
        before = "[hidden, as Ansible did not write it]\n"
    known = {match["knocks"] for match in _SECRET.finditer(before)}

    def word(match: re.Match[str]) -> str:
        return match["key"] + ("[hidden]" if match["knocks"] in known else "[hidden, new]")

    return _SECRET.sub(word, before), _SECRET.sub(word, after)
