"""Packages that may be missing or half installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sobolev import SobolevError
from sobolev.optional import need

ROOT = Path(__file__).parents[1]

TORCHVISION = """
import torch
for operator in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{operator}", lambda dets, scores, threshold: dets)
"""


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    need("json", "json", "nothing")
    with pytest.raises(SobolevError, match=r"the digits needs the package no-such, .*: pip install no-such"):
        need("no_such_module", "no-such", "the digits")


def imports(folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Import the torchvision of a folder in a fresh process, as operators stay for the life of one."""
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{before}\nimport torchvision\n"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_torchvision_whose_compiled_part_does_not_load_can_be_imported(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(TORCHVISION)
    (package / "_C.so").write_bytes(b"made for another torch")
    alone = imports(tmp_path)
    assert alone.returncode != 0 and "torchvision::nms does not exist" in alone.stderr
    twice = "from sobolev.optional import provide_torchvision_operators as provide; provide(); provide()"
    helped = imports(tmp_path, twice)
    assert helped.returncode == 0, helped.stderr


def test_the_way_round_it_is_written_once() -> None:
    files = [*ROOT.glob("sobolev/**/*.py"), *ROOT.glob("plugins/*/*/**/*.py")]
    assert [file.name for file in files if 'Library("torchvision"' in file.read_text()] == ["optional.py"]
