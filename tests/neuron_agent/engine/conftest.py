from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from neuron_agent.engine.engine import Engine
from tests.neuron_agent.engine.workbench import load
from tests.neuron_agent.tiny_models import save_tiny

# The models are tiny: several threads would spend their time waiting for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny model, built once a session."""
    folders: dict[str, Path] = {}

    def folder_of(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = save_tiny(tmp_path_factory.mktemp(kind), kind)
        return folders[kind]

    return folder_of


@pytest.fixture
def engine(tiny_folder: Callable[[str], Path]) -> Engine:
    return load(tiny_folder("qwen3"))
