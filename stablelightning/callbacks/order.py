"""In which order callbacks of this package act, whatever the Trainer's list says."""

import lightning as L


def put_in_order(trainer: L.Trainer) -> None:
    """Sort the callbacks that have a ``rank`` among the places that they hold in the Trainer.

    All others stay where they are. Lightning calls a hook of every callback in the list's order,
    and at an optimizer's step that order decides: a guard must see gradients before they are
    measured, and these must be measured before they are clipped.

    The list is replaced, not changed: it may be the one that Lightning is walking through.

    Args:
        trainer: whose ``callbacks`` are put in order.

    Example:
        >>> class Late(L.Callback):
        ...     rank = 30
        >>> class Early(L.Callback):
        ...     rank = 10
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", barebones=True, callbacks=[Late(), L.Callback(), Early()]
        ... )
        >>> put_in_order(trainer)
        >>> [type(callback).__name__ for callback in trainer.callbacks[:3]]
        ['Early', 'Callback', 'Late']
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    places = [place for place, callback in enumerate(callbacks) if _rank(callback) is not None]
    ranked = sorted((callbacks[place] for place in places), key=lambda c: _rank(c) or 0)
    ordered = list(callbacks)
    for place, callback in zip(places, ranked, strict=True):
        ordered[place] = callback
    trainer.callbacks = ordered  # type: ignore[attr-defined]


def _rank(callback: L.Callback) -> int | None:
    return getattr(callback, "rank", None)
