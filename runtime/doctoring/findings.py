"""What the doctor says: findings, each with its cure, as a table and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from runtime.contract.errors import one_line

Level: TypeAlias = Literal["ok", "note", "warning", "error"]

LEVELS: tuple[Level, ...] = get_args(Level)  # the worst is last
SCHEMA = 1  # of the JSON
_LONGEST_FOUND = 400  # characters; a loader may tell a whole story


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        subject: the part of the machine, such as "OpenCV".
        code: a stable name for programs, such as "opencv-two-wheels".
        level: "ok"; "note": it works, and there is something to know; "warning": slower, less
            exact, or some sources and outputs lacking; "error": something does not work.
        found: what stands here, in one line; what cannot be printed is left
            out, and so is the middle of a long one.
        cure: what to do, in one line; empty where the level is "ok".
    """

    subject: str
    code: str
    level: Level
    found: str
    cure: str = ""

    def __post_init__(self) -> None:
        assert bool(self.cure) == (self.level != "ok"), f"{self.code}: a cure for {self.level!r}"
        object.__setattr__(self, "found", _shorten(_one_line(self.found)))
        object.__setattr__(self, "cure", _one_line(self.cure))


def from_error(subject: str, code: str, error: Exception, level: Level = "error") -> Finding:
    """An error's message as a finding: the last sentence of ours is the cure."""
    found, _, cure = one_line(error).rpartition(". ")
    if not found:
        found, cure = cure, "copy the files again, or make them anew"
    return Finding(subject, code, level, found, cure.rstrip("."))


def worst_level(findings: Sequence[Finding]) -> Level:
    """Of all; "ok" where there are none."""
    return max((each.level for each in findings), key=LEVELS.index, default="ok")


def count_levels(findings: Sequence[Finding]) -> dict[str, int]:
    """How many of each level, the worst first."""
    return {level: sum(each.level == level for each in findings) for level in reversed(LEVELS)}


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """`{schema, worst, counts: {level: number}, findings: [{subject, code, level, found, cure}]}`.

    Fields may be added under the same schema number; those there are keep name and meaning.
    """
    return {
        "schema": SCHEMA,
        "worst": worst_level(findings),
        "counts": count_levels(findings),
        "findings": [asdict(each) for each in findings],
    }


def to_table(findings: Sequence[Finding], width: int = 100) -> str:
    """Level, subject and finding; its cure below; all are counted at the end.

    Args:
        findings: in the order in which they are shown.
        width: of a finding's lines, in characters; at least 60 are taken.
    """
    width = max(width, 60)
    level_width = max(len(level) for level in LEVELS)
    subject_width = max((len(each.subject) for each in findings), default=0)
    indent = " " * (level_width + subject_width + 4)
    lines = []
    for each in findings:
        head = f"{each.level:<{level_width}}  {each.subject:<{subject_width}}  "
        lines += _fold(head + each.found, indent, width)
        if each.cure:
            lines.append(f"{indent}-> {each.cure}")  # not folded: commands are copied from here
    counted = [
        f"{count} {_plural(level, count)}" for level, count in count_levels(findings).items()
    ]
    return "\n".join([*lines, "", ", ".join(counted)])


def _fold(text: str, indent: str, width: int) -> list[str]:
    """Paths and names are not cut."""
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def _one_line(text: str) -> str:
    """Names of devices and words of libraries may hold anything, terminal commands too."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _shorten(text: str) -> str:
    """Beginning and end, where reasons stand."""
    if len(text) <= _LONGEST_FOUND:
        return text
    half = (_LONGEST_FOUND - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def _plural(level: str, count: int) -> str:
    return level if count == 1 or level == "ok" else f"{level}s"
