"""Initialize a whole model: each layer for what consumes its output, and only what is fresh."""

import difflib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.attribution import attribute
from stablelightning.model.defaults import Verdict, default_parameters
from stablelightning.model.initialization import InitializationReport
from stablelightning.model.inputs import leading_inputs
from stablelightning.model.materialize import make_lazy_ones, materialize
from stablelightning.model.residual_scaling import begin_residual
from stablelightning.model.schemes import Scheme, scheme_named
from stablelightning.model.unit_variance import scale_by_data
from stablelightning.model.write import Writer

#: Why a parameter was not written that nobody asked for.
_KEPT = "it is kept"


def initialize(
    model: nn.Module,
    example_batch: Any,
    *,
    scheme: str | Scheme = "auto",
    overwrite: bool | Sequence[str] = False,
) -> InitializationReport:
    """Draw the weights of a model so that signals and gradients keep their size at the start.

    One forward pass on the example, in eval, shows what consumes each layer. With ``"auto"``:

    - He normal with the exact gain before ReLU-like functions (also a user's own), LeCun normal
      before self-normalizing ones (SELU), Glorot uniform before bounded ones (tanh, sigmoid),
      softmax and for linear outputs; biases zero.
    - The last norm of a residual branch gets gamma zero; a branch without norm is scaled by depth
      (Fixup), one that begins with a norm by ``1 / sqrt(branches)``.
    - LSTM and GRU: recurrent weights orthogonal, input weights Glorot, forget bias 1 in total.
      Attention: queries, keys and values each Glorot. Embeddings: variance 1, or rows of norm 1
      where a normalised stream begins.
    - Plain stacks of more than 20 weights, which no gain can save: orthogonal, mirrored where the
      function is not odd.

    **Only parameters that look as torch's constructors left them are written**; what was loaded,
    trained, set by hand, frozen, shared or made by a parametrization is left and reported, see
    :func:`~stablelightning.model.defaults.default_parameters`. Numbers are drawn from torch's
    default generator in order of execution, so that ``torch.manual_seed`` repeats them.

    Args:
        model: any eager module. Lazy modules are materialized by the example; what is on the meta
            device gets memory where the example is. Training flags and buffers stay as they were.
        example_batch: what the forward takes: a tensor, a tuple or list of arguments, a dict of
            keywords. A batch with targets behind the inputs does as well. A few dozen rows are
            plenty; standardised like those of the training.
        scheme: ``"auto"``, or ``"he"``, ``"glorot"``, ``"lecun"``, ``"orthogonal"`` for every
            linear layer and convolution; ``"mirrored"`` for plain stacks of any depth; ``"lsuv"``:
            orthogonal, then each layer scaled on the example; ``"fixup"``: as ``"auto"`` without
            the deep stacks; ``"branches"``: with these at unit size, for layers that become
            residual branches. A :class:`~stablelightning.model.schemes.Scheme` of your own.
        overwrite: write also what is not fresh: everything (``True``), or the named layers and
            what is inside the named modules.

    Returns:
        One row for each layer: consumer, distribution, gain, std before and after, and why.

    Raises:
        RecipeError: there is no such scheme, or no module of a name in ``overwrite``.
        DataError: the example does not fit the forward, or lies on another device.
        ModelError: the model has no parameters, or is scripted.

    Source:
        See :mod:`stablelightning.functional.initialize` and
        :mod:`stablelightning.functional.orthogonal` for each rule.

    Example:
        >>> import stablelightning as sl
        >>> net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 2))
        >>> report = sl.initialize(net, torch.randn(8, 16))
        >>> report["0"].distribution, round(report["0"].gain, 4), report["2"].distribution
        ('He normal', 1.5335, 'Glorot uniform')
        >>> bool(net[0].bias.any())
        False
    """
    return initialize_called(
        model,
        leading_inputs(model, example_batch),
        scheme=scheme_named(scheme),
        overwrite=overwrite,
    )


def initialize_called(
    model: nn.Module,
    inputs: Any,
    *,
    scheme: Scheme,
    overwrite: bool | Sequence[str] = False,
    call: Callable[..., Any] | None = None,
    only: Collection[str] | None = None,
) -> InitializationReport:
    """Do the same for a model that is called in another way than by its forward.

    Args:
        model: see :func:`initialize`.
        inputs: what is called takes.
        scheme: how.
        overwrite: see :func:`initialize`.
        call: what is called; the model itself if not given.
        only: names of the parameters that are written, whatever they hold, and no others;
            ``overwrite`` is not asked then.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"initialize needs an nn.Module, got {type(model).__name__}; pass the network itself."
        )
    model = getattr(model, "_orig_mod", model)  # a compiled module shares the weights of its own
    if not any(True for _ in model.parameters()):
        raise ModelError(
            f"initialize needs a model with parameters, and {type(model).__name__} has none; "
            "pass the network itself."
        )
    forced = _forced(model, overwrite)
    notes = materialize(model, inputs)
    make_lazy_ones(model, inputs, call=call)
    attribution = attribute(model, inputs, call=call)
    with torch.inference_mode(False), torch.no_grad():
        verdicts = default_parameters(model)
        verdicts.update({n: Verdict(True) for n in verdicts if forced(n)})
        if only is not None:
            verdicts = {n: Verdict(n in only, "" if n in only else _KEPT) for n in verdicts}
        writer = Writer(model, attribution, scheme, verdicts=verdicts)
        rows = writer.write()
        if scheme.residual:
            rows = begin_residual(model, attribution, rows, verdicts=verdicts)
        if scheme.by_data:
            rows = scale_by_data(model, attribution, rows, inputs=inputs, call=call)
    return InitializationReport(scheme.name, rows, [*notes, *attribution.notes])


def _forced(model: nn.Module, overwrite: bool | Sequence[str]) -> Any:
    """Whether a parameter is to be written whatever it holds."""
    if isinstance(overwrite, bool):
        return lambda name: overwrite
    wanted = [overwrite] if isinstance(overwrite, str) else list(overwrite)
    known = dict(model.named_modules())
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "True overwrites everything."
            raise RecipeError(
                f"overwrite must name modules of the model, and {name!r} is none; {hint}"
            )

    def forced(name: str) -> bool:
        return any(not w or name.startswith(f"{w}.") for w in wanted)

    return forced
