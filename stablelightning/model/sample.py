"""Monte Carlo dropout: sample any model that has something random in it."""

import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.checks import check_whole
from stablelightning.errors import (
    DataError,
    EngineError,
    ModelError,
    NothingRandomError,
    RecipeError,
    StableLightningWarning,
)
from stablelightning.model.auto import check_repeat, check_vmap, study
from stablelightning.model.batched import CannotBatch
from stablelightning.model.collect import concatenate_chunks
from stablelightning.model.engines import STACK, Sampled, loop, repeat, replay, vmap
from stablelightning.model.generators import GeneratorState, GeneratorWatch, preserved_generators
from stablelightning.model.inputs import arguments_of
from stablelightning.model.mask_axes import row_axes, start_masks
from stablelightning.model.masks import Masks, check_masks
from stablelightning.model.members import members_of
from stablelightning.model.mixture import Reading, predict_members
from stablelightning.model.plan import Plan, plan_key, remember, remembered
from stablelightning.model.prediction import Prediction
from stablelightning.model.stochastic import sampling_mode, stochastic_modules
from stablelightning.model.summarize import Summary, infer_task, select_output

Engine = Literal["auto", "loop", "replay", "vmap", "repeat"]


@dataclass(frozen=True)
class _Settings:
    engine: Engine
    chunk_size: int | None
    call: Callable[..., Any] | None
    also: tuple[type, ...]
    masks: Masks


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
    masks: Masks = "independent",
) -> Any:
    """Run a model many times with its randomness on; the outputs gain a leading sample axis.

    Args:
        model: any ``nn.Module``; nothing is changed but by its own forward. No gradient flows.
        inputs: a tensor (``model(x)``), a tuple or list (``model(*x)``) or a dict (``model(**x)``).
        samples: number of samples T >= 1.
        seed: seeds torch's generators for this call and leaves them as they were; ``None`` draws
            from them and moves them on.
        engine: how the samples are computed; see the page on sampling. Never what they mean.
        chunk_size: most samples computed at once, >= 1; ``None`` lets the engine choose.
        call: what is called with the inputs instead of the model itself.
        also: further module classes to switch on, such as ``nn.RReLU``.
        masks: ``"independent"``: as the model draws them. ``"balanced"``: each unit is dropped
            equally often over the T samples, so that fewer of them give the same mean; each sample
            by itself is as ever. ``"consistent"``: sample t drops the same units for every row, of
            every batch where a ``seed`` is given. ``"balanced_consistent"``: both.

    Returns:
        The model's own output structure, each tensor ``(T, ...)``.

    Raises:
        RecipeError: ``samples`` or ``chunk_size`` below 1, an unknown engine or kind of masks.
        ModelError: the model draws in a way for which there are no such masks.
        NothingRandomError: no random number was drawn.
        EngineError: the engine that was asked for by name cannot run this model.

    Source:
        Gal, Ghahramani 2016, arXiv:1506.02142.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        >>> sample_predictions(net, torch.randn(5, 4), samples=20, seed=0).shape
        torch.Size([20, 5, 3])
    """
    settings = _settings(samples, engine, chunk_size=chunk_size, call=call, also=also)
    settings = _with_masks(settings, masks)
    kept: list[Any] = []
    with closing(_stream(model, inputs, samples, seed, settings)) as stream:
        for chunk, _ in stream:
            kept = [] if chunk is None else [*kept, chunk]
    return concatenate_chunks(kept)


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
    masks: Masks = "independent",
) -> Prediction:
    """Predict with Monte Carlo dropout: the mean of the samples, and what is not known about it.

    Args:
        model: any ``nn.Module`` with something random in it; nothing about it is changed. Of an
            ensemble, each member is sampled so, or run once where nothing in it is random.
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
        masks: which masks the samples get, as for :func:`sample_predictions`. The strata of
            ``"balanced"`` are over all ``samples``; the standard error remains that of independent
            masks, which is more than theirs.

    Returns:
        A :class:`Prediction`. Class scores may be logits or probabilities; the mean is always over
        probabilities.

    Raises:
        RecipeError: a setting is out of its range.
        ModelError: the model draws in a way for which there are no such masks.
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
    if (members := members_of(model)) is not None:
        draw = partial(
            mc_dropout, model, inputs, samples=samples, engine=engine, task=task,
            tolerance=tolerance, keep_samples=keep_samples, class_dim=class_dim, call=call,
            masks=masks,
        )  # fmt: skip
        reading = Reading(task, class_dim, keep_samples)
        return predict_members(members, inputs, draw, reading=reading, seed=seed, call=call)
    # With a tolerance, small chunks: each is a chance to stop.
    settings = _settings(
        samples, engine, chunk_size=None if tolerance is None else _FEWEST_TO_STOP, call=call
    )
    settings = _with_masks(settings, masks)
    summary: Summary | None = None
    kept: list[Any] = []
    name: str = engine
    with closing(_stream(model, inputs, samples, seed, settings)) as stream:
        for chunk, used in stream:
            name = used
            if chunk is None:
                summary, kept = None, []
                continue
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
    if samples > 1 and not prediction.standard_error.any():
        warn_once(
            model,
            f"{type(model).__name__} drew random numbers, and all {prediction.samples_used} "
            "samples are equal; its output may not depend on its dropout (an argmax, say).",
        )
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
                f"inputs must be free of NaN, got {int(leaf.isnan().sum())} (the first in row "
                f"{row}); drop or fill those rows."
            )


def _stream(
    model: nn.Module, inputs: Any, samples: int, seed: int | None, settings: _Settings
) -> Generator[tuple[Any, str]]:
    """Yield ``(chunk, engine)``; a chunk of ``None`` says: forget what came before."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model must be an nn.Module, got {getattr(model, '__name__', type(model).__name__)}; "
            "pass the module, and call= the function to sample."
        )
    # Out of the caller's inference mode: a cache that the model builds must stay trainable.
    with torch.inference_mode(False), torch.no_grad():
        sampled = Sampled(model, settings.call or model, arguments_of(inputs))
        if any(isinstance(x, Tensor) and x.ndim and len(x) == 0 for x in sampled.leaves):
            raise DataError("inputs must have at least one row, got none; skip empty batches.")
        sampled.found = stochastic_modules(model, sampled.run, also=settings.also)
        seeded = nullcontext() if seed is None else preserved_generators(seed)
        with seeded, sampling_mode(sampled.found):
            start_masks(sampled, settings.masks, samples, seed)
            watch = GeneratorWatch()
            checked = False
            for chunk, name in _run_engine(sampled, samples, settings):
                if not checked and chunk is not None:
                    checked = True
                    drew = watch.moved() or (sampled.masks is not None and sampled.masks.answered)
                    if not drew and not _differs(chunk):
                        raise _nothing_random(model)
                    if sampled.masks is not None:
                        sampled.masks.check()
                yield chunk, name


def _run_engine(sampled: Sampled, samples: int, settings: _Settings) -> Iterator[tuple[Any, str]]:
    name, limit = settings.engine, settings.chunk_size
    if name == "loop":
        yield from ((chunk, name) for chunk in loop(sampled, samples))
    elif name == "replay":
        yield from _replayed(sampled, samples, Plan("replay", 1))
    elif name == "auto":
        yield from _planned(sampled, samples, limit)
    else:
        yield from _by_name(sampled, samples, settings)


def _planned(sampled: Sampled, samples: int, limit: int | None) -> Iterator[tuple[Any, str]]:
    key = plan_key(sampled, samples, limit)
    plan = remembered(sampled.model, key)
    if plan is None:
        # How masks are dealt does not change what a pass costs.
        unmasked = replace(sampled, masks=None)
        plan = remember(sampled.model, key, study(unmasked, samples, limit=limit))
    if plan.engine == "replay":
        yield from _replayed(sampled, samples, plan)
        return
    start = GeneratorState()
    try:
        yield from _batched(sampled, samples, plan.limited(limit))
    except CannotBatch as refusal:
        start.restore()
        if sampled.masks is not None:
            sampled.masks.restart()
        plan = remember(sampled.model, key, Plan("replay", 1, str(refusal)))
        yield None, plan.describe()
        yield from _replayed(sampled, samples, plan)


def _batched(sampled: Sampled, samples: int, plan: Plan) -> Iterator[tuple[Any, str]]:
    if plan.engine == "repeat" and sampled.masks is not None:
        sampled.masks.axes = row_axes(sampled)
    chunks = (
        repeat(sampled, samples, chunk=plan.chunk, cheap=plan.cheap)
        if plan.engine == "repeat"
        else vmap(sampled, samples, chunk=plan.chunk, out_of_place=plan.out_of_place)
    )
    name = plan.describe()
    yield from ((chunk, name) for chunk in chunks)


def _replayed(sampled: Sampled, samples: int, plan: Plan) -> Iterator[tuple[Any, str]]:
    name = plan.describe()

    def gave_up(reason: str) -> None:
        nonlocal name
        name = f"loop ({reason})"
        if not plan.reason:
            warn_once(sampled.model, f"replay fell back to the plain loop: {reason}.")

    for chunk in replay(sampled, samples, gave_up=gave_up):
        yield chunk, name


def _by_name(sampled: Sampled, samples: int, settings: _Settings) -> Iterator[tuple[Any, str]]:
    chunk = min(samples, settings.chunk_size or STACK)
    key = settings.engine, plan_key(sampled, samples, chunk)
    try:
        plan = remembered(sampled.model, key)
        if plan is None:
            check = check_repeat if settings.engine == "repeat" else check_vmap
            plan = remember(sampled.model, key, check(replace(sampled, masks=None), chunk))
        yield from _batched(sampled, samples, plan)
    except CannotBatch as refusal:
        raise EngineError(
            f"{settings.engine} must be able to batch {type(sampled.model).__name__}, and cannot "
            f"({refusal}); use engine='auto', which finds another way."
        ) from refusal


_WARNED: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def warn_once(model: nn.Module, message: str) -> None:
    """Warn, once per model and message."""
    said = _WARNED.setdefault(model, set())
    if message not in said:
        said.add(message)
        warnings.warn(message, StableLightningWarning, stacklevel=2)


def _settings(
    samples: int,
    engine: Engine,
    *,
    chunk_size: int | None,
    call: Callable[..., Any] | None,
    also: tuple[type, ...] = (),
) -> _Settings:
    check_whole("samples", samples, least=1)
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, least=1)
    if engine not in get_args(Engine):
        raise RecipeError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}.")
    return _Settings(engine, chunk_size, call, also, "independent")


def _with_masks(settings: _Settings, masks: Masks) -> _Settings:
    check_masks(masks)
    return replace(settings, masks=masks)


def _differs(chunk: Any) -> bool:
    """Whether samples differ though no global generator moved: the model has one of its own."""
    return any(
        isinstance(x, Tensor) and not torch.equal(x, x[:1].expand_as(x)) for x in tree_leaves(chunk)
    )


def _nothing_random(model: nn.Module) -> NothingRandomError:
    return NothingRandomError(
        f"sampling needs something random, and one pass of {type(model).__name__} with its "
        "dropout (Dropout, attention and recurrent dropout, DropPath, F.dropout with "
        "training=self.training) switched on drew no random number; sl.add_dropout(model, p=0.1) "
        "adds dropout before the head."
    )
