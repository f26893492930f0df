"""The study behind ``auto``: one surveyed pass, whose samples are used if the choice allows it."""

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from stablelightning.model.batched import CannotBatch, vmapped
from stablelightning.model.engines import Sampled
from stablelightning.model.footprint import Footprint
from stablelightning.model.generators import (
    HostGeneratorWatch,
    preserved_generators,
    undisturbed_generators,
)
from stablelightning.model.modules import set_training
from stablelightning.model.plan import (
    Plan,
    cheap_draws_pay,
    chunk_for,
    first_chunk,
    largest_for,
    overhead_dominates,
)
from stablelightning.model.rows import count_rows, rows_are_independent
from stablelightning.model.survey import Survey, TooLarge


def study(sampled: Sampled, samples: int, *, limit: int | None = None) -> Plan:
    """Choose an engine by surveying a pass; generators and modules are left as they were.

    Args:
        sampled: what is sampled, in sampling mode.
        samples: number of samples that will be drawn.
        limit: most samples that may share a pass.
    """
    with undisturbed_generators():
        out_of_place = _same_out_of_place(sampled)
        number = first_chunk(samples if limit is None else min(samples, limit))
        while number > 1:
            try:
                allowed = largest_for(number, sampled.device)
                survey = _survey(sampled, number, out_of_place, largest_allowed=allowed)
            except TooLarge as error:
                number = min(chunk_for(error.bytes / number, sampled.device), number - 1)
                continue
            except CannotBatch as refusal:
                return _without_vmap(sampled, samples, str(refusal))
            chunk = min(samples, chunk_for(survey.largest / number, sampled.device))
            small = overhead_dominates(survey.operations, survey.prefix_work, samples)
            if small and rows_independent(sampled):
                cheap = cheap_draws_pay(survey.drawn * chunk // number, survey.operations)
                return Plan("repeat", chunk, "a small model, rows independent", cheap=cheap)
            return Plan("vmap", chunk, out_of_place=out_of_place)
    return Plan("replay", 1, "the tensors after the first draw are large" if samples > 1 else "")


def _survey(sampled: Sampled, number: int, out_of_place: bool, *, largest_allowed: float) -> Survey:
    host = HostGeneratorWatch()
    marker = torch.zeros(number, device=sampled.device)
    survey = Survey(largest_allowed=largest_allowed)
    with Footprint(sampled.model) as footprint:
        with survey:
            vmapped(sampled.run, marker, out_of_place=out_of_place)
        if host.moved():
            raise CannotBatch("the forward draws from Python's or NumPy's generator")
        if footprint.changed():
            raise CannotBatch("the forward keeps something on its modules")
    return survey


def _without_vmap(sampled: Sampled, samples: int, why: str) -> Plan:
    """Where vmap refuses: batches of repeated rows where that pays and is right, else replay."""
    survey = Survey()
    with survey, Footprint(sampled.model) as footprint:
        host = HostGeneratorWatch()
        sampled.run()
        plain = not footprint.changed() and not host.moved()
    chunk = min(samples, chunk_for(survey.largest, sampled.device))
    pays = samples > 1 and chunk > 1 and survey.prefix_work < survey.live_work
    if plain and pays and rows_independent(sampled):
        return Plan("repeat", chunk, f"rows independent; vmap: {why}")
    return Plan("replay", 1, why)


def rows_independent(sampled: Sampled) -> bool:
    """Whether ``repeat`` is right for ``sampled``; see :func:`rows_are_independent`."""

    def steady(inputs: Any) -> Any:
        for module in sampled.found.flagged:
            set_training(module, False)
        try:
            return sampled.on(inputs)
        finally:
            for module in sampled.found.flagged:
                set_training(module, True)

    if sampled.found.functional or count_rows(sampled.leaves) == 0:
        return False
    with Footprint(sampled.model):
        return rows_are_independent(sampled.on, steady, sampled.inputs)


def check_vmap(sampled: Sampled, number: int) -> Plan:
    """The plan to use vmap because it was asked for.

    Raises:
        CannotBatch: it would refuse, or mean something else than separate passes.
    """
    with undisturbed_generators():
        out_of_place = _same_out_of_place(sampled)
        _survey(sampled, number, out_of_place, largest_allowed=float("inf"))
    return Plan("vmap", number, out_of_place=out_of_place)


def check_repeat(sampled: Sampled, number: int) -> Plan:
    """The plan to use repeat because it was asked for.

    Raises:
        CannotBatch: the rows influence each other, or it could not be checked that they do not.
    """
    if not rows_independent(sampled):
        raise CannotBatch("its rows influence each other, or could not be checked")
    return Plan("repeat", number)


def _same_out_of_place(sampled: Sampled) -> bool:
    """Whether there is in-place dropout, and nothing reads its input again."""
    in_place = [m for m in sampled.found.flagged if getattr(m, "inplace", False)]
    if not in_place:
        return False
    outputs = []
    for inplace in (True, False):
        for module in in_place:
            module.inplace = inplace  # type: ignore[assignment]
        try:
            with preserved_generators(0):
                outputs.append(tree_leaves(sampled.run()))
        finally:
            for module in in_place:
                module.inplace = True  # type: ignore[assignment]
    return all(
        torch.allclose(a, b) for a, b in zip(*outputs, strict=True) if isinstance(a, torch.Tensor)
    )
