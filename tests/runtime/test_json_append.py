"""JSON lines behind those of an earlier run, whatever ended it."""

from __future__ import annotations

import json
import os

import pytest
from pipeline_fakes import results_of

from runtime.contract.errors import SinkError
from runtime.pipeline.sinks import json_lines
from runtime.pipeline.sinks.json_lines import JsonLinesSink
from runtime.video_options import parse

EARLIER = b'{"frame": 0, "earlier": true}\n'
TORN = b'{"frame": 1, "ear'


def append(path, num_frames):
    sink = JsonLinesSink(path, is_appending=True)
    for result in results_of(num_frames):
        sink.write(result)
    sink.close()
    return path.read_bytes()


def frames_of(lines: bytes) -> list[int]:
    assert lines.endswith(b"\n")
    return [json.loads(line)["frame"] for line in lines.splitlines()]


def test_lines_of_an_earlier_run_stay(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(EARLIER)
    held = append(path, 2)
    assert held.startswith(EARLIER)
    assert frames_of(held) == [0, 0, 1]


@pytest.mark.parametrize("held", [None, b""], ids=["not there", "empty"])
def test_first_run_begins_with_its_first_line(tmp_path, held):
    path = tmp_path / "a.jsonl"
    if held is not None:
        path.write_bytes(held)
    assert frames_of(append(path, 2)) == [0, 1]


def test_line_that_a_kill_tore_spoils_none_of_the_next_run(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(EARLIER + TORN)
    held = append(path, 2)
    assert held.startswith(EARLIER + TORN + b"\n")
    assert frames_of(held[len(EARLIER + TORN) + 1 :]) == [0, 1]


def test_run_without_a_result_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(EARLIER + TORN)
    assert append(path, 0) == EARLIER + TORN


def test_file_that_is_emptied_under_a_run_goes_on_at_its_beginning(tmp_path):
    """As logrotate's copytruncate does: no gap of zeros."""
    path = tmp_path / "a.jsonl"
    sink = JsonLinesSink(path, is_appending=True)
    for result in results_of(3):
        sink.write(result)
        if result.frame.index == 1:
            os.truncate(path, 0)
    sink.close()
    assert frames_of(path.read_bytes()) == [2]


def test_full_disk_takes_back_the_broken_line_and_nothing_of_before(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(EARLIER)
    sink = JsonLinesSink(path, is_appending=True)
    write, sizes = os.write, []

    def write_a_part(descriptor, rest):
        if sizes:
            raise OSError(28, "No space left on device")
        sizes.append(write(descriptor, bytes(rest[:5])))
        return sizes[0]

    monkeypatch.setattr(json_lines.os, "write", write_a_part)
    with pytest.raises(SinkError, match="No space left"):
        sink.write(next(results_of(1)))
    monkeypatch.undo()
    sink.close()
    assert sizes == [5]
    assert path.read_bytes() == EARLIER


@pytest.mark.parametrize("given", [(), ("--json", "-")], ids=["no --json", "standard output"])
def test_appending_to_what_is_no_file_is_refused_in_one_line(given, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["bundle", "--source", "0", "--json-append", *given])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected --json FILE beside it" in line
