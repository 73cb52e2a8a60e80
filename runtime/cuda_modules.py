"""Modules of cuda-python, whose names have changed over its versions."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

from runtime.contract.errors import SessionError


def import_cuda(names: Sequence[str], wanted_by: str) -> ModuleType:
    """The first of these modules that is installed.

    Args:
        names: of one module, the newest name first.
        wanted_by: what needs it, such as "kernels".

    Raises:
        SessionError: none is installed, or the first that is cannot be imported.
    """
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError, RuntimeError) as error:
            raise SessionError(
                f"{name} is installed but cannot be imported ({error}). "
                "Install the cuda-python that fits the driver."
            ) from None
    raise SessionError(
        f"cuda-python is not installed; {wanted_by} need it: pip install 'cuda-python>=12.6', "
        "12.x for CUDA 12 (JetPack 6), 13.x for CUDA 13."
    )
