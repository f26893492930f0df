"""The signals of a model in training, measured now and read later; knows nothing of a Trainer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stablelightning.model.activity import ActivityWatch
from stablelightning.model.alarms import Alarm, AlarmRules
from stablelightning.model.attribution import LayerRole
from stablelightning.model.history import History
from stablelightning.model.unit_record import UnitRecord
from stablelightning.model.weight_watch import Before, Layout, Signals, WeightWatch

#: What is known of a layer; not all of it of every layer at every reading.
QUANTITIES = (
    "grad_norm",
    "update_ratio",
    "distance",
    "activation_mean",
    "activation_std",
    "dead",
    "died",
    "revived",
    "saturated",
)

#: Gives ``(n,)`` of every process as ``(processes, n)``.
Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reading:
    """What one measurement found.

    Args:
        step: when it was taken.
        signals: by layer, by quantity.
        grad_norm: joint norm of all gradients that were measured; ``None`` where none was.
        alarms: those that were not raised before.
    """

    step: int
    signals: Signals
    grad_norm: float | None
    alarms: list[Alarm]

    def values(self) -> dict[str, float]:
        """Everything under ``<quantity>/<layer>``, and ``grad_norm`` of all layers together."""
        found = {} if self.grad_norm is None else {"grad_norm": self.grad_norm}
        for quantity in QUANTITIES:
            for layer, seen in self.signals.items():
                if quantity in seen:
                    found[f"{quantity}/{layer}"] = seen[quantity]
        return found


@dataclass
class _Sent:
    """A measurement on its way to the CPU."""

    step: int
    layout: Layout
    row: Tensor
    processes: int  # whose activations follow the weights in the row; 0 where nobody looked
    landed: torch.cuda.Event | None = None

    def wait(self) -> None:
        if self.landed is not None:
            self.landed.synchronize()
            self.landed = None


class SignalMonitor:
    """Gradient norms, update ratios, distances from the start and activity of units, per layer.

    One measurement is: :meth:`look` before forward, :meth:`before_step` and :meth:`after_step`
    around each optimizer's step, :meth:`look_away`, :meth:`send`. Nothing of it waits for the
    device. A later :meth:`receive` reads the numbers, which came in one transfer.

    All state is plain: it can be saved at any time, also between :meth:`send` and
    :meth:`receive`, and a monitor that loads it goes on exactly.

    Args:
        window: number of examples over which a unit must be still to be dead, >= 1.
        dead_share: share of a layer's units whose death is an alarm, in (0, 1].

    Attributes:
        alarms: all that were raised, in order.
        history: what was read, by step and layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> monitor = SignalMonitor(window=4)
        >>> _ = monitor.bind(net)
        >>> monitor.look()
        >>> net(torch.ones(4, 2)).sum().backward()
        >>> before = monitor.before_step(net.parameters())
        >>> optimizer.step()
        >>> monitor.after_step(before)
        >>> monitor.look_away()
        >>> monitor.send(0)
        >>> sorted(monitor.receive().signals["2"])
        ['activation_mean', 'activation_std', 'distance', 'grad_norm', 'update_ratio']
    """

    def __init__(self, *, window: int = 512, dead_share: float = 0.4) -> None:
        self._window, self._dead_share = window, dead_share
        self._weights: WeightWatch | None = None
        self._activity: ActivityWatch | None = None
        self._reset()

    def _reset(self) -> None:
        self.alarms: list[Alarm] = []
        self.history = History(QUANTITIES)
        self._units = UnitRecord([], [], window=self._window)
        self._rules = AlarmRules(dead_share=self._dead_share)
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._start: Tensor | None = None
        self._sent: _Sent | None = None

    # ---- the model ------------------------------------------------------------------------------

    @property
    def is_bound(self) -> bool:
        """Whether there is a model to measure."""
        return self._weights is not None

    def bind(
        self, model: nn.Module, roles: Sequence[LayerRole] = (), *, activations: bool = True
    ) -> bool:
        """Begin with a model before its first step, or go on where a loaded state ended.

        Args:
            model: with all its parameters in place.
            roles: ``attribute(...).layers``, which say what function a layer runs into.
            activations: whether to look at activations at all.

        Returns:
            False where a state was loaded that is of another model: it is forgotten.
        """
        weights = WeightWatch(model)
        same = (weights.names, weights.sizes) == (self._names, self._sizes)
        known = self._start is not None
        if known and not same:
            self._reset()
        elif known and self._start is not None:
            weights.start_from(self._start)
        self._names, self._sizes, self._start = weights.names, weights.sizes, weights.start
        self._weights = weights
        self._activity = ActivityWatch(model, roles) if activations else None
        if self._activity is not None:
            self._bind_units(self._activity)
        self.history.begin(weights.layers)
        return same or not known

    def _bind_units(self, activity: ActivityWatch) -> None:
        known = self._units.state_dict()
        self._units = UnitRecord(activity.layers, activity.units, window=self._window)
        self._units.load_state_dict(known)

    def release(self) -> None:
        """Let go of the model; what was found stays."""
        self.look_away()
        if self._sent is not None:
            self._sent.wait()
        if self._start is not None:
            self._start = self._start.cpu()
        self._weights = self._activity = None

    # ---- measuring ------------------------------------------------------------------------------

    def look(self) -> None:
        """Look at the activations of the forward passes that follow."""
        if self._activity is not None:
            self._activity.attach()

    def look_away(self) -> None:
        """Leave no hook in the model."""
        if self._activity is not None:
            self._activity.detach()

    def forget(self) -> None:
        """Drop the activations since the last :meth:`look`: those passes do not count."""
        if self._activity is not None:
            self._activity.forget()

    def before_step(
        self, parameters: Iterable[Tensor], *, scale: Tensor | None = None, scaled: bool = False
    ) -> Before:
        """Measure the gradients of one optimizer before its step.

        Args:
            parameters: those of the optimizer, their gradients as the step will see them.
            scale: what the gradients are still multiplied by, a scalar.
            scaled: whether a loss scaler is at work.

        Returns:
            What :meth:`after_step` needs. Without that call nothing of it counts.
        """
        assert self._weights is not None
        return self._weights.before_step(parameters, scale=scale, scaled=scaled)

    def after_step(self, before: Before) -> None:
        """Measure what the step did to the weights."""
        if self._weights is not None:
            self._weights.after_step(before)

    @property
    def has_stepped(self) -> bool:
        """Whether there is anything to send."""
        return self._weights is not None and self._weights.has_stepped

    def send(self, step: int, *, gather: Gather | None = None) -> None:
        """Close the measurement and send its numbers off, in one row.

        Args:
            step: the step that was measured.
            gather: brings the row of every process to every process; all must call it.
        """
        assert self._weights is not None
        layout, row = self._weights.take()
        processes = 0
        if self._activity is not None and self._activity.has_looked:
            seen = self._activity.take(row)
            everyone = seen[None] if gather is None else gather(seen).reshape(-1, len(seen))
            processes = len(everyone)
            row = torch.cat([row, everyone.reshape(-1).to(row)])
        self._sent = _Sent(step, layout, row, processes)
        if row.is_cuda:
            self._sent.row = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
            self._sent.row.copy_(row, non_blocking=True)
            self._sent.landed = torch.cuda.Event()
            self._sent.landed.record()
        else:
            self._sent.row = row.cpu()

    def receive(self) -> Reading | None:
        """Read what was sent; ``None`` where nothing was."""
        sent, self._sent = self._sent, None
        if sent is None or self._weights is None:
            return None
        sent.wait()
        width = self._weights.width(sent.layout)
        signals, total = self._weights.read(sent.layout, sent.row[:width])
        if self._activity is not None and sent.processes:
            rows = sent.row[width:].reshape(sent.processes, -1)
            for layer, seen in self._units.look(rows, self._activity.ends).items():
                signals.setdefault(layer, {}).update(seen)
        outputs = [] if self._activity is None else self._activity.outputs
        resting = self._weights.rarely_used
        alarms = self._rules.judge(sent.step, signals, may_saturate=outputs, may_rest=resting)
        self.alarms += alarms
        self.history.add(sent.step, signals)
        return Reading(sent.step, signals, total, alarms)

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain types and CPU tensors; empty before there was a model."""
        if self._start is None:
            return {}
        if self._sent is not None:
            self._sent.wait()
        sent = self._sent
        return {
            "names": list(self._names),
            "sizes": list(self._sizes),
            "start": self._start.cpu().clone(),
            "units": self._units.state_dict(),
            "rules": self._rules.state_dict(),
            "alarms": [alarm.to_dict() for alarm in self.alarms],
            "history": self.history.state_dict(),
            "sent": None
            if sent is None
            else {
                "step": sent.step,
                "layout": asdict(sent.layout),
                "row": sent.row.clone(),
                "processes": sent.processes,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, at the next :meth:`bind`."""
        self._reset()
        if not state:
            return
        self._names, self._sizes = list(state["names"]), list(state["sizes"])
        self._start = state["start"].clone()
        units = state["units"]
        self._units = UnitRecord(units["layers"], units["units"], window=self._window)
        self._units.load_state_dict(units)
        self._rules.load_state_dict(state["rules"])
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]
        self.history.load_state_dict(state["history"])
        sent = state["sent"]
        if sent is not None:
            layout = Layout(**sent["layout"])
            self._sent = _Sent(sent["step"], layout, sent["row"].clone(), sent["processes"])
