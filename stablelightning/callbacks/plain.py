"""Predictions that are corrected in a Trainer which does not sample."""

import lightning as L

from stablelightning.callbacks.uncertainty import EstimateUncertainty


class EstimatePlainly(EstimateUncertainty):
    """What corrects predictions where the Trainer has no ``EstimateUncertainty``: one eval pass.

    A module of this package that samples by itself in ``predict_step`` is sampled as often as it
    would.

    Args:
        samples: 0 for one plain pass.
    """

    def __init__(self, samples: int = 0) -> None:
        super().__init__(max(samples, 1))
        self.samples = samples

    @property
    def or_plainly(self) -> bool:
        """Nobody asked for samples."""
        return True


def estimate_of(trainer: L.Trainer) -> EstimateUncertainty | None:
    """The Trainer's callback that estimates uncertainty, ``None`` if it has none.

    Example:
        >>> print(estimate_of(L.Trainer(accelerator="cpu", logger=False, barebones=True)))
        None
    """
    everything: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    found = [callback for callback in everything if isinstance(callback, EstimateUncertainty)]
    return found[0] if found else None


def plain_estimate(
    trainer: L.Trainer, pl_module: L.LightningModule, *, attach: bool = True
) -> EstimateUncertainty:
    """Make one that draws no samples of its own, and put it into the Trainer.

    Args:
        trainer: without an ``EstimateUncertainty``.
        pl_module: a module of this package says how many samples it draws by itself.
        attach: whether the Trainer gets it.
    """
    settings = getattr(pl_module, "_stable_settings", None)
    estimate = EstimatePlainly(getattr(settings, "samples", 0))
    if attach:
        everything: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [estimate, *everything]  # type: ignore[attr-defined]
    return estimate
