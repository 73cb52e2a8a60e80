"""Engines with options of their own from the command line, built for real by TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path

import pytest
from calling import call

from export.to_trt import parse_targets
from runtime.contract.bundle import Bundle
from runtime.engines import Device, find_or_build, load_flavour

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build real engines")

DONE, REFUSED = 0, 2
ADA = Device("RTX 4060", "8.9")


def run(out: Path, checkpoint: Path, data: Path, *more: object):
    given = ("--model", "retinanet", "--checkpoint", checkpoint, "--data", data, "--out", out)
    return call("export.to_trt", *given, "--precision", "fp32", "--verify", "none", *more)


WRONG = {
    "a GPU that RTX lacks": (("--target-device", "sm_87"), "no target 'SM87'; choose of"),
    "no GPU at all": (("--target-device", "banana"), "is no list of GPUs; expected such as sm_86"),
    "one GPU twice": (("--target-device", "sm_86,sm_86"), "expected each once"),
    "no workspace": (("--workspace-mb", "0"), "--workspace-mb 0 is not positive"),
    "a folder of timings": (("--timing-cache", "/"), "is a folder"),
    "a level too high": (("--optimisation-level", "6"), "invalid choice: 6"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_option_is_refused_before_anything_is_written(case, tiny_checkpoint, discs, tmp_path):
    options, says = WRONG[case]
    done = run(tmp_path / "out", tiny_checkpoint, discs, *options)
    assert done.returncode == REFUSED
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_engine_is_built_as_asked_for_and_found_where_it_runs(
    tiny_checkpoint, discs, tmp_path, quick_trace, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ("--target-device", "sm_86,sm_89", "--optimisation-level", 0, "--workspace-mb", 64)
    done = run(tmp_path / "out", tiny_checkpoint, discs, *options)
    assert done.returncode == DONE, done.stderr
    bundle = Bundle.open(tmp_path / "out")
    rtx = load_flavour("tensorrt_rtx")
    found = find_or_build(bundle, "model", "fp32", rtx, device=ADA)
    assert not found.is_new
    assert done.stdout.splitlines()[-1] == f"engine {found.path}"
    flags = found.record["identity"]["flags"]
    assert (flags["targets"], flags["optimisation_level"]) == (["SM86", "SM89"], 0)
    assert flags["workspace_bytes"] == 64 << 20


def test_targets_are_read_in_the_words_of_nvidia():
    assert parse_targets("sm_86, SM89,sm_120") == ("SM86", "SM89", "SM120")
    assert parse_targets("current") == ("CURRENT",)
    assert parse_targets("") == ()
