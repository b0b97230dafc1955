"""One thread, the folder of the tests on the path of imports, and the device: ``SOBOLEV_TEST_DEVICE=cuda``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_default_device(os.environ.get("SOBOLEV_TEST_DEVICE", "cpu"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
