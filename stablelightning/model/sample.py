"""Monte Carlo dropout: sample any model that has something random in it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.errors import DataError, NothingRandomError, RecipeError
from stablelightning.model.collect import concatenate_chunks
from stablelightning.model.engines import loop
from stablelightning.model.generators import GeneratorWatch, preserved_generators
from stablelightning.model.prediction import Prediction
from stablelightning.model.stochastic import sampling_mode, stochastic_modules
from stablelightning.model.summarize import Summary, infer_task, select_output

Engine = Literal["auto", "loop", "replay", "vmap", "repeat"]


def sample_predictions(
    model: nn.Module,
    inputs: Any,
    *,
    samples: int,
    seed: int | None = None,
    engine: Engine = "auto",
    chunk_size: int | None = None,
    call: Callable[..., Any] | None = None,
    also: tuple[type, ...] = (),
) -> Any:
    """Run ``model`` ``samples`` times with its randomness on; the outputs gain a leading sample axis.

    Args:
        model: any ``nn.Module``; flags, buffers and hooks are left as they were. No gradient flows.
        inputs: a tensor (``model(x)``), a tuple or list (``model(*x)``) or a dict (``model(**x)``).
        samples: number of samples T >= 1.
        seed: seeds torch's generators for this call and leaves them as they were; ``None`` draws
            from them and moves them on.
        engine: how the samples are computed; see the page on sampling. Never what they mean.
        chunk_size: most samples computed at once, >= 1; ``None`` lets the engine choose.
        call: what is called with the inputs instead of the model itself.
        also: further module classes to switch on, such as ``nn.RReLU``.

    Returns:
        The model's own output structure, each tensor ``(T, ...)``.

    Raises:
        RecipeError: ``samples`` or ``chunk_size`` below 1, or an unknown engine.
        NothingRandomError: no random number was drawn.
        EngineError: the engine that was asked for by name cannot run this model.

    Source:
        Gal, Ghahramani 2016, arXiv:1506.02142.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        >>> sample_predictions(net, torch.randn(5, 4), samples=20, seed=0).shape
        torch.Size([20, 5, 3])
    """
    with closing(_stream(model, inputs, samples, seed, engine, chunk_size, call, also)) as stream:
        return concatenate_chunks([chunk for chunk, _ in stream])


def mc_dropout(
    model: nn.Module,
    inputs: Any,
    *,
    samples: int = 50,
    seed: int | None = None,
    engine: Engine = "auto",
    task: str = "auto",
    tolerance: float | None = None,
    keep_samples: bool = False,
    class_dim: int = 1,
    call: Callable[..., Any] | None = None,
) -> Prediction:
    """Predict with Monte Carlo dropout: the mean of the samples, and what is not known about it.

    Args:
        model: any ``nn.Module`` with something random in it; nothing about it is changed.
        inputs: a tensor (``model(x)``), a tuple or list (``model(*x)``) or a dict (``model(**x)``).
        samples: number of samples T >= 1; the most that are drawn if ``tolerance`` is given.
        seed: seeds torch's generators for this call and leaves them as they were.
        engine: how the samples are computed; see the page on sampling.
        task: ``"classification"``, ``"multilabel"``, ``"regression"``, or ``"auto"``: the model's
            own ``task``, else what the output looks like (see :func:`infer_task`).
        tolerance: stop once the standard error of every row's mean is below it (probability, or
            target units); > 0.
        keep_samples: keep the samples themselves in ``Prediction.samples``.
        class_dim: where the classes are, 1 as in ``F.cross_entropy``; -1 for ``(N, L, C)`` tokens.
        call: what is called with the inputs instead of the model itself.

    Returns:
        A :class:`Prediction`. Class scores may be logits or probabilities; the mean is always over
        probabilities.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: the inputs contain NaN, and so does the prediction.
        NothingRandomError: no random number was drawn.

    Source:
        Gal, Ghahramani 2016, arXiv:1506.02142; Kendall, Gal 2017, arXiv:1703.04977 (the law of
        total variance for a head that predicts its own noise).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        >>> prediction = mc_dropout(net, torch.randn(5, 4), samples=20, seed=0)
        >>> bool((prediction.total >= prediction.aleatoric).all())
        True
    """
    if tolerance is not None and not tolerance > 0:
        raise RecipeError(
            f"tolerance must be > 0, got {tolerance}; leave it out to draw every sample."
        )
    summary: Summary | None = None
    kept: list[Any] = []
    with closing(_stream(model, inputs, samples, seed, engine, None, call, ())) as stream:
        for chunk, name in stream:
            output = select_output(chunk)
            if summary is None:
                first = tree_map(lambda x: x[0], output)
                summary = Summary(infer_task(task, model, first), class_dim=class_dim)
            summary.update_(output)
            if keep_samples:
                kept.append(chunk)
            if tolerance is not None and _settled(summary, tolerance):
                break
    assert summary is not None
    kept_samples = concatenate_chunks(kept) if kept else None
    prediction = summary.prediction(engine=name, samples=kept_samples)
    if prediction.mean.isnan().any():
        _refuse_nan(inputs)
    return prediction


#: Fewer samples than this say too little about their own spread to stop on.
_FEWEST_TO_STOP = 8


def _settled(summary: Summary, tolerance: float) -> bool:
    enough = summary.centre.count >= _FEWEST_TO_STOP
    return enough and bool((summary.standard_error() < tolerance).all())


def _refuse_nan(inputs: Any) -> None:
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.isnan().any():
            row = int(leaf.isnan().flatten(1 if leaf.ndim > 1 else 0).nonzero()[0, 0])
            raise DataError(
                f"inputs must be free of NaN, got {int(leaf.isnan().sum())} (the first in row {row}); "
                "drop or fill those rows."
            )


def _stream(
    model: nn.Module,
    inputs: Any,
    samples: int,
    seed: int | None,
    engine: Engine,
    chunk_size: int | None,
    call: Callable[..., Any] | None,
    also: tuple[type, ...],
) -> Iterator[tuple[Any, str]]:
    _check("samples", samples)
    if chunk_size is not None:
        _check("chunk_size", chunk_size)
    if engine not in get_args(Engine):
        raise RecipeError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}.")
    with ExitStack() as stack:
        # Out of the caller's inference mode: a cache that the model builds must stay usable in training.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        args, kwargs = _arguments(inputs)
        function = call or model

        def run() -> Any:
            return function(*args, **kwargs)

        found = stochastic_modules(model, run, also=also)
        if seed is not None:
            stack.enter_context(preserved_generators(seed))
        stack.enter_context(sampling_mode(model, found))
        watch = GeneratorWatch()
        for number, chunk in enumerate(loop(run, samples)):
            if number == 0 and not watch.moved():
                raise _nothing_random(model)
            yield chunk, "loop"


def _check(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(f"{name} must be a whole number >= 1, got {value!r}.")


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs = tree_map(
        lambda x: x.clone() if isinstance(x, Tensor) and x.is_inference() else x, inputs
    )
    if isinstance(inputs, dict):
        return (), inputs
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def _nothing_random(model: nn.Module) -> NothingRandomError:
    return NothingRandomError(
        f"sampling needs something random, and one pass of {type(model).__name__} with its dropout "
        "(Dropout, attention and recurrent dropout, DropPath, F.dropout with training=self.training) "
        "switched on drew no random number; sl.add_dropout(model, p=0.1) adds dropout before the head."
    )
