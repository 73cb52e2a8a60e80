"""Fixtures of several tests of the doctor."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import Planted, compile_driver


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """A machine in a folder, with nothing on it but Python and NumPy."""
    return Planted(tmp_path)


@pytest.fixture(scope="session")
def driver_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda.so.1 that says what it is told to."""
    return compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driven(planted: Planted, driver_library: Path) -> Planted:
    """The machine with an NVIDIA driver; FAKE_... variables say what it answers."""
    planted.environ["LD_LIBRARY_PATH"] = str(driver_library)
    return planted
