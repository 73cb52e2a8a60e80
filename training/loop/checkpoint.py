"""Checkpoints: one safetensors file whose header holds the spec and the history as JSON.

Two kinds share the format: a release (weights and what they scored) and a run's state (weights,
average, optimiser, step), from which `--resume` continues. Published checkpoints of other projects
(`training.published`) load as releases do.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.errors import CheckpointError, TrainingError
from training.models import build_model, model_class
from training.models.base import Model, Spec
from training.published import (
    import_published,
    is_published,
    published_model,
    read_published,
    size_in_name,
)

FORMAT = 1
HEADER_KEY = "kestrel"
TORCH_SUFFIXES = (".pth", ".pt")
PUBLISHED = {  # what published files say of themselves: their data and their licence
    "yolact": ("COCO", "its authors' terms (YOLACT's code is under the MIT licence)"),
    "yolact_edge": (
        "YouTube VIS and COCO",
        "its authors' terms (YolactEdge's code is under the MIT licence)",
    ),
    "retinaface": ("WIDER FACE", "its authors' terms (the code is under the MIT licence)"),
}
WEIGHTS_FOLDER = Path(__file__).resolve().parents[2] / "weights"


def shipped_checkpoint(model: str, variant: str) -> Path:
    """Where the checkpoint of a variant stands when the project ships one."""
    return WEIGHTS_FOLDER / f"{model}_{variant}.safetensors"


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def save_release(
    path: Path, name: str, model: Model, *, training: dict[str, Any], scores: dict[str, float]
) -> None:
    """Write weights, spec and scores; matrices as float16, everything else as float32.

    Halving the matrices is part of the format: load the file again before scoring it.
    """
    tensors = {}
    for key, value in model.state_dict().items():
        is_matrix = value.is_floating_point() and value.ndim >= 2
        tensors[key] = (value.half() if is_matrix else value).contiguous().cpu().clone()
    write_tensors(path, tensors, _release_header(name, model, training, scores))


def _release_header(
    name: str, model: Model, training: dict[str, Any], scores: dict[str, float]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": name,
        "task": model.task,
        "spec": json.loads(model.spec.to_json()),
        "training": training,
        "scores": scores,
    }


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={HEADER_KEY: json.dumps(header)})
        temporary.chmod(0o644)  # safetensors writes files that only their owner can read
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {path}: {error}. Free space or choose another --out."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def read_header(path: Path) -> dict[str, Any]:
    """The header of a checkpoint.

    Raises:
        CheckpointError: no such file, truncated, or not written by this project.
    """
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}; expected a .safetensors file. "
            "Train one with training/train.py, or give its path with --checkpoint."
        )
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None
    try:
        header: dict[str, Any] = json.loads(metadata[HEADER_KEY])
    except (KeyError, json.JSONDecodeError):
        raise CheckpointError(
            f"{path} holds tensors but not this project's header; expected a checkpoint written "
            "by training/train.py."
        ) from None
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {header.get('format')!r}; this version reads {FORMAT}. "
            "Upgrade, or train again."
        )
    return header


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is no whole safetensors file ({error}). Copy or train it again."
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, as stored; CheckpointError where the file is not whole."""
    try:
        with safe_open(path, framework="pt") as stream:
            return {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def load_release(path: Path, name: str | None = None) -> tuple[Model, dict[str, Any]]:
    """A model with the weights and the spec of a checkpoint.

    Args:
        path: written by `save_release`, or a published checkpoint.
        name: the model it is expected to be; None takes what the file says.

    Returns:
        The model in eval mode, float32, and the file's header, or one like it.

    Raises:
        CheckpointError: missing, damaged, of another model, or tensors that do not fit.
    """
    if _is_published_file(path):
        model, header = _load_published_file(path)
        _check_name(path, header["model"], name)
        return model, header
    header = read_header(path)
    if "spec" not in header or "state" in header:
        raise CheckpointError(
            f"{path} holds the state of a training run; expected a release such as "
            "best.safetensors beside it."
        )
    _check_name(path, header["model"], name)
    spec_type: type[Spec] = model_class(header["model"]).spec_type
    model = build_model(header["model"], spec_type.from_json(json.dumps(header["spec"])))
    tensors = read_tensors(path)
    expected = model.state_dict()
    wrong = [
        key
        for key in {**expected, **tensors}
        if key not in tensors or key not in expected or tensors[key].shape != expected[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit {header['model']!r}: {len(wrong)} tensors are missing, unknown "
            f"or of another shape, first {wrong[0]!r}. Train again with this version."
        )
    model.load_state_dict({k: v.to(expected[k].dtype) for k, v in tensors.items()})
    return model.eval(), header


def _check_name(path: Path, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise CheckpointError(
            f"{path} is a checkpoint of model {found!r}; expected {expected!r}. "
            f"Use --model {found}, or another checkpoint."
        )


def _is_published_file(path: Path) -> bool:
    """Whether a file is to be read by other projects' names, whole or not."""
    if path.suffix in TORCH_SUFFIXES:
        return True
    try:
        with safe_open(path, framework="pt") as stream:
            return HEADER_KEY not in (stream.metadata() or {}) and is_published(stream.keys())
    except (SafetensorError, OSError):
        return False  # `read_header` says why


def _load_published_file(path: Path) -> tuple[Model, dict[str, Any]]:
    is_pickled = path.suffix in TORCH_SUFFIXES
    tensors = read_published(path) if is_pickled else read_tensors(path)
    try:
        model = import_published(tensors, size=size_in_name(path))
    except TrainingError as error:
        raise CheckpointError(f"{path}: {error}") from None
    name = published_model(tensors)
    assert name is not None, "import_published refuses what is not known"
    return model, _release_header(name, model, describe_origin(path, name), {})


def describe_origin(path: Path, name: str) -> dict[str, Any]:
    """What a header says of weights of a model that came from a published checkpoint."""
    data, licence = PUBLISHED[name]
    return {
        "source": "published",
        "file": path.name,
        "sha256": file_sha256(path),
        "data": data,
        "licence": licence,
    }


def load_matching(model: Model, path: Path) -> list[str]:
    """Start from another checkpoint: copy what fits; give the names of what does not."""
    tensors = read_tensors(path)
    own = model.state_dict()
    fitting = {
        key: tensors[key].to(value.dtype)
        for key, value in own.items()
        if key in tensors and tensors[key].shape == value.shape
    }
    if not fitting:
        raise CheckpointError(
            f"no tensor of {path} fits this model; expected a checkpoint of the same backbone. "
            "Use --init scratch, or another file."
        )
    model.load_state_dict(fitting, strict=False)
    return [key for key in own if key not in fitting]


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors."""
    packed = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            packed[f"optimizer.{index}.{key}"] = torch.as_tensor(value).contiguous().clone()
    return packed


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `pack_optimizer` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
