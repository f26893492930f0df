"""The one tester of all metrics: what it asks of each is the same."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from tests.metrics.cases import Case


def same(value: Any, expected: Any, close: float = 1e-6) -> None:
    """Equal numbers, or equal numbers under equal names, in float32."""
    if isinstance(expected, dict):
        assert set(value) == set(expected)
        for name, each in expected.items():
            same(value[name], each, close)
        return
    if isinstance(value, Tensor):
        assert value.dtype == torch.float32
        assert value.ndim == 0
    assert float(value) == pytest.approx(float(expected), rel=close, abs=close)


def fed(case: Case, metric: Metric | None = None) -> Metric:
    """A metric that has seen every batch."""
    metric = case.make() if metric is None else metric
    for batch in case.batches():
        metric.update(*batch)
    return metric


def check_value(case: Case) -> None:
    """Batches or one, the value is the oracle's, and states do not grow if they need not."""
    expected = case.expected()
    same(fed(case).compute(), expected, case.close)
    whole = case.make()
    whole.update(*case.inputs)
    same(fed(case).compute(), whole.compute(), 1e-6)


def check_forward(case: Case) -> None:
    """A call returns the batch's own value, and adds the batch."""
    metric = case.make()
    for batch in case.batches()[2:]:
        alone = case.make()
        alone.update(*batch)
        same(metric(*batch), alone.compute(), 1e-6)
    after = case.make()
    for batch in case.batches()[2:]:
        after.update(*batch)
    same(metric.compute(), after.compute(), 1e-6)


def check_states(case: Case) -> None:
    """Pickled, copied, merged, reset, moved and loaded, it goes on as before."""
    expected = fed(case).compute()
    metric = case.make()
    for number, batch in enumerate(case.batches()):
        metric = pickle.loads(pickle.dumps(metric)) if number == 2 else copy.deepcopy(metric)
        metric.update(*batch)
    same(metric.compute(), expected)

    first, second = case.make(), case.make()
    for number, batch in enumerate(case.batches()):
        (first if number < 2 else second).update(*batch)
    first.merge_state(second)
    same(first.compute(), expected)

    first.reset()
    same(fed(case, first).compute(), expected)

    first.persistent(True)
    loaded = case.make()
    loaded.persistent(True)
    loaded.load_state_dict(first.state_dict())
    loaded._update_count = 1  # torchmetrics does not keep it
    same(loaded.compute(), expected)


def check_half(case: Case) -> None:
    """What comes in bfloat16 is computed in float32; ``.half()`` does not touch the states."""

    def narrow(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(narrow(part) for part in value)
        return value.bfloat16() if value.is_floating_point() else value

    metric = case.make().half()
    for batch in case.batches():
        metric.update(*(narrow(value) for value in batch))
    same(metric.compute(), case.expected(), case.coarse)


def check_inference(case: Case) -> None:
    """Lightning tests in inference mode, and may go on outside of it."""
    metric = case.make()
    with torch.inference_mode():
        metric.update(*case.batches()[0])
        metric.reset()
        metric.update(*case.batches()[0])
    for batch in case.batches()[1:]:
        metric.update(*batch)
    same(metric.compute(), case.expected(), case.close)


def check_collection(case: Case) -> None:
    """Beside itself in a collection, which shares the states of equal metrics."""
    collection = MetricCollection({"a": case.make(), "b": case.make()})
    for batch in case.batches():
        collection.update(*batch)
    assert len(collection.compute_groups) == 1
    expected = fed(case).compute()
    if not isinstance(expected, dict):
        same(collection.compute(), {"a": expected, "b": expected})
        return
    named = {f"{key}_{name}": each for key in "ab" for name, each in expected.items()}
    same(collection.compute(), named)


CHECKS = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_value,
        check_forward,
        check_states,
        check_half,
        check_inference,
        check_collection,
    )
}
