"""What messages are made of: why something failed, and a few of many names."""

from collections.abc import Sequence


def reason_of(error: BaseException) -> str:
    r"""The first line of what an error says, or its kind where it says nothing.

    Example:
        >>> reason_of(ValueError("no such file\nlook elsewhere")), reason_of(KeyError())
        ('no such file', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def some(names: Sequence[str], most: int = 4) -> str:
    """The first of many names, and how many more there are.

    Args:
        names: to be told.
        most: so many are named at most.

    Example:
        >>> some(["a", "b", "c", "d"], 3), some(["a", "b"], 3)
        ('a, b, c and 1 more', 'a, b')
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
