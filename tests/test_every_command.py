"""Every command of documents and helps: its script takes it, its files are there, it runs.

What takes minutes, a camera, a network or a GPU runs cut down, by the rules of CUT and LIVE; what
cannot be run even so stands in ONLY_PARSED, with the reason.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from calling import call
from commands import (
    READ_IN_FULL,
    STAND_FOR,
    Command,
    all_commands,
    commands_of_document,
    commands_of_help,
    documents,
    help_of,
    parse,
    scripts,
    with_stand_ins,
)
from workplace import TRAINED, export_shipped, furnish, write_published

ROOT = Path(__file__).resolve().parents[1]

# Words that are added to a script's, or take the place of its own: less of the same.
CUT: dict[str, tuple[str, ...]] = {
    "benchmarks.accuracy": (),
    "benchmarks.accuracy_drop": ("--images", "2", "--resamples", "100", "--backend", "onnxruntime"),
    "benchmarks.kernels": (),  # without a GPU it says so
    "benchmarks.kill_while_recording": ("--kills", "1"),
    "benchmarks.latency": ("--backend", "onnxruntime", "--frames", "6", "--warm-up", "1"),
    "benchmarks.malformed": ("--num-trials", "2"),
    "benchmarks.schedules": ("--clips", "1", "--frames", "6", "--backend", "onnxruntime"),
    "benchmarks.speed": ("--rounds", "1", "--turn-seconds", "0.05", "--rest-seconds", "0"),
    "benchmarks.tracking": ("--clips", "1", "--frames", "4", "--backend", "onnxruntime"),
    "benchmarks.web_abuse": ("--rounds", "1", "--seconds", "1", "--slow", "3"),
    "export.quantize": ("--verify", "none"),
    "export.show": (),
    "export.to_onnx": ("--verify", "none"),
    "export.to_trt": ("--verify", "none", "--precision", "fp32"),
    "export.verify": ("--images", "2"),
    "runtime.doctor": (),
    "runtime.run_images": ("--backend", "onnxruntime"),
    "runtime.run_video": ("--backend", "onnxruntime", "--max-frames", "6"),
    "training.ablate_video": ("--rows", "whole", "--steps", "1", "--clips", "1"),
    "training.import_published": (),
    "training.score": ("--images", "2"),
    "training.score_video": ("--clips", "1", "--frames", "3"),
    "training.seed_weights": (),
    "training.serve_forward": ("--threads", "1"),
    "training.time_selection": (),
    "training.train": (
        "--steps", "2", "--batch", "2", "--size", "128x96", "--workers", "0", "--precision", "fp32",
    ),
}  # fmt: skip
CUT_BY_OPTION: dict[str, dict[str, tuple[str, ...]]] = {
    "benchmarks.live": {
        "age": ("--seconds", "5"),
        "stalls": ("--seconds", "5"),
        "soak": ("--frames", "3000"),
        "overhead": ("--frames", "20"),
    },
    "export.quantize": {"--images": ("--images", "4"), "--ap-budget": ("--search-images", "4")},
    "export.to_onnx": {"int8": ("--calibration-data", "photos")},
    "training.make_street": {"--split": ("--num-images", "1"), "--clip-seed": ("--frames", "2")},
    "runtime.run_video": {"--mjpeg": ("--mjpeg", "FREE_PORT"), "--web": ("--web", "FREE_PORT")},
}
# In place of cameras, servers and pipes: raw frames of a file, read as a camera's.
LIVE = re.compile(r"0|rtsp://\S+|raw:-\?\S+")
CAMERA = "raw:camera.raw?size=1280x720&rate=25&live=yes"
CAMERA_OF = {"benchmarks.latency": "camera.mp4"}  # plays its source again and again
SLOW = re.compile(
    r"training\.(?!make_street)|runtime\.doctor|export\.(?!show)|benchmarks\.(?!accuracy$|latency)"
)
STATUSES = {
    "export.to_trt": (0, 3),  # 3: no engine can be built here
    "benchmarks.web_abuse": (0, 1),  # 1: the rate, which other programs disturb
    "benchmarks.live": (0, 1),  # 1: a promise on time, which other programs may break
    "benchmarks.accuracy_drop": (0, 1),  # 1: two images are sure of nothing
    "runtime.doctor": (0, 1),  # 1: what is wrong with this machine
}
READS_INPUT = {"training.serve_forward": "2\n"}

# No command is left unparsed. These are not run by any rule:
ONLY_PARSED = {
    r"demo\.py.*": "runs in a process of its own, in the repository: .ci/run does it",
    r"export/compile_kernels\.py.*": "needs NVRTC in versions that are no dependency",
    r"benchmarks/reconnect\.py.*": "kills RTSP servers: tests/runtime/test_network_sources.py",
    r".*to_trt\.py .*yolact_resnet50_54.*": "minutes: tests/export/test_published_export.py",
    r".*import_published\.py (yolact_mine|mobilenet).*": "tests/training/test_published*.py",
    r".*train\.py --model (yolact|centernet_pose|retinaface|hourglass) --data (PATH|data/mine).*":
        "data with masks or joints: tests/training trains every model",
    r".*accuracy_drop\.py .*--precision mixed.*": "a search: tests/export/test_mixed_search.py",
    r".*seed_weights\.py --model yolact.*": "the same as RetinaNet's, twice as long",
    r".*run_images\.py runs/mine PATH/images.*": "runs/mine: the same as runs/retinanet below",
}  # fmt: skip
DOWNLOADED = ("yolact_resnet50_54_800000.pth", "yolact_mine.pth", "mobilenet0.25_Final.pth")
# Commands of the system, whose files of ours must be there.
SYSTEM = ("apt-get", "source", "useradd", "install", "cp", "systemctl", "journalctl", "curl")

WRITTEN = {"--out", "--json", "--coco", "--annotated", "--keep", "--timing-cache", "--search-state"}
IS_PATH = re.compile(r"[\w.*{}-]+(/[\w.*{}-]+)+|[\w.*{}-]+\.(mp4|json|npy|pth|safetensors|jpg)")

SCRIPT_COMMANDS = [command for command in all_commands() if command.is_script]
RUN = [
    command
    for command in SCRIPT_COMMANDS
    if (command.origin in READ_IN_FULL or not command.origin.endswith(".md"))
    and not any(re.fullmatch(rule, str(command)) for rule in ONLY_PARSED)
]


def identify(command: Command) -> str:
    return str(command)


# -------------------------------------------------------------------------------- parsed, and found


@pytest.mark.parametrize("command", SCRIPT_COMMANDS, ids=identify)
def test_command_is_taken_by_its_script(command: Command):
    assert (ROOT / command.words[0]).is_file(), f"{command.origin} names a script that is not there"
    parsed = parse(command.module, list(with_stand_ins(command.words)[1:]))
    unknown = {word for word in command.words if word.startswith("--")} - parsed.options
    assert not unknown, f"{command.origin}: {command.words[0]} has no {unknown}"
    may_lack = not command.is_whole and re.search("are required|expected one", parsed.error)
    assert not parsed.error or may_lack, f"{command.origin}: {parsed.error}"


@pytest.mark.parametrize("command", SCRIPT_COMMANDS, ids=identify)
def test_files_of_a_command_are_there(command: Command, furnished: Path):
    for word in files_read(with_stand_ins(command.words)):
        is_there = list(furnished.glob(word)) or (ROOT / word).exists() or word in DOWNLOADED
        assert is_there, f"{command.origin}: {word} is neither in the tree nor made by a command"


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Each word behind the first, and the one before it."""
    return list(zip(words[1:], words, strict=False))


def files_read(words: tuple[str, ...]) -> list[str]:
    """Words that name files or folders which must be there."""
    return [
        word
        for word, before in pairs(words)
        if before not in WRITTEN and IS_PATH.fullmatch(word) and not word.startswith("-")
    ]


@pytest.mark.parametrize(
    "command", [each for each in all_commands() if not each.is_script], ids=identify
)
def test_other_command_names_what_is_there(command: Command):
    words = [word for word in command.words if word != "sudo"]
    check = CHECKS.get(words[0])
    if check is not None:
        check(words)
    elif words[0].startswith(("deploy/", ".venv/bin/")):
        check_program(words)
    else:
        assert words[0] in SYSTEM, f"{command.origin}: no rule for {words[0]}"
    for word in words:
        if word.startswith(("deploy/", "weights/", "assets/")):
            assert (ROOT / word).exists(), f"{command.origin} names {word}"


def check_make(words: list[str]) -> None:
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_pip(words: list[str]) -> None:
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
    asked = re.search(r"\[([\w,]+)\]", " ".join(words))[1].split(",")
    assert set(asked) <= set(known)


def check_docker(words: list[str]) -> None:
    if words[1] == "build":
        text = (ROOT / words[words.index("-f") + 1]).read_text()
        given = [word.partition("=")[0] for word, before in pairs(words) if before == "--build-arg"]
        assert all(f"ARG {name}=" in text for name in given)
    else:
        image = next(place for place, word in enumerate(words) if word.startswith("kestrel:"))
        assert parse("runtime.run_video", words[image + 1 :]).error == ""


def check_program(words: list[str]) -> None:
    program = ROOT / words[0]
    assert program.is_file()
    if program.suffix == ".sh":
        options = {word for word in words if word.startswith("--")}
        assert options <= set(re.findall(r"--[\w-]+", program.read_text()))


CHECKS = {"make": check_make, "pip": check_pip, "docker": check_docker}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_option_that_a_document_names_is_one_of_some_script(path: Path):
    if path.name == "CHANGELOG.md":  # tells of the past
        return
    named = set(re.findall(r"`(--[a-z][\w-]+)", path.read_text()))
    known = {option for each in scripts() for option in re.findall(r"--[a-z][\w-]*", help_of(
        str(each.relative_to(ROOT)).removesuffix(".py").replace("/", ".")))}  # fmt: skip
    known |= set(re.findall(r"--[\w-]+", (ROOT / "deploy/jetson/install.sh").read_text()))
    known |= {"--strict", "--loadEngine", "--build-arg", "--runtime", "--device", "--gpus", "--env"}
    assert named <= known, f"{path.name}: {named - known}"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_link_and_picture_of_a_document_is_there(path: Path):
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text()) + re.findall(
        r'src="([^"]+)"', path.read_text()
    )
    for link in links:
        assert link.startswith(("http://", "https://")) or (path.parent / link).exists(), link


@pytest.mark.parametrize("path", scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_help_is_a_manual_page(path: Path):
    text = help_of(str(path.relative_to(ROOT)).removesuffix(".py").replace("/", "."))
    examples = commands_of_help("", text)
    assert 1 <= len(examples) <= 5
    assert all(each.words[0] == str(path.relative_to(ROOT)) for each in examples)
    assert re.search(r"^Exit status:\n  0    \S", text, re.M)
    undescribed = re.findall(r"^  (--[\w-]+)(?: [A-Z_]+)?$(?!\n {20})", text, re.M)
    assert not undescribed, f"no help for {undescribed}"


def test_helps_of_training_and_of_the_others_are_written_by_the_same_code():
    ours, theirs = (ROOT / package / "manual.py" for package in ("runtime/contract", "training"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_renamed_option_and_missing_file_are_found(furnished: Path):
    words = ["runs/mine", "--source", "street.mp4", "--sources", "street.mp4"]
    assert "--sources" in parse("runtime.run_video", words).error
    assert files_read(("runtime/run_video.py", "runs/none", "--source", "none.mp4")) == [
        "runs/none",
        "none.mp4",
    ]
    assert not (furnished / "runs" / "none").exists()


def test_abbreviated_option_is_refused():
    assert "--score" in parse("runtime.run_images", ["a", "b", "--out", "c", "--score", "1"]).error


def test_commands_are_found_in_blocks_sentences_and_helps():
    text = """
Run `runtime/run_video.py runs/mine --source
0`, not `runtime/run_video.py` or `runtime/predictor.py`.

```sh
FROM=1 python export/show.py runs/a \\
    runs/b   # compares
cat x | python runtime/run_video.py runs/a --source "raw:-?size=4x4"
```
"""
    found = list(commands_of_document("a.md", text))
    assert [(str(each), each.is_whole) for each in found] == [
        ("export/show.py runs/a runs/b", True),
        ("runtime/run_video.py runs/a --source 'raw:-?size=4x4'", True),
        ("runtime/run_video.py runs/mine --source 0", False),
    ]
    page = (
        "text\n\nExamples:\n  python export/show.py \\\n      a\n      Says.\n\nExit status:\n  0 a"
    )
    assert [str(each) for each in commands_of_help("b.py", page)] == ["export/show.py a"]


def test_every_script_that_is_run_has_a_rule():
    assert {command.module for command in RUN} <= set(CUT) | set(CUT_BY_OPTION)


def test_every_reason_not_to_run_a_command_still_applies():
    for rule in ONLY_PARSED:
        assert any(re.match(rule, str(each)) for each in SCRIPT_COMMANDS), rule
    texts = [str(each) for each in all_commands()]
    for word in set(STAND_FOR) - {"FILE.pth"}:
        assert any(word in text for text in texts), word


# ----------------------------------------------------------------------------------------- and run


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory, discs: Path, tiny_checkpoint: Path) -> Path:
    """A furnished folder; tests work in copies."""
    return furnish(tmp_path_factory.mktemp("workplace"), discs, tiny_checkpoint)


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Bundles of the shipped checkpoints, each exported when it is first asked for."""
    folder = tmp_path_factory.mktemp("shipped")
    return cache(lambda model: export_shipped(model, folder / model))


def cut(command: Command) -> list[str]:
    """The words behind the script's name: the same, for less of the same."""
    camera = CAMERA_OF.get(command.module, CAMERA)
    words = [
        camera if before == "--source" and LIVE.fullmatch(word) else word
        for word, before in pairs(with_stand_ins(command.words))
    ]
    if not command.is_whole:
        parsed = parse(command.module, words)
        missing = re.search("are required: (.*)\\. ", parsed.error)
        words += ["--out", "out.json"] if missing and "--out" in missing[1] else []
        if parsed.error and (missing is None or missing[1] != "--out"):
            pytest.skip("quoted without what it needs to run: parsed above")
    added = [*CUT.get(command.module, ())]
    for word, more in CUT_BY_OPTION.get(command.module, {}).items():
        added += more if word in words else ()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    return [*words, *(port if word == "FREE_PORT" else word for word in added)]


def run(command: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = cut(command)
    monkeypatch.chdir(place)
    asked = READS_INPUT.get(command.module)
    if "-" in words or asked:  # standard input and output must be real ones
        script = [sys.executable, ROOT / command.words[0], *words]
        done = subprocess.run(script, capture_output=True, text=True, input=asked)
        assert done.returncode == 0, done.stderr
        assert done.stdout
        return
    if "--resume" in words:
        assert call(command.module, *(word for word in words if word != "--resume")).returncode == 0
    done = call(command.module, *words)
    allowed = STATUSES.get(command.module, (0,))
    assert done.returncode in allowed, f"{command.origin}: {done.stdout[-800:]}{done.stderr[-800:]}"
    for word, before in pairs(words):
        if before in {"--out", "--json", "--coco"}:
            written = list(place.glob(word.replace("{source}", "*")))
            least = words.count("--source") if "{source}" in word else 1
            assert len(written) >= least, f"{command.origin}: {word} was not written"


@pytest.mark.parametrize("command", [c for c in RUN if not SLOW.match(c.module)], ids=identify)
def test_command_runs(command: Command, furnished: Path, tmp_path: Path, monkeypatch):
    place = Path(shutil.copytree(furnished, tmp_path / "place", symlinks=True))
    run(command, place, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", [c for c in RUN if SLOW.match(c.module)], ids=identify)
def test_slow_command_runs(
    command: Command,
    furnished: Path,
    written_bundle: Path,
    shipped: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    place = Path(shutil.copytree(furnished, tmp_path / "place", symlinks=True))
    write_published(place / "yolact_resnet50_54_800000.pth")
    for bundle in (*place.glob("runs/*"), place / "out" / "demo" / "retinanet"):
        if str(bundle.relative_to(place)) in with_stand_ins(command.words):
            shutil.rmtree(bundle)
            real = written_bundle if bundle.name == "mine" else shipped(bundle.name)
            shutil.copytree(real, bundle)
    if command.module == "training.train" and "--resume" in command.words:
        (place / TRAINED).unlink()
    if command.module == "benchmarks.accuracy_drop":
        monkeypatch.chdir(place)
        bundle = with_stand_ins(command.words)[1]
        added = call("export.quantize", bundle, "--data", "photos", "--verify", "none")
        assert added.returncode == 0, added.stderr
    run(command, place, monkeypatch)
