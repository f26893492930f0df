"""The plain engine: run the whole model once per sample."""

from collections.abc import Callable, Iterator
from typing import Any

from stablelightning.model.collect import detached_copies, stack_outputs

#: Samples are handed on in stacks of this many: enough to spread the cost of the streaming moments,
#: few enough that a stack of outputs is small beside one pass.
STACK = 8


def loop(run: Callable[[], Any], samples: int, *, stack: int = STACK) -> Iterator[Any]:
    """Yield stacks of outputs of ``samples`` independent passes."""
    done = 0
    while done < samples:
        number = min(stack, samples - done)
        yield stack_outputs([detached_copies(run()) for _ in range(number)])
        done += number
