"""The engines: ways of computing samples, none of which changes what a sample means."""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.model.batched import CannotBatch, CheapDropout, vmapped
from stablelightning.model.collect import detached_copies, stack_outputs
from stablelightning.model.masks import ONE, MaskStream, Pass
from stablelightning.model.replay import Replay
from stablelightning.model.rows import count_rows, repeated
from stablelightning.model.stochastic import StochasticModules

#: Samples drawn one by one are handed on in stacks of this many: enough to spread the cost of the
#: streaming moments, few enough that a stack of outputs is small beside one pass.
STACK = 8


@dataclass
class Sampled:
    """One thing to sample: a model, what is called, and with what.

    Args:
        model: the model, in sampling mode while an engine runs.
        function: what is called with the inputs; the model itself, or a method of it.
        inputs: ``(args, kwargs)``.
        found: its random modules.
        masks: answers for what is drawn; ``None`` leaves the draws to torch.
    """

    model: nn.Module
    function: Callable[..., Any]
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    found: StochasticModules = field(default_factory=StochasticModules)
    masks: MaskStream | None = None

    def __post_init__(self) -> None:
        """Flatten the inputs once."""
        args, kwargs = self.inputs
        flat = not kwargs and all(isinstance(a, Tensor) for a in args)
        self.leaves: list[Any] = list(args) if flat else tree_leaves(self.inputs)

    def run(self, passed: Pass = ONE) -> Any:
        """One pass on the inputs."""
        return self.on(self.inputs, passed)

    def on(self, inputs: Any, passed: Pass = ONE) -> Any:
        """One pass on other inputs of the same structure."""
        if self.masks is None:
            return self.function(*inputs[0], **inputs[1])
        with self.masks.watching(passed):
            return self.function(*inputs[0], **inputs[1])

    @property
    def device(self) -> torch.device:
        """Where the inputs (or else the parameters) are."""
        found = next((x for x in self.leaves if isinstance(x, Tensor)), None)
        if found is None:
            found = next(self.model.parameters(), None)
        return torch.device("cpu") if found is None else found.device


def loop(sampled: Sampled, samples: int) -> Iterator[Any]:
    """The whole model once per sample."""
    for number in _split(samples, STACK):
        yield stack_outputs([detached_copies(sampled.run()) for _ in range(number)])


def replay(
    sampled: Sampled, samples: int, *, gave_up: Callable[[str], None] = lambda _: None
) -> Iterator[Any]:
    """The deterministic prefix once, the rest once per sample: bit-identical to :func:`loop`.

    Args:
        sampled: what is sampled.
        samples: number of samples.
        gave_up: told why the prefix could not be replayed, at most once.
    """
    again = _replaying(sampled.run, sampled)
    told = False
    with closing(again):
        for number in _split(samples, STACK):
            outputs = []
            for _ in range(number):
                outputs.append(detached_copies(again()))
                if again.gave_up is not None and not told:
                    told = True
                    gave_up(again.gave_up)
            yield stack_outputs(outputs)


def vmap(
    sampled: Sampled, samples: int, *, chunk: int, out_of_place: bool = False
) -> Iterator[Any]:
    """The prefix once, the rest as batches of ``chunk`` samples.

    Raises:
        CannotBatch: vmap refuses the live part, or a later chunk takes another path.
    """
    passes = -(-samples // chunk)
    each = -(-samples // passes)  # equal passes, so that each takes the path of the first
    marker = torch.zeros(each, device=sampled.device)

    stacked = partial(sampled.run, Pass(stacked=each))
    cheap = sampled.masks is None

    def batch() -> Any:
        return vmapped(stacked, marker, out_of_place=out_of_place, cheap=cheap)

    if passes == 1:
        yield _settled(batch(), samples, copy=False)
        return
    with closing(_replaying(batch, sampled)) as again:
        for number in [each] * (passes - 1) + [samples - each * (passes - 1)]:
            output = again()
            if again.took_another_path:
                raise CannotBatch(again.gave_up)
            yield _settled(output, number, copy=True)


def repeat(sampled: Sampled, samples: int, *, chunk: int, cheap: bool = True) -> Iterator[Any]:
    """Batches of ``chunk`` copies of the rows; right only if rows are independent.

    Args:
        sampled: what is sampled.
        samples: number of samples.
        chunk: samples per pass.
        cheap: watch for dropout, and draw its masks from integers.

    Raises:
        CannotBatch: an output does not have one row per input row.
    """
    rows = count_rows(sampled.leaves)
    for number in _split(samples, chunk):
        call = partial(sampled.on, passed=Pass(copies=number))
        with CheapDropout() if cheap and sampled.masks is None else nullcontext():
            output = repeated(call, sampled.inputs, number, rows=rows)
        yield output


def _replaying(run: Callable[[], Any], sampled: Sampled) -> Replay:
    alone = sampled.function is sampled.model
    return Replay(run, sampled.model, sampled.leaves, alone=alone)


def _split(samples: int, chunk: int) -> list[int]:
    """Sizes of equal chunks (the last may be smaller), none above ``chunk``."""
    passes = -(-samples // chunk)
    each = -(-samples // passes)
    return [min(each, samples - start) for start in range(0, samples, each)]


def _settled(output: Any, number: int, *, copy: bool) -> Any:
    """The first ``number`` samples, free of memory that the next pass uses again.

    Outputs of vmap that do not depend on the sample are views of what is on the tape.
    """

    def settle(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        taken = leaf[:number]
        return taken.clone() if copy or not leaf.is_contiguous() else taken

    return tree_map(settle, output)
