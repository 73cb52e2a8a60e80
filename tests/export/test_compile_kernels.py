"""The PTX that is shipped: of the source beside it, as it is launched, and within the GPUs' limits.

Runs over every kernel and every target, without a GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from pathlib import Path

import pytest
from kernel_emulation import emulate

from export import compile_kernels
from export.compile_kernels import compile_source
from export.kernels.machine_code import Usage, assemble, find_nvjitlink
from export.kernels.nvrtc import COMPILERS, Compiler, find_nvrtc
from runtime.contract.errors import EngineError, KestrelError
from runtime.engines.kernels import shipped
from runtime.engines.kernels.shipped import (
    FOLDER,
    HEADER,
    KERNELS,
    LETTERBOX,
    TARGETS,
    Kernel,
    code_sha256,
    hash_source,
    parse_isa,
    ptx_name,
    read_ptx,
    read_record,
    read_target,
    readable_isa,
    sources,
    suitable_targets,
)

ROOT = Path(__file__).resolve().parents[2]

# Of all targets the least: "CUDA C++ Programming Guide", technical specifications.
REGISTERS_OF_A_MULTIPROCESSOR = 64 * 1024
REGISTERS_OF_A_THREAD = 255
STATIC_SHARED_OF_A_BLOCK = 48 * 1024
THREADS_OF_A_BLOCK = 1024
REGISTER_UNIT = 8  # of a thread; a warp's are given out in units of 256
BYTES_OF_PARAMETERS = 4096

JETPACK_6_ISA = (8, 5)  # CUDA 12.6
JETPACK_7_1_ISA = (9, 0)  # CUDA 13.0
ISA_LIMITS = {
    target: JETPACK_6_ISA if target <= 90 else JETPACK_7_1_ISA  # noqa: PLR2004
    for target in TARGETS
}

each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.stem)
each_target = pytest.mark.parametrize("target", TARGETS, ids="sm_{}".format)
each_source = pytest.mark.parametrize("source", sources())


def shipped_ptx(kernel: Kernel, target: int) -> str:
    return read_target(kernel, target).decode()


def entry_parameters(ptx: str, name: str) -> list[int]:
    """Bytes of each parameter of an entry."""
    found = re.search(rf"\.visible \.entry {name}\((.*?)\)", ptx, re.DOTALL)
    assert found is not None, f"no entry {name}"
    sizes = {"u64": 8, "s64": 8, "b64": 8, "u32": 4, "s32": 4, "b32": 4, "f32": 4}
    # NVRTC 13 adds ".ptr .align 1" to pointers.
    pattern = r"\.param (?:\.align \d+ )?\.(\w+) (?:\.ptr (?:\.\w+ )*\d* )?\w+(?:\[(\d+)\])?"
    return [int(array) if array else sizes[kind] for kind, array in re.findall(pattern, found[1])]


@functools.cache
def assembled(kernel: Kernel, target: int) -> Usage:
    library = find_nvjitlink()
    if library is None:
        pytest.skip("no nvJitLink to assemble PTX with (wheel nvidia-nvjitlink)")
    return assemble(library, shipped_ptx(kernel, target), target)[kernel.name]


@functools.cache
def compilers():
    return find_nvrtc([ROOT / compile_kernels.DEFAULT_COMPILERS])


def test_record_names_every_kernel_and_target_and_nothing_else():
    names = {ptx_name(kernel, target) for kernel in KERNELS for target in TARGETS}
    assert set(read_record()["ptx"]) == names
    assert {f"ptx/{path.name}" for path in (FOLDER / "ptx").iterdir()} == names
    assert {path.name for path in FOLDER.glob("*.cu*")} == {HEADER, *sources()}


@each_target
@each_kernel
def test_ptx_is_of_the_source_beside_it(kernel, target):
    entry = read_record()["ptx"][ptx_name(kernel, target)]
    text = (FOLDER / ptx_name(kernel, target)).read_bytes()
    cure = "run export/compile_kernels.py"
    assert hashlib.sha256(text).hexdigest() == entry["sha256"], cure
    assert entry["source_sha256"] == hash_source(kernel.source), cure
    assert entry["target"] == target


def assert_made_of_its_source(source: str, compiler: Compiler, targets: tuple[int, ...]) -> None:
    """The compiler of the record gives the same text, or where it is not here, a newer one any."""
    exact = compilers().get(compiler.version)
    newer = max((version for version in compilers() if version >= compiler.version), default=None)
    if newer is None:
        pytest.skip(f"no NVRTC {compiler.version} or newer ({compiler.wheel})")
    for target in targets:
        library = exact or compilers()[newer]
        ptx = compile_source(library, source, target)
        assert f".target sm_{target}\n" in ptx
        name = f"ptx/{source.removesuffix('.cu')}.sm_{target}.ptx"
        assert exact is None or ptx == (FOLDER / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("compiler", COMPILERS, ids=lambda each: f"NVRTC {each.version[0]}")
@each_source
def test_compiling_the_source_again_gives_the_same_ptx(source, compiler):
    """For one target of each compiler; a seldom one does all."""
    assert_made_of_its_source(source, compiler, compiler.targets[-1:])


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS, ids=lambda each: f"NVRTC {each.version[0]}")
@each_source
def test_compiling_the_source_again_gives_the_same_ptx_for_all_targets(source, compiler):
    assert_made_of_its_source(source, compiler, compiler.targets)


@each_target
@each_kernel
def test_drivers_of_the_target_read_the_ptx(kernel, target):
    ptx = shipped_ptx(kernel, target)
    assert parse_isa(ptx) <= ISA_LIMITS[target]
    assert re.findall(r"^\.target (.*)$", ptx, re.MULTILINE) == [f"sm_{target}"]
    entry = read_record()["ptx"][ptx_name(kernel, target)]
    assert entry["isa"] == ".".join(map(str, parse_isa(ptx)))


@each_target
@each_kernel
def test_entry_takes_what_the_launcher_passes(kernel, target):
    ptx = shipped_ptx(kernel, target)
    sizes = [parameter.size for parameter in kernel.parameters]
    assert entry_parameters(ptx, kernel.name) == sizes
    assert sum(sizes) <= BYTES_OF_PARAMETERS
    entries = set(re.findall(r"\.entry (\w+)\(", ptx))
    assert entries == {each.name for each in KERNELS if each.source == kernel.source}


@each_kernel
def test_cpu_and_launcher_agree_on_the_parameters(kernel):
    sizes = emulate(kernel.source).sizes_of_parameters(kernel.name)
    assert sizes == [parameter.size for parameter in kernel.parameters]


@each_kernel
def test_parameters_have_the_names_of_the_source(kernel):
    text = (FOLDER / kernel.source).read_text(encoding="utf-8")
    text = re.sub(r"//[^\n]*", "", text)
    found = re.search(rf"{kernel.name}\s*\((.*?)\)\s*\{{", text, re.DOTALL)
    names = [part.split()[-1].lstrip("*&") for part in found[1].split(",")]
    assert names == [parameter.name for parameter in kernel.parameters]
    bound = re.search(rf"__launch_bounds__\((\w+)[^)]*\)\s*{kernel.name}", text)[1]
    if not bound.isdigit():
        bound = re.search(rf"constexpr \w+ {bound} = (\d+);", text)[1]
    assert int(bound) == kernel.max_threads


@each_target
@each_kernel
def test_kernel_takes_no_more_than_its_bounds(kernel, target):
    usage = assembled(kernel, target)
    assert usage.registers <= kernel.bounds.registers
    assert usage.static_shared <= kernel.bounds.static_shared
    assert max(usage.spill_stores, usage.spill_loads) <= kernel.bounds.spills


@each_target
@each_kernel
def test_block_of_the_most_threads_can_be_launched(kernel, target):
    usage = assembled(kernel, target)
    assert f".maxntid {kernel.max_threads}" in shipped_ptx(kernel, target)
    assert kernel.max_threads <= THREADS_OF_A_BLOCK
    assert usage.registers <= REGISTERS_OF_A_THREAD
    registers = -(-usage.registers // REGISTER_UNIT) * REGISTER_UNIT * kernel.max_threads
    assert registers <= REGISTERS_OF_A_MULTIPROCESSOR
    assert usage.static_shared <= STATIC_SHARED_OF_A_BLOCK


@each_target
@each_kernel
def test_nothing_is_fused_or_called(kernel, target):
    ptx = shipped_ptx(kernel, target)
    source = (FOLDER / kernel.source).read_text(encoding="utf-8")
    has_asked = any(sign in source for sign in ("fma", "expf", "logf"))
    assert has_asked or "fma." not in ptx, "a multiply and an add became one rounding"
    assert ".extern" not in ptx
    assert ".approx" not in ptx or has_asked


def test_bounds_are_checked_against_what_the_assembler_says():
    library = find_nvjitlink()
    if library is None or not compilers():
        pytest.skip("no NVRTC and nvJitLink (wheels nvidia-cuda-nvrtc, nvidia-nvjitlink)")
    text = """
    extern "C" __global__ void __launch_bounds__(1024) hungry(float* data) {
        __shared__ float kept[1000];
        float own[200];
        for (int i = 0; i < 200; i++) own[i] = data[threadIdx.x * 200 + i];
        kept[threadIdx.x % 1000] = own[0];
        __syncthreads();
        for (int i = 0; i < 200; i++) data[threadIdx.x * 200 + 199 - i] = own[i] + kept[i];
    }"""
    ptx = compilers()[min(compilers())].compile(text, "hungry.cu", {}, 80)
    usage = assemble(library, ptx, 80)["hungry"]
    assert usage.static_shared == 4000
    assert usage.registers == 64
    assert usage.spill_stores > 0 or usage.stack > 0


def test_compiler_names_the_line_of_a_mistake():
    if not compilers():
        pytest.skip("no NVRTC (wheel nvidia-cuda-nvrtc)")
    library = compilers()[max(compilers())]
    with pytest.raises(KestrelError, match=r"(?s)wrong.cu does not compile.*wrong.cu\(2\)"):
        library.compile("\nint broken = ;", "wrong.cu", {}, 80)


def test_assembler_refuses_what_is_no_ptx():
    library = find_nvjitlink()
    if library is None:
        pytest.skip("no nvJitLink (wheel nvidia-nvjitlink)")
    with pytest.raises(KestrelError, match="does not assemble for sm_80"):
        assemble(library, "no ptx", 80)


def test_script_says_how_to_fetch_a_compiler_that_is_missing(monkeypatch):
    monkeypatch.setattr(compile_kernels, "find_nvrtc", lambda folders: {})
    with pytest.raises(KestrelError, match="pip install --no-deps --target .*nvrtc-cu12==12.6"):
        compile_kernels.main([])


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The folder of kernels, copied, with the sources of one of them."""
    for path in (FOLDER / HEADER, FOLDER / LETTERBOX.source, shipped.RECORD):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "ptx").mkdir()
    for target in TARGETS:
        name = ptx_name(LETTERBOX, target)
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    monkeypatch.setattr(shipped, "RECORD", tmp_path / "kernels.json")
    monkeypatch.setattr(compile_kernels, "FOLDER", tmp_path)
    monkeypatch.setattr(compile_kernels, "RECORD", tmp_path / "kernels.json")
    read_record.cache_clear()
    yield tmp_path
    read_record.cache_clear()


@pytest.fixture
def quick_compilers(monkeypatch):
    """One compiler and target, so that the script does not need all."""
    if COMPILERS[0].version not in compilers():
        pytest.skip(f"NVRTC {COMPILERS[0].version} is not here ({COMPILERS[0].wheel})")
    one = dataclasses.replace(COMPILERS[0], targets=(87,))
    monkeypatch.setattr(compile_kernels, "COMPILERS", (one,))


def test_script_finds_a_changed_source_and_writes_what_belongs_to_it(copied, quick_compilers):
    only = ["--only", LETTERBOX.source]
    assert compile_kernels.main([*only, "--check"]) == 0
    source = copied / LETTERBOX.source
    source.write_text(source.read_text().replace("+ 0.5f", "+ 0.25f"))
    assert compile_kernels.main([*only, "--check"]) == 1
    assert compile_kernels.main(only) == 0
    assert compile_kernels.main([*only, "--check"]) == 0
    read_record.cache_clear()
    entry = read_record()["ptx"][ptx_name(LETTERBOX, 87)]
    assert entry["source_sha256"] == hash_source(LETTERBOX.source)
    assert "0f3E800000" in read_target(LETTERBOX, 87).decode()  # 0.25


@pytest.mark.parametrize("kernel_count", [1, len(KERNELS)])
def test_code_hash_changes_with_any_ptx(copied, kernel_count):
    chosen = KERNELS[:kernel_count]
    before = code_sha256(*chosen)
    record = json.loads((copied / "kernels.json").read_text())
    record["ptx"][ptx_name(chosen[-1], 90)]["sha256"] = "0" * 64
    (copied / "kernels.json").write_text(json.dumps(record))
    read_record.cache_clear()
    assert code_sha256(*chosen) != before


def test_damaged_ptx_is_not_given_to_the_driver(copied):
    path = copied / ptx_name(LETTERBOX, 87)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(EngineError, match="the record says"):
        read_ptx(LETTERBOX, (8, 7))
    path.unlink()
    with pytest.raises(EngineError, match="cannot be read"):
        read_ptx(LETTERBOX, (8, 7))


def test_missing_record_is_an_error_in_words(copied):
    (copied / "kernels.json").unlink()
    with pytest.raises(EngineError, match="Install Kestrel again"):
        read_ptx(LETTERBOX, (8, 7))


@pytest.mark.parametrize(
    ("capability", "max_isa", "nearest"),
    [
        ((7, 5), None, 75),
        ((8, 7), (8, 5), 87),
        ((8, 8), None, 87),
        ((10, 3), None, 100),
        ((11, 0), (9, 0), 110),
        ((12, 1), (9, 2), 120),
        ((12, 0), (8, 7), 90),
    ],
)
def test_ptx_is_chosen_by_capability_and_driver(capability, max_isa, nearest):
    text, target = read_ptx(LETTERBOX, capability, max_isa)
    assert target == nearest
    assert f".target sm_{nearest}\n".encode() in text


@pytest.mark.parametrize(("capability", "max_isa"), [((7, 2), None), ((8, 7), (8, 2))])
def test_no_ptx_for_what_is_too_old(capability, max_isa):
    assert suitable_targets(LETTERBOX, capability, max_isa) == []
    with pytest.raises(EngineError, match="has no PTX for sm_"):
        read_ptx(LETTERBOX, capability, max_isa)


@pytest.mark.parametrize(
    ("cuda", "isa"),
    [((11, 8), (7, 8)), ((12, 6), (8, 5)), ((13, 0), (9, 0)), ((14, 1), (9, 2))],
)
def test_driver_reads_ptx_up_to_its_time(cuda, isa):
    assert readable_isa(cuda) == isa
