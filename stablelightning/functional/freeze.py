"""How many groups of a network are open at a place of the training; the head is the first."""

from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError


def gradually_open(done: int, *, every: int, groups: int) -> int:
    r"""One group more after each ``every`` epochs or steps, until all are open.

    :math:`\min(1 + \lfloor t / T \rfloor, G)`.

    Args:
        done: epochs or steps :math:`t` that have been trained, >= 0.
        every: epochs or steps :math:`T` between two openings, >= 1.
        groups: how many there are :math:`G`, >= 1.

    Returns:
        How many groups are open, counted from the output, 1 to ``groups``.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        Howard, Ruder 2018, arXiv:1801.06146, section 3.3.

    Example:
        >>> [gradually_open(epoch, every=2, groups=3) for epoch in range(7)]
        [1, 1, 2, 2, 3, 3, 3]
    """
    check_whole("done", done, least=0)
    check_whole("every", every, least=1)
    check_whole("groups", groups, least=1)
    return min(1 + done // every, groups)


def open_after_probe(is_probed: bool, *, groups: int) -> int:
    """The head alone while it is a probe of the features, then everything.

    A head that is drawn at random sends gradients that spoil good features; once it fits them,
    they are moved less.

    Args:
        is_probed: whether the probe has been trained.
        groups: how many there are, >= 1.

    Returns:
        1, or ``groups``.

    Raises:
        RecipeError: there are no groups.

    Source:
        Kumar, Raghunathan, Jones, Ma, Liang 2022, arXiv:2202.10054.

    Example:
        >>> open_after_probe(False, groups=5), open_after_probe(True, groups=5)
        (1, 5)
    """
    check_whole("groups", groups, least=1)
    return groups if is_probed else 1


def check_open(count: int, *, groups: int, name: str = "count") -> None:
    """Refuse more open groups than there are.

    Args:
        count: how many are wanted.
        groups: how many there are.
        name: of the setting, for the message.

    Raises:
        RecipeError: ``count`` is not between 1 and ``groups``.

    Example:
        >>> check_open(9, groups=5)
        Traceback (most recent call last):
        ...
        stablelightning.errors.RecipeError: count must be at most 5, the number of depth groups of \
this model, got 9; open fewer.
    """
    check_whole(name, count, least=1)
    if count > groups:
        raise RecipeError(
            f"{name} must be at most {groups}, the number of depth groups of this model, got "
            f"{count}; open fewer."
        )
