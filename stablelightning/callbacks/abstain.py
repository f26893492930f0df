"""Answering where it is sure enough, decided by thresholds that the validation data has chosen."""

from typing import ClassVar

from stablelightning.calibration.abstain import Abstention
from stablelightning.callbacks.fitted import FittedAfterTraining
from stablelightning.functional.abstain import FEWEST_ROWS
from stablelightning.model.abstain import UNFAMILIAR, Thresholds, check_choice
from stablelightning.model.prediction import Task


class AbstainWhenUnsure(FittedAfterTraining):
    """Say of every row of a test or a prediction whether it is answered, and why not.

    When training is over, thresholds are chosen on validation rows of their own: as many rows are
    answered as a wanted ``risk`` allows, or as ``coverage`` asks for. They are kept in the
    checkpoint. Each :class:`~stablelightning.Prediction` then has ``answered`` and ``reasons``
    (aleatoric, epistemic, or out of distribution, by the rule of
    :class:`~stablelightning.model.abstain.Thresholds`), and the rows of a test have them as
    columns. It comes after what calibrates, on whose uncertainties it decides.

    Args:
        risk: the most that answered rows may cost on average: share of wrong answers; of a
            regression, root of the mean squared error in target units. > 0.
        coverage: share of rows to answer where no risk is asked for, in (0, 1].
        confidence: promise the risk for later rows, with this probability over the draw of the
            validation rows; in (0, 1), for classes. Fewer rows are answered for it.
        unfamiliar: share of the validation rows whose epistemic part is taken for unheard of, in
            [0, 1): later rows with more of it are out of distribution.
        seed: >= 0, of how validation rows are dealt out among the callbacks that are fitted to
            them; the first of them decides.
        required: whether it is an error that there are too few validation rows, or that other
            weights have chosen; ``False`` says so in a warning, and decides nothing.

    Attributes:
        thresholds: what was chosen, with the coverage and the risk that it had; ``None`` before,
            and where no threshold reaches the risk: a warning says the best that can be had, and
            nothing is decided.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: there are too few validation rows.

    Source:
        Geifman, El-Yaniv 2017, arXiv:1705.08500.

    Example:
        >>> AbstainWhenUnsure(risk=0.02, confidence=0.95).thresholds is None
        True
    """

    rank: ClassVar[int] = 60

    def __init__(
        self,
        risk: float | None = None,
        *,
        coverage: float = 0.9,
        confidence: float | None = None,
        unfamiliar: float = UNFAMILIAR,
        seed: int = 0,
        required: bool = True,
    ) -> None:
        check_choice(None, coverage, None, unfamiliar)
        if risk is not None or confidence is not None:
            check_choice(risk, None, confidence, unfamiliar)
        super().__init__(seed=seed, required=required)
        self.risk = risk
        self.coverage = coverage
        self.confidence = confidence
        self.unfamiliar = unfamiliar

    @property
    def thresholds(self) -> Thresholds | None:
        """What was chosen on the validation data."""
        return self.calibrator.thresholds if isinstance(self.calibrator, Abstention) else None

    @property
    def least_rows(self) -> int:
        """The fewest rows of which a risk or a share can be told."""
        return FEWEST_ROWS

    def make_calibrator(self, task: Task) -> Abstention:
        """Thresholds that are still to be chosen; there are some for every task."""
        return Abstention(
            risk=self.risk,
            coverage=None if self.risk is not None else self.coverage,
            confidence=self.confidence,
            unfamiliar=self.unfamiliar,
        )
