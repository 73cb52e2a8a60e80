"""Which pip, and into which Python: a bare `pip` may belong to another one.

Checks write `pip install ...` in their cures; here it becomes a command for the Python that was
looked at.
"""

from __future__ import annotations

import re
import shlex
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

from runtime.doctoring.findings import Finding

_PIP = re.compile(r"(?<![\w/.-])(?<!-m )pip (?=install |uninstall )")
_ENVIRONMENT = ".venv"


def is_externally_managed() -> bool:
    """Whether pip refuses to install here: the system's own Python (PEP 668)."""
    if sys.prefix != sys.base_prefix:
        return False
    return (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").is_file()


def name_pip(finding: Finding, python: str, *, is_managed: bool) -> Finding:
    """The finding with commands of pip that can be copied as they stand.

    Args:
        finding: whose cure may say `pip install` or `pip uninstall`.
        python: the interpreter.
        is_managed: pip may not install there, so an environment is made first.
    """
    if not _PIP.search(finding.cure):
        return finding
    python = shlex.quote(python)
    if not is_managed:
        return replace(finding, cure=_PIP.sub(lambda _: f"{python} -m pip ", finding.cure))
    inside = _PIP.sub(lambda _: f"{_ENVIRONMENT}/bin/python -m pip ", finding.cure)
    first = f"{python} -m venv --system-site-packages {_ENVIRONMENT}"
    return replace(
        finding,
        cure=f"the system manages this Python, so make an environment first: {first}; then, with "
        f"{_ENVIRONMENT}/bin/python in place of this one: {inside}",
    )
