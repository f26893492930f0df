"""The doctor over the zoo: sick models, healthy ones, mutants. The rest is in the benchmark."""

import warnings

import pytest
import torch

from stablelightning.model.diagnose import diagnose
from tests.model.zoo.healthy import HAND_MADE, HEALTHY, PUBLISHED
from tests.model.zoo.mutants import KINDS, mutant
from tests.model.zoo.patients import Case, is_right, made
from tests.model.zoo.sick import SICK

#: Published models that are small enough for the suite.
SMALL = [c for c in PUBLISHED if "/test_" in c.name or c.name.endswith(("lcnet_035", "mnasnet0_5"))]


def findings(case: Case) -> list:
    patient = made(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagnosis = diagnose(
            patient.model, patient.batch, patient.loss, optimizer=patient.optimizer
        )
    return diagnosis.findings


@pytest.mark.parametrize("case", SICK, ids=str)
def test_the_fault_is_among_the_first_two_findings(case: Case):
    found = findings(case)
    assert any(is_right(case, f) for f in found[:2]), (
        f"{case}: expected one of {case.codes} at {case.modules or 'any module'}, found\n"
        + "\n".join(str(f) for f in found[:5])
    )


@pytest.mark.parametrize("case", [*HAND_MADE, *SMALL], ids=str)
def test_no_error_on_a_healthy_model(case: Case):
    found = [f for f in findings(case) if f.severity == "error"]
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_of_every_kind_are_found(kind):
    """Two of each: the benchmark has hundreds, and a bound."""
    first = list(KINDS).index(kind)
    mutants = [mutant(seed) for seed in (first, first + len(KINDS))]
    found = {m.name: findings(m) for m in mutants}
    right = [any(is_right(m, f) for f in found[m.name][:2]) for m in mutants]
    assert any(right), "\n".join(
        f"{m} ({m.strength}): {[(f.code, f.module) for f in found[m.name][:4]]}" for m in mutants
    )


@pytest.mark.parametrize("case", [*SICK[::6], *HAND_MADE[::6]], ids=str)
def test_a_diagnosis_leaves_no_trace(case: Case):
    patient = made(case)
    model = patient.model
    flags = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.get_rng_state()
    diagnose(model, patient.batch, patient.loss, optimizer=patient.optimizer)
    assert [m.training for m in model.modules()] == flags
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), state[name].nan_to_num(7.0)), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("case", SICK, ids=str)
def test_cures_cure_and_do_no_harm(case: Case):
    patient = made(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = diagnose(patient.model, patient.batch, patient.loss, optimizer=patient.optimizer)
        after = before.apply()
    curable = {f.code for f in before.findings if f.cure and is_right(case, f)}
    left = [f for f in after.findings if f.code in curable and is_right(case, f)]
    assert not left, "\n".join(str(f) for f in left)
    assert len(errors(after)) <= len(errors(before)), "\n".join(map(str, errors(after)))


def errors(diagnosis) -> list:
    return [f for f in diagnosis.findings if f.severity == "error"]


def test_the_zoo_is_as_large_as_promised():
    assert len(SICK) >= 25
    assert len(HEALTHY) >= 50
    assert len({c.name for c in [*SICK, *HEALTHY]}) == len(SICK) + len(HEALTHY)


def test_a_mutant_is_the_same_each_time():
    one, other = mutant(17).build().model.state_dict(), mutant(17).build().model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
