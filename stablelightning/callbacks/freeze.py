"""Plans of fine-tuning: which groups of a model are open, and when."""

from stablelightning.callbacks.freeze_base import Freezing, Position
from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError
from stablelightning.functional.freeze import gradually_open


class UnfreezeGradually(Freezing):
    """Train the head alone, then open one depth group after the other, from output to input.

    Args:
        every_n_epochs: epochs between two openings, >= 1; ``None`` is 1 unless steps are given.
        every_n_steps: optimizer steps between two openings instead, >= 1.
        groups: names of modules, or lists of them, from input to output, in the place of groups
            that are found (:func:`~stablelightning.model.depth.depth_groups`).
        layer_decay: factor on the rate for each group that is further from the output, in (0, 1].
        rates: learning rates of the first group and of the head; between them by equal factors.
        exclude: dotted names of modules and parameters that are left as they are; ``None`` for
            none.

    Raises:
        RecipeError: a setting is out of its range; both ways to count are given.

    Source:
        Howard, Ruder 2018, arXiv:1801.06146, section 3.3.

    Example:
        >>> UnfreezeGradually(every_n_epochs=2, layer_decay=0.5).every_n_epochs
        2
    """

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        groups: list[str | list[str]] | None = None,
        layer_decay: float | None = None,
        rates: tuple[float, float] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(groups=groups, layer_decay=layer_decay, rates=rates, exclude=exclude)
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None:
                check_whole(name, value, least=1)
        if every_n_epochs is not None and every_n_steps is not None:
            raise RecipeError(
                "groups are opened by epochs or by steps, got every_n_epochs="
                f"{every_n_epochs} and every_n_steps={every_n_steps}; remove one of them."
            )
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps

    def open_groups(self, position: Position) -> int:
        """One more after each stretch."""
        if self.every_n_steps is not None:
            done, every = position.step, self.every_n_steps
        else:
            done, every = position.epoch, self.every_n_epochs or 1
        return gradually_open(done, every=every, groups=position.groups)
