"""Measuring now and reading later, and going on from a saved state."""

import torch
from torch import nn

from stablelightning.model.attribution import attribute
from stablelightning.model.monitor import QUANTITIES, SignalMonitor
from stablelightning.model.unit_record import STARTING_LOOKS


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def measure(monitor, model, step):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(step)
    model.zero_grad()
    monitor.look()
    model(torch.randn(6, 4, generator=generator)).square().sum().backward()
    before = monitor.before_step(model.parameters())
    optimizer.step()
    monitor.after_step(before)
    monitor.look_away()
    monitor.send(step)


def bound(model, state=None):
    monitor = SignalMonitor(window=4)
    if state is not None:
        monitor.load_state_dict(state)
    monitor.bind(model, attribute(model, torch.zeros(1, 4)).layers)
    return monitor


def test_every_quantity_is_named():
    model = network()
    monitor = bound(model)
    for step in range(STARTING_LOOKS):
        measure(monitor, model, step)
        reading = monitor.receive()
    assert {key.partition("/")[0] for key in reading.values()} == set(QUANTITIES)
    assert reading.step == STARTING_LOOKS - 1


def test_what_was_not_sent_is_not_received():
    monitor = bound(network())
    assert monitor.receive() is None
    assert not monitor.has_stepped


def test_goes_on_exactly_between_sending_and_receiving():
    model = network()
    first = bound(model)
    for step in range(6):
        measure(first, model, step)
        if step < 5:
            first.receive()
    second = bound(model, first.state_dict())
    assert first.receive() == second.receive()
    copy = network()
    copy.load_state_dict(model.state_dict())
    third = bound(copy, second.state_dict())
    readings = []
    for monitor, module in ((first, model), (third, copy)):
        measure(monitor, module, 6)
        readings.append(monitor.receive())
    assert readings[0] == readings[1]
    assert first.history.steps == third.history.steps == list(range(7))


def test_the_state_of_another_model_is_forgotten():
    model = network()
    first = bound(model)
    measure(first, model, 0)
    first.receive()
    second = SignalMonitor()
    second.load_state_dict(first.state_dict())
    assert not second.bind(nn.Linear(2, 2))
    assert second.history.steps == []
    assert second.history.layers == ["weight"]


def test_a_released_monitor_holds_no_model():
    model = network()
    monitor = bound(model)
    measure(monitor, model, 0)
    monitor.release()
    assert not monitor.is_bound
    assert monitor.state_dict()["sent"] is not None  # what was measured is not lost
    assert monitor.bind(model)
    assert monitor.receive().step == 0
