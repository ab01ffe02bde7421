"""The network that is trained is the network that is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from m1runtime import Engine
from m1runtime.config import ModelConfig
from training.model import TrainingModel
from training.train import HERE, export


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingModel, Path]:
    torch.manual_seed(0)
    raw = json.loads((HERE / "config.json").read_text()) | {"vocab_size": 96}
    model = TrainingModel(ModelConfig.from_dict(raw))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # what a checkpoint keeps
    folder = tmp_path_factory.mktemp("checkpoint")
    export(model, raw, folder)
    model.set_precision(torch.float32)
    return model, folder


def test_runtime_computes_the_trained_network(trained: tuple[TrainingModel, Path]) -> None:
    model, folder = trained
    ids = torch.randint(0, 96, (1, 256))
    with torch.no_grad():
        wanted = model(ids, torch.zeros_like(ids))[0]
    found = Engine.from_pretrained(folder).score(ids[0].tolist())
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


def test_documents_of_a_row_do_not_see_each_other(trained: tuple[TrainingModel, Path]) -> None:
    model, _ = trained
    first, second = torch.randint(0, 96, (1, 100)), torch.randint(0, 96, (1, 156))
    with torch.no_grad():
        together = model(torch.cat([first, second], 1), torch.tensor([[0] * 100 + [1] * 156]))
        padded = torch.cat([second, torch.zeros(1, 100, dtype=torch.long)], 1)
        alone = model(padded, torch.tensor([[0] * 156 + [1] * 100]))
    torch.testing.assert_close(together[:, 100:], alone[:, :156], atol=1e-4, rtol=1e-4)
