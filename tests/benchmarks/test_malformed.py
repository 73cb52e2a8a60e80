"""Damaged files through the runtime's sources: the short form of benchmarks/malformed.py."""

from __future__ import annotations

import json
import sys
from random import Random

import pytest

from benchmarks import malformed
from benchmarks.malformed import FINDINGS, Reader, Search, Trial, judge, run_trials
from benchmarks.measure.damage import damage_file
from benchmarks.measure.whole_files import WholeFile, make_whole_files

NUM_TRIALS = 40
MOST_MIB = 700.0


@pytest.fixture(scope="module")
def wholes():
    return make_whole_files()


@pytest.fixture(scope="module")
def reader():
    reader = Reader(limit_s=60.0)  # the machine may be busy; a hang lasts
    yield reader
    reader.close()


def whole(data=b"0123456789" * 20, num_frames=1):
    return WholeFile("form", ".bin", data, num_frames)


# --- the proof, short


def test_damaged_files_give_frames_skips_or_an_error_of_one_line(wholes, reader):
    search = Search(wholes, seed=1)
    # All that is plain comes first, in turn; take of both.
    search._plain = search._plain[:: len(search._plain) // (NUM_TRIALS // 2)]
    trials = run_trials(search, reader, NUM_TRIALS, most_mib=MOST_MIB)
    assert [(each.form, each.outcome) for each in trials if each.verdict in FINDINGS] == []
    assert len({each.digest for each in trials}) == NUM_TRIALS
    assert {"error", "frames"} <= {each.verdict for each in trials}


def test_whole_files_give_all_their_frames(wholes, reader, tmp_path):
    assert len(wholes) >= 15
    for each in wholes:
        path = tmp_path / f"a{each.suffix}"
        path.write_bytes(each.data)
        outcome = reader.read(path)
        found = (outcome["kind"], outcome["num_frames"], outcome["num_corrupt"])
        assert found == ("frames", each.num_frames, 0), each.form


# --- the judge


OUTCOME = {"kind": "frames", "text": "", "num_frames": 1, "num_corrupt": 0, "grown_mib": 1.0,
           "num_descriptors": 0, "ms": 1.0, "reached": []}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "frames"),
        ({"num_corrupt": 2}, "frames and skips"),
        ({"kind": "error"}, "error"),
        ({"kind": "exception"}, "exception"),
        ({"kind": "crash"}, "crash"),
        ({"kind": "hang"}, "hang"),
        ({"grown_mib": MOST_MIB + 1}, "memory"),
        ({"num_descriptors": 1}, "descriptors"),
        ({"num_frames": 3}, "made-up frames"),
    ],
)
def test_outcome_is_judged(changes, verdict):
    trial = Trial("form", "cut", ".bin", b"x", whole())
    assert judge({**OUTCOME, **changes}, trial, MOST_MIB) == verdict


def test_repeated_parts_may_hold_more_frames_than_the_whole():
    trial = Trial("form", "repeat", ".bin", b"x", whole())
    assert judge({**OUTCOME, "num_frames": 3}, trial, MOST_MIB) == "frames"


FAULTY = """
import os, signal, sys, time
for line in sys.stdin:
    if "crash" in line:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "exit" in line:
        sys.exit(3)
    if "hang" in line:
        time.sleep(600)
    print('{"kind": "frames", "pid": %d}' % os.getpid(), flush=True)
"""


def test_reader_outlives_crashes_and_hangs(monkeypatch):
    monkeypatch.setattr(malformed, "START_S", 5.0)
    reader = Reader(limit_s=0.5)
    reader._command = [sys.executable, "-c", FAULTY]
    pids = []
    for name, kind, text in (
        ("crash", "crash", "ended by SIGSEGV"),
        ("exit", "crash", "exit status 3"),
        ("hang", "hang", "no answer in 0.5 s"),
    ):
        pids.append(reader.read("good")["pid"])
        outcome = reader.read(name)
        assert (outcome["kind"], outcome["text"]) == (kind, text)
    assert len(set(pids)) == 3
    reader.close()


def test_exception_that_is_not_ours_is_found(tmp_path, monkeypatch):
    from benchmarks.measure import file_trial

    def fail(uri):
        raise RuntimeError("raw")

    monkeypatch.setattr(file_trial, "_read_all", fail)
    outcome = file_trial.run_trial("anything")
    assert outcome["kind"] == "exception"
    assert "RuntimeError: raw" in outcome["text"]


# --- the search


def test_search_is_decided_by_its_seed_and_never_repeats_a_file():
    def digests(seed):
        search = Search([whole(), WholeFile("other", ".png", bytes(range(200)), 1)], seed)
        found = []
        for _ in range(60):
            trial = search.next()
            trial.outcome = {"reached": [trial.digest[0]]}
            search.learn(trial)
            found.append(trial.digest)
        return found

    assert digests(3) == digests(3) != digests(4)
    assert len(set(digests(3))) == 60


def test_file_that_reaches_something_new_is_damaged_further():
    search = Search([whole()], seed=0)
    first, second = search.next(), search.next()
    first.outcome = second.outcome = {"reached": ["a line"]}
    first.data = second.data = b"some"
    for trial in (first, second):
        trial.way = "flip"
        search.learn(trial)
    assert [each is first for each in search._parents["form"]] == [False, True]


@pytest.mark.parametrize("data", [b"x", b"\x89PNG\r\n\x1a\n" + bytes(20), b"moov" * 50])
def test_damage_takes_any_file_however_short(data):
    for seed in range(300):
        damaged, _ = damage_file(data, Random(seed), data)
        assert len(damaged) < 40 * len(data) + 100


# --- the script


def test_script_writes_a_record(tmp_path, capsys, reader, monkeypatch):
    monkeypatch.setattr(malformed, "Reader", lambda *_: reader)
    out = tmp_path / "record.json"
    assert malformed.main(["--num-trials", "8", "--seed", "2", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["num_trials"] == record["num_distinct"] == 8
    assert sum(record["verdicts"].values()) == 8
    assert record["findings"] == []
    assert "8 distinct files" in capsys.readouterr().out
