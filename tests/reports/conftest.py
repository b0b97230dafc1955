"""One thread, the folder of the tests on the path of imports, and run directories."""

import sys
from pathlib import Path

import pytest
import torch

from sobolev.components import RunRecord

sys.path.insert(0, str(Path(__file__).parent))

from reports_support import MATRIX, PLAIN, train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def plain_runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    return train(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="session")
def matrix_runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    return train(tmp_path_factory.mktemp("matrix"), MATRIX)
