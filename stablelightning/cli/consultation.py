"""One consultation: a recipe's model, data and optimizer, looked at without training."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from stablelightning.callbacks.activation import SelectActivation
from stablelightning.callbacks.first_batches import first_batches, joined
from stablelightning.callbacks.initialize import InitializeWeights
from stablelightning.cli.doctor import Consultation
from stablelightning.cli.quiet import quiet
from stablelightning.cli.sections import Patient, doctor_sections
from stablelightning.cli.session import RunCLI
from stablelightning.model.diagnose import diagnose
from stablelightning.model.generators import undisturbed_generators
from stablelightning.optimization import examined
from stablelightning.optional import require
from stablelightning.report.diagnosis import print_diagnosis
from stablelightning.report.page import write_diagnosis
from stablelightning.report.section import print_section
from stablelightning.words import reason_of

#: One process, and no record as if of a run.
_HERE = (
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--trainer.logger=false",
)

#: What is needed for the page, and so looked for before anything heavy.
_NEEDED = ("matplotlib", "jinja2", "rich")


def consult(wanted: Consultation) -> int:
    """Build, diagnose, cure if that is asked for, tell, and write the page.

    Returns:
        1 where an error is left, else 0.

    Raises:
        StableLightningError: something must be mended first; no folder is left.
    """
    quiet()
    for name in _NEEDED:
        require(name, extra="recipes")
    plan = replace(wanted.plan, overrides=(*wanted.plan.overrides, *_HERE))
    cli = RunCLI(plan)
    cli.check_data()
    trainer, model = cli.trainer, cli.model
    notes = _prepare(cli)
    batch = joined(first_batches(trainer, model, wanted.batches))
    optimizer, schedulers, trouble = _optimizer(model)
    diagnosis = diagnose(model, batch, optimizer=optimizer)
    if wanted.apply and diagnosis.findings:
        diagnosis = diagnosis.apply()
    patient = Patient(trainer, model, batch, optimizer, schedulers, diagnosis)
    sections, left_out = doctor_sections(patient)
    diagnosis.notes += [*notes, *trouble, *left_out]
    title = f"The doctor on {plan.recipe.stem}"
    if plan.overlays:
        title += f" with {', '.join(path.stem for path in plan.overlays)}"
    written = write_diagnosis(diagnosis, plan.folder, title=title, sections=sections)
    print_diagnosis(diagnosis, title=title)
    for section in sections:
        print()
        print_section(section)
    print(f"\nThe page: {written[0]}", flush=True)
    return int(diagnosis.worst == "error")


def _prepare(cli: RunCLI) -> list[str]:
    """Bring the model to where training would begin, but for what would have to train for it.

    Returns:
        What was left out, in words.
    """
    trainer, model = cli.trainer, cli.model
    # What Trainer.fit does before it calls the first hook.
    trainer.state.fn = TrainerFn.FITTING
    trainer.strategy.connect(model)
    trainer._data_connector.attach_data(model, datamodule=cli.datamodule)
    acting: list[L.Callback] = []
    notes = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, InitializeWeights):
            acting.append(callback)
        elif isinstance(callback, SelectActivation):
            if len(callback.candidates or ()) == 1:  # swapped in, and nothing is measured
                acting.append(callback)
            else:
                notes.append("SelectActivation has made no choice: its candidates race in a run")
    for callback in acting:
        callback.setup(trainer, model, "fit")
    model.setup("fit")
    model.configure_model()
    for callback in acting:
        callback.teardown(trainer, model, "fit")
    return notes


def _optimizer(model: L.LightningModule) -> tuple[Optimizer | None, Sequence[Any], list[str]]:
    """The optimizer and the schedules that training would use, and why there are none."""
    try:
        with undisturbed_generators(), examined():
            optimizers, schedulers = _init_optimizers_and_lr_schedulers(model)
    except Exception as error:
        reason = reason_of(error)
        return None, [], [f"the optimizer could not be made without a run ({reason})"]
    first = next((o for o in optimizers if isinstance(o, Optimizer)), None)
    return first, schedulers, []
