"""The study behind ``auto``: one surveyed pass, whose samples are used if the choice allows it."""

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from stablelightning.model.batched import CannotBatch, count_rows, rows_are_independent, vmapped
from stablelightning.model.engines import Sampled
from stablelightning.model.footprint import Footprint
from stablelightning.model.generators import HostGeneratorWatch, preserved_generators
from stablelightning.model.plan import (
    Plan,
    chunk_for,
    first_chunk,
    largest_for,
    overhead_dominates,
)
from stablelightning.model.stochastic import StochasticModules
from stablelightning.model.survey import Survey, TooLarge


def study(sampled: Sampled, samples: int, found: StochasticModules) -> Plan:
    """Choose an engine by surveying a pass; generators and modules are left as they were.

    Args:
        sampled: what is sampled, in sampling mode.
        samples: number of samples that will be drawn.
        found: its random modules.
    """
    in_place = [m for m in found.flagged if getattr(m, "inplace", False)]
    with preserved_generators():
        out_of_place = bool(in_place) and _same_out_of_place(sampled, in_place)
        number = first_chunk(samples)
        while number > 1:
            try:
                survey = _survey(sampled, number, out_of_place)
            except TooLarge as error:
                number = min(chunk_for(error.bytes / number, sampled.device), number - 1)
                continue
            except CannotBatch as refusal:
                return _without_vmap(sampled, samples, found, str(refusal))
            chunk = min(samples, chunk_for(survey.largest / number, sampled.device))
            small = overhead_dominates(survey.operations, survey.prefix_work, samples)
            if small and rows_independent(sampled, found):
                return Plan("repeat", chunk, "a small model, rows independent")
            return Plan("vmap", chunk, out_of_place=out_of_place)
    return Plan("replay", 1, "the tensors after the first draw are large" if samples > 1 else "")


def _survey(sampled: Sampled, number: int, out_of_place: bool) -> Survey:
    device = sampled.device
    host = HostGeneratorWatch()
    marker = torch.zeros(number, device=device)
    survey = Survey(largest_allowed=largest_for(number, device))
    with Footprint(sampled.model) as footprint:
        with survey:
            vmapped(sampled.run, marker, out_of_place=out_of_place)
        if host.moved():
            raise CannotBatch("the forward draws from Python's or NumPy's generator")
        if footprint.changed():
            raise CannotBatch("the forward keeps something on its modules")
    return survey


def _without_vmap(sampled: Sampled, samples: int, found: StochasticModules, why: str) -> Plan:
    """Where vmap refuses: batches of repeated rows where that pays and is right, else replay."""
    survey = Survey()
    with survey, Footprint(sampled.model) as footprint:
        host = HostGeneratorWatch()
        sampled.run()
        plain = not footprint.changed() and not host.moved()
    chunk = min(samples, chunk_for(survey.largest, sampled.device))
    pays = samples > 1 and chunk > 1 and survey.prefix_work < survey.live_work
    if plain and pays and rows_independent(sampled, found):
        return Plan("repeat", chunk, f"rows independent; vmap: {why}")
    return Plan("replay", 1, why)


def rows_independent(sampled: Sampled, found: StochasticModules) -> bool:
    """Whether ``repeat`` is right for ``sampled``; see :func:`rows_are_independent`."""

    def steady(inputs: Any) -> Any:
        for module in found.flagged:
            module.training = False
        try:
            return sampled.on(inputs)
        finally:
            for module in found.flagged:
                module.training = True

    if found.functional or count_rows(sampled.inputs) == 0:
        return False
    return rows_are_independent(sampled.on, steady, sampled.inputs)


def _same_out_of_place(sampled: Sampled, in_place: list[nn.Module]) -> bool:
    """Whether nothing reads the input of an in-place dropout again."""
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
