"""Engines on disk: `engines/<fingerprint>.engine`, and beside it a .json of what we know.

A cache: whatever is missing, foreign, damaged or half-written is built anew. A read-only bundle
uses the user's cache folder instead, and where nothing can be written an engine lives in memory.

A record holds the hash of its engine and a digest of itself, so a verdict belongs to these very
bytes, and one that was edited by hand does not count. The digest is no signature: who can write the
folder and knows how it is made can make it anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from runtime.contract import files
from runtime.contract.bundle import Bundle
from runtime.contract.errors import EngineError, SinkError
from runtime.engines.build import BuildOptions, build_plan
from runtime.engines.fingerprint import (
    Device,
    Identity,
    engine_file,
    identify,
    input_shapes,
    serves,
)
from runtime.engines.flavour import Flavour
from runtime.engines.locking import locked
from runtime.engines.progress import BuildBar, Progress

log = logging.getLogger("kestrel.runtime")

Verdict: TypeAlias = Literal["pass", "fail", "not run"]

ENGINES_FOLDER = "engines"
RECORD_SCHEMA = 1
_LARGEST_RECORD = 4 << 20  # bytes


@dataclass(frozen=True)
class EngineFile:
    """An engine and what is known of it.

    Attributes:
        path: the plan, which trtexec --loadEngine opens too; None where it could not be written.
        record: the JSON beside it: identity, versions, sha256, build_seconds, verdict, check ...
        is_new: built by this call, not found.
    """

    path: Path | None
    record: dict[str, Any]
    is_new: bool = False
    _plan: bytes = field(default=b"", repr=False)

    @property
    def fingerprint(self) -> str:
        return str(self.record["fingerprint"])

    @property
    def verdict(self) -> str:
        """Says "not run" until the engine was checked on a device, then "pass" or "fail"."""
        return str(self.record["verdict"])

    def plan(self) -> bytes:
        """The engine's bytes, with the hash that the record says.

        Raises:
            EngineError: the file is gone or was changed.
        """
        if self._plan:
            return self._plan
        data = _read(self.path) if self.path is not None else b""
        if hashlib.sha256(data).hexdigest() != self.record["sha256"]:
            raise EngineError(f"{self.path} was changed or removed. Open the bundle again.")
        return data

    def without_plan(self) -> EngineFile:
        """The same without the bytes in memory, where they are on disk."""
        return self if self.path is None else dataclasses.replace(self, _plan=b"")


def find_or_build(
    bundle: Bundle,
    graph: str,
    precision: str,
    flavour: Flavour,
    *,
    device: Device | None = None,
    options: BuildOptions | None = None,
    plugin_sha256: str = "",
    folder: Path | None = None,
    progress: Progress | None = None,
    is_forced: bool = False,
) -> EngineFile:
    """The engine of one graph for this machine: from the cache, or built and cached.

    Two processes build once: the second waits for the first. Killed at any moment, nothing
    half-written is ever taken for an engine.

    Args:
        bundle: what to build from.
        graph: of the manifest's.
        precision: of the manifest's.
        flavour: which TensorRT.
        device: the GPU; may be None for TensorRT-RTX, whose engines are for any.
        options: of the build; None takes the newest engine that runs here, whatever its options,
            and builds with TensorRT's own where there is none.
        plugin_sha256: of our plugin's code, where it is registered.
        folder: of the cache; None is the bundle's own `engines`.
        progress: called with (fraction 0..1, phase); None shows a bar on a terminal.
        is_forced: build although the cache has one (it does not load).

    Raises:
        EngineError: TensorRT refuses the graph.
        BundleError: the ONNX file is missing or damaged.
    """
    takes_any = options is None
    options = options or BuildOptions()
    identity = identify(
        bundle,
        graph,
        precision,
        flavour,
        device=device,
        options=options,
        plugin_sha256=plugin_sha256,
    )
    folders = (folder or bundle.folder / ENGINES_FOLDER, user_cache_folder())
    if not is_forced:
        found = _look_up_any(folders, identity, device) if takes_any else None
        found = found or _look_up(folders, identity)
        if found is not None:
            return found
    with _writable(folders, identity.fingerprint()) as place:
        if place is not None:
            _sweep(place, identity.fingerprint())
            if not is_forced and (found := _look_up((place,), identity)) is not None:
                return found  # another process built it while this one waited
        onnx_path = engine_file(bundle, graph, precision)
        title = f"building engine {onnx_path.stem} with {flavour}"
        bar = BuildBar(title) if progress is None else None
        try:
            plan = build_plan(
                onnx_path,
                flavour=flavour,
                precision=precision,
                shapes=input_shapes(bundle),
                options=options,
                progress=progress or bar,
            )
        finally:
            if bar is not None:
                bar.close()
        record = _make_record(identity, graph, onnx_path, plan.data, plan.seconds)
        return EngineFile(_store(place, plan.data, record), record, True, plan.data)


def record_verdict(
    built: EngineFile, verdict: Verdict, check: Mapping[str, Any] | None = None
) -> EngineFile:
    """Note on disk what a check on the device found; the engine with its new record.

    A folder that cannot be written keeps the old verdict on disk; that is logged.

    Args:
        built: the engine.
        verdict: on it.
        check: where and against what, as `runtime.engines.check` writes it.
    """
    record = _sealed({**built.record, "verdict": verdict, "check": dict(check or {})})
    if built.path is not None:
        try:
            files.write_json(built.path.with_suffix(".json"), record)
        except SinkError as error:
            log.warning("the verdict on %s is not kept: %s", built.path.name, str(error))
    return dataclasses.replace(built, record=record)


def user_cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where engines of read-only bundles go: $XDG_CACHE_HOME/kestrel or ~/.cache/kestrel.

    Args:
        environ: environment variables; None takes this process's.
    """
    environ = os.environ if environ is None else environ
    named = environ.get("XDG_CACHE_HOME", "")
    home = environ.get("HOME", "")
    cache = Path(named) if named else (Path(home) if home else Path.home()) / ".cache"
    return cache / "kestrel" / ENGINES_FOLDER


def _look_up_any(
    folders: Sequence[Path], identity: Identity, device: Device | None
) -> EngineFile | None:
    """The newest engine that may run here, whatever the options it was built with."""
    found = []
    for folder in folders:
        for path in folder.glob("*.json"):
            record = read_record(path)
            if record is not None and serves(record.get("identity", {}), identity, device):
                found.append((str(record.get("built")), path, record))
    for _, path, record in sorted(found, key=lambda each: each[0], reverse=True):
        plan = _read(path.with_suffix(".engine"))
        if hashlib.sha256(plan).hexdigest() == record.get("sha256"):
            return EngineFile(path.with_suffix(".engine"), record, False, plan)
    return None


def _look_up(folders: Sequence[Path], identity: Identity) -> EngineFile | None:
    for folder in folders:
        path = folder / f"{identity.fingerprint()}.engine"
        record = read_record(path.with_suffix(".json"))
        if record is None:
            continue
        plan = _read(path)
        if hashlib.sha256(plan).hexdigest() != record.get("sha256"):
            log.warning("%s is not what was built (its sha256 differs); building it anew", path)
        elif record.get("identity") != identity.to_dict():
            log.warning("%s was built for something else; building it anew", path)
        else:
            return EngineFile(path, record, False, plan)
    return None


def read_record(path: Path) -> dict[str, Any] | None:
    """What is known of an engine; None where there is none, or none that this version wrote whole.

    Of a record that was edited by hand the verdict is "not run".
    """
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_RECORD:
            return None  # a pipe would keep us waiting
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(record, dict) and record.get("schema") == RECORD_SCHEMA
    if not is_ours or not {"fingerprint", "verdict"} <= set(record):
        return None
    if record.get("digest") != _digest(record) and record["verdict"] != "not run":
        log.warning("%s was changed by hand: its verdict does not count", path)
        record |= {"verdict": "not run", "check": {}}
    return dict(record)


def _sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its digest, which an edit by hand does not renew."""
    return {**record, "digest": _digest(record)}


def _digest(record: dict[str, Any]) -> str:
    fields = {name: value for name, value in record.items() if name != "digest"}
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def _writable(folders: Sequence[Path], fingerprint: str) -> Iterator[Path | None]:
    """The first folder that can be written, locked for this fingerprint; None where none can."""
    with contextlib.ExitStack() as stack:
        place = None
        for folder in folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder / f".{fingerprint}.lock", _say_waiting))
            except OSError as error:
                log.warning("%s cannot be written (%s)", folder, error.strerror or error)
                continue
            place = folder
            break
        if place is None:
            log.warning("no folder for engines can be written; this engine lives in memory only")
        yield place


def _say_waiting() -> None:
    log.warning("another process builds this engine; waiting for it")


def _sweep(folder: Path, fingerprint: str) -> None:
    """Remove what a killed builder of this engine left; called under its lock."""
    for left in folder.glob(f".{fingerprint}.*.part*"):
        with contextlib.suppress(OSError):
            left.unlink()


def _make_record(
    identity: Identity, graph: str, onnx_path: Path, plan: bytes, seconds: float
) -> dict[str, Any]:
    record = {
        "schema": RECORD_SCHEMA,
        "fingerprint": identity.fingerprint(),
        "graph": graph,
        "onnx": onnx_path.name,
        "identity": identity.to_dict(),
        "sha256": hashlib.sha256(plan).hexdigest(),
        "size_bytes": len(plan),
        "build_seconds": round(seconds, 3),
        "built": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
        "host_code_allowed": False,
        "verdict": "not run",
        "check": {},
    }
    return _sealed(record)


def _store(place: Path | None, plan: bytes, record: dict[str, Any]) -> Path | None:
    """Write the plan, then the record that makes it count; None where the disk refuses."""
    if place is None:
        return None
    path = place / f"{record['fingerprint']}.engine"
    try:
        files.write_bytes(path, plan)
        files.write_json(path.with_suffix(".json"), record)
    except SinkError as error:
        log.warning("%s; the engine is used from memory and built again next time", str(error))
        for half in (path, path.with_suffix(".json")):
            with contextlib.suppress(OSError):
                half.unlink()
        return None
    return path
