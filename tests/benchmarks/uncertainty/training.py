"""Training the networks of a case, and predicting with them in the four ways that are compared."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import stablelightning as sl
from stablelightning.calibration.temperature import TemperatureScaling
from stablelightning.model.prediction import Prediction
from stablelightning.model.summarize import Summary
from tests.benchmarks.transfer.training import classifier, trainer
from tests.benchmarks.uncertainty.sets import Case

#: Members of an ensemble; the first is the network that the other methods use.
MEMBERS = 5

#: Rows of a batch that is not trained on.
_EVALUATED = 500

METHODS = ("one pass", "MC", "MC calibrated", "ensemble of 5")


class _Augmented(TensorDataset):
    """Rows that come in whole batches, changed at random."""

    def __init__(self, *tensors: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(*tensors)
        self.change = change

    def __getitems__(self, rows: list[int]) -> list[tuple[Tensor, Tensor]]:
        inputs, target = self.tensors[0][rows], self.tensors[1][rows]
        return list(zip(self.change(inputs), target, strict=True))


def trained(case: Case, seed: int) -> nn.Module:
    """One network, from weights and an order of batches by ``seed``."""
    torch.manual_seed(seed)
    network = case.network()
    tensors = case.train.inputs, case.train.target
    rows = (
        TensorDataset(*tensors)
        if case.augment is None
        else _Augmented(*tensors, change=case.augment)
    )
    loader = DataLoader(rows, case.batch_size, shuffle=True, drop_last=True)
    module = classifier(network, case.learning_rate)
    trainer(case.epochs, half=case.half).fit(module, loader)
    return network.eval()


class Predictor:
    """The four ways of predicting, with what they need fitted on the validation rows.

    Args:
        case: the data.
        networks: :data:`MEMBERS` trained ones.
        seed: of the dropout masks.
    """

    def __init__(self, case: Case, networks: list[nn.Module], *, seed: int) -> None:
        self.case, self.networks, self.seed = case, networks, seed
        self.temperature = TemperatureScaling()
        self.temperature.fit(self.sampled(case.val.inputs), case.val.target)

    def all(self, inputs: Tensor) -> dict[str, Prediction]:
        """Predictions of :data:`METHODS`."""
        sampled = self.sampled(inputs)
        found = (
            self.ensemble(inputs, self.networks[:1]),
            sampled,
            self.temperature(sampled),
            self.ensemble(inputs, self.networks),
        )
        return dict(zip(METHODS, found, strict=True))

    def sampled(self, inputs: Tensor) -> Prediction:
        """The mean of the samples of the first network."""
        return joined(
            [
                sl.mc_dropout(
                    self.networks[0],
                    batch,
                    samples=self.case.samples,
                    seed=self.seed + number,
                    task="classification",
                )
                for number, batch in enumerate(inputs.split(_EVALUATED))
            ]
        )

    def ensemble(self, inputs: Tensor, networks: list[nn.Module]) -> Prediction:
        """The mean of one pass of each network."""
        parts = []
        for batch in inputs.split(_EVALUATED):
            summary = Summary("classification")
            for network in networks:
                summary.update_(logits_of(network, batch)[None])
            parts.append(summary.prediction(engine="ensemble"))
        return joined(parts)

    def logits(self, inputs: Tensor) -> Tensor:
        """One pass of the first network."""
        return torch.cat([logits_of(self.networks[0], part) for part in inputs.split(_EVALUATED)])


def logits_of(network: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return network(inputs)  # type: ignore[no-any-return]


def joined(parts: list[Prediction]) -> Prediction:
    """The predictions of consecutive rows as one."""
    first = parts[0]
    columns: dict[str, Any] = {
        each.name: torch.cat([getattr(part, each.name) for part in parts])
        for each in fields(Prediction)
        if isinstance(getattr(first, each.name), Tensor)
    }
    return replace(first, samples=None, **columns)
