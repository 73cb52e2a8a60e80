"""Commands that the project's documents and helps tell people to type, as they stand there.

A command in a block of a document, or among the examples of a help, is whole: it can be copied. One
quoted inside a sentence may leave out what the sentence does not speak of.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

from runtime.contract.manual import EXAMPLES_HEADING, STATUS_HEADING

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("training", "export", "runtime", "benchmarks")
READ_IN_FULL = ("README.md", "CONTRIBUTING.md")  # what stands in others is parsed, and not run
# What documents write for something of the reader's, and what stands there instead in the tests.
STAND_FOR = {
    "PATH": "data/mine",
    "PATH/images": "photos",
    "BUNDLE": "runs/mine",
    "IMAGES": "photos",
    "CLIP": "street.mp4",
    "car-detection.mp4": "street.mp4",
    "bccd": "data/mine",
    "BCCD": "runs/train/mine/best.safetensors",
    "FILE": "weights/retinanet_small.safetensors",
    "FILE.pth": "yolact_resnet50_54_800000.pth",
    "runs/train/retinanet_small_NAME/best.safetensors": "runs/train/mine/best.safetensors",
    "...": "runs/retinanet",
}

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_QUOTED = re.compile(r"`([^`]+)`")
_SCRIPT = re.compile(r"(?:(?:training|export|runtime|benchmarks)/\w+|demo)\.py")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        origin: the document, or the script whose help it stands in.
        words: of the command, without `python` in front of a script of ours.
        is_whole: whether it can be copied as it stands.
    """

    origin: str
    words: tuple[str, ...]
    is_whole: bool

    @property
    def is_script(self) -> bool:
        """Whether it runs a script of ours."""
        return _SCRIPT.fullmatch(self.words[0]) is not None

    @property
    def module(self) -> str:
        """The script as a module."""
        return self.words[0].removesuffix(".py").replace("/", ".")

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True)
class Parsed:
    """A command as its script's own parser takes it.

    Attributes:
        options: names of all options that the parser knows, subcommands included.
        error: what the parser says against it; empty where it is taken.
    """

    options: frozenset[str]
    error: str


def scripts() -> list[Path]:
    """Every script of ours."""
    found = [ROOT / "demo.py"]
    for package in PACKAGES:
        paths = sorted((ROOT / package).glob("*.py"))
        found += [path for path in paths if '__name__ == "__main__"' in path.read_text()]
    return found


def documents() -> list[Path]:
    """Every document that may tell a command."""
    patterns = ("*.md", "assets/*.md", "weights/*.md", "benchmarks/results/*.md", "deploy/*/*.md")
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


@cache
def all_commands() -> tuple[Command, ...]:
    """Those of documents and helps, each once."""
    found: dict[tuple[str, ...], Command] = {}
    for path in documents():
        for command in commands_of_document(str(path.relative_to(ROOT)), path.read_text()):
            found.setdefault(command.words, command)
    for path in scripts():
        origin = str(path.relative_to(ROOT))
        for command in commands_of_help(origin, help_of(Command(origin, (origin,), True).module)):
            found[command.words] = command
    return tuple(found.values())


def commands_of_document(origin: str, text: str) -> Iterator[Command]:
    """The commands in blocks of shell, and those of our scripts quoted in its sentences."""
    for kind, block in _BLOCK.findall(text):
        if kind == "sh":
            for words in split_lines(block):
                yield Command(origin, words, is_whole=True)
    for quoted in _QUOTED.findall(_BLOCK.sub("", text)):
        if _SCRIPT.search(quoted) and len(quoted.split()) > 1:
            words = split_line(" ".join(quoted.split()))
            if _SCRIPT.fullmatch(words[0]) and len(words) > 1:
                yield Command(origin, words, is_whole=False)


def commands_of_help(origin: str, text: str) -> list[Command]:
    """The examples of a help: lines indented by two, and what a backslash joins to them."""
    examples = text.partition(f"\n{EXAMPLES_HEADING}\n")[2].partition(f"\n{STATUS_HEADING}\n")[0]
    joined = examples.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if re.match(r"  \S", line)]
    return [Command(origin, split_line(line), is_whole=True) for line in lines]


def split_lines(block: str) -> list[tuple[str, ...]]:
    """The commands of a block of shell, comments left out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [split_line(line) for line in lines if shlex.split(line, comments=True)]


def split_line(line: str) -> tuple[str, ...]:
    """The words of a command; of a pipe the part that is a script of ours, variables left out."""
    words = shlex.split(line, comments=True)
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "|":
            parts.append([])
        else:
            parts[-1].append(word)
    part = next((each for each in parts if any(map(_SCRIPT.fullmatch, each))), parts[0])
    while re.fullmatch(r"[A-Z_]+=.*", part[0]):
        part = part[1:]
    if part[0].endswith("python") and len(part) > 1 and _SCRIPT.fullmatch(part[1]):
        part = part[1:]
    return tuple(part)


def with_stand_ins(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words with files of the tests in place of what a document leaves to its reader."""
    return tuple(STAND_FOR.get(word, word) for word in words)


@cache
def help_of(module: str) -> str:
    """What a script says of itself."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        _main(module, ["--help"])
    return out.getvalue()


def parse(module: str, words: list[str]) -> Parsed:
    """Have a script's own parser read words, and nothing done of what they ask for."""
    options: set[str] = set()
    original = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *given: object) -> None:
        options.update(_options_of(parser))
        original(parser, *given)
        raise _Taken

    said = io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_only),
        contextlib.redirect_stderr(said),
    ):
        try:
            _main(module, words)
        except _Taken:
            return Parsed(frozenset(options), "")
        except SystemExit:
            return Parsed(frozenset(options), said.getvalue().strip())
    raise AssertionError(f"{module} does not read its command line")


class _Taken(BaseException):
    """The parser has taken the words; no handler of errors catches this."""


def _options_of(parser: argparse.ArgumentParser) -> set[str]:
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                found |= _options_of(each)
    return found


def _main(module: str, words: list[str]) -> None:
    argv = [module.replace(".", "/") + ".py", *words]
    with mock.patch.object(sys, "argv", argv):
        importlib.import_module(module).main()
