"""Export a model for use elsewhere, checked against the model itself, with dropout live or not."""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.checks import check_whole
from stablelightning.errors import (
    ModelError,
    NothingRandomError,
    RecipeError,
    StableLightningError,
)
from stablelightning.files import written_whole
from stablelightning.model.export_check import Run, check_distribution, check_outputs
from stablelightning.model.export_dropout import DRAWN_DROPOUT
from stablelightning.model.footprint import Footprint
from stablelightning.model.generators import undisturbed_generators
from stablelightning.model.inputs import arguments_of, leading_inputs, tensors_in
from stablelightning.model.latency import with_rows
from stablelightning.model.modules import modules_of
from stablelightning.model.rows import count_rows
from stablelightning.model.stochastic import StochasticModules, sampling_mode, stochastic_modules
from stablelightning.optional import require
from stablelightning.words import reason_of

#: The same operations of torch, and those of another library.
_TOLERANCE, _TOLERANCE_ONNX = 1e-5, 1e-4
#: A batch of one row would be taken for a constant.
_FEWEST_ROWS = 2


@dataclass(frozen=True)
class Exported:
    """A checked export.

    Args:
        path: the file.
        megabytes: its size.
        mc: whether dropout is live in it.
        difference: largest difference from the model's outputs over the largest of these, over
            batches of three sizes; ``None`` with dropout live, or where nothing could run it.
        means_apart: with dropout live, of the means of its samples from the model's, in standard
            errors.
        spread_ratio: with dropout live, of the standard deviations.
        notes: what was not checked.
    """

    path: str
    megabytes: float
    mc: bool
    difference: float | None = None
    means_apart: float | None = None
    spread_ratio: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self) | {"notes": list(self.notes)}

    def __str__(self) -> str:
        said = f"{Path(self.path).name}: {self.megabytes:.2f} MB"
        if self.difference is not None:
            said += f", outputs equal to {self.difference:.1e}"
        if self.spread_ratio is not None:
            said += f", dropout live, spread {self.spread_ratio:.2f} times the model's"
        return "; ".join([said, *self.notes])


def export_model(
    model: nn.Module,
    example_batch: Any,
    path: str | os.PathLike[str],
    *,
    mc: bool = False,
    dynamic_batch: bool = True,
    samples: int = 64,
) -> Exported:
    """Write a model as a ``.pt2`` program that needs none of its Python, and check the file.

    The program is loaded again and held against the model on three batch sizes; a file that fails
    is not left. Run it with ``torch.export.load(path).module()(x)``.

    With ``mc`` every dropout that :func:`stablelightning.mc_dropout` would sample is live in the
    program, and norms are in eval: each call draws new masks. Mean and spread of ``samples`` calls
    are then held against those of the model.

    Args:
        model: any eager module; left as it is. What is exported is its eval.
        example_batch: what the forward takes, see :func:`stablelightning.fold_batch_norm`.
        path: of the file, with the suffix ``.pt2``.
        mc: keep dropout live.
        dynamic_batch: let the program take batches of any size; ``False`` fixes the example's.
        samples: calls by which a live export is checked, >= 2.

    Returns:
        The file, and how far it differs.

    Raises:
        RecipeError: another suffix, or too few samples.
        ModelError: the model cannot be exported, or the program differs from it.
        NothingRandomError: ``mc``, and nothing in the model or the program is random.
        OutputError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
        >>> file = Path(tempfile.mkdtemp()) / "net.pt2"
        >>> exported = export_model(net, torch.randn(2, 4), file)
        >>> torch.export.load(file).module()(torch.randn(7, 4)).shape, exported.difference
        (torch.Size([7, 3]), 0.0)
    """
    target = _target(path, ".pt2", samples)
    task = _Task(model, example_batch, mc=mc, dynamic_batch=dynamic_batch, samples=samples)
    with task.alone(), written_whole(target) as file:
        program = task.program()
        try:
            torch.export.save(program, file)
            loaded = torch.export.load(file).module()
        except OSError:
            raise
        except Exception as error:  # outputs of classes that a file cannot name
            raise _cannot(model, error) from error

        def run(inputs: Any) -> list[Tensor]:
            args, kwargs = arguments_of(inputs)
            return tensors_in(loaded(*args, **kwargs))

        found = task.checked(run, _TOLERANCE)
        return Exported(str(target), _megabytes(file), mc, **found)


def export_onnx(
    model: nn.Module,
    example_batch: Any,
    path: str | os.PathLike[str],
    *,
    mc: bool = False,
    dynamic_batch: bool = True,
    samples: int = 64,
) -> Exported:
    """Write a model as ONNX, and check it with onnxruntime where that is installed.

    Needs onnx and onnxscript (``pip install 'stablelightning[onnx]'``).

    Args:
        model: see :func:`export_model`.
        example_batch: what the forward takes, as positional arguments.
        path: of the file, with the suffix ``.onnx``.
        mc: keep dropout live.
        dynamic_batch: let it take batches of any size.
        samples: calls by which a live export is checked, >= 2.

    Returns:
        The file, and how far it differs.

    Raises:
        MissingPackageError: a package is missing.
        RecipeError: another suffix, or too few samples.
        ModelError: the model cannot be exported, or what was written differs from it.
        NothingRandomError: ``mc``, and nothing is random.
        OutputError: the file cannot be written.

    Example:
        >>> export_onnx(nn.Linear(2, 2), torch.ones(2, 2), "net.txt")
        Traceback (most recent call last):
        ...
        stablelightning.errors.RecipeError: path must end with .onnx, got 'net.txt'.
    """
    target = _target(path, ".onnx", samples)
    require_onnx()
    task = _Task(model, example_batch, mc=mc, dynamic_batch=dynamic_batch, samples=samples)
    with task.alone(), written_whole(target) as file:
        try:
            # Into one file: weights beside it would keep the temporary name.
            program = task.program().run_decompositions(DRAWN_DROPOUT if mc else {})
            converted: Any = torch.onnx.export(program, dynamo=True, verbose=False)
            converted.save(str(file), external_data=False)
        except StableLightningError:
            raise
        except Exception as error:
            raise _cannot(model, error) from error
        run = _in_onnxruntime(file)
        found: dict[str, Any]
        if run is None:
            found = {"notes": ("it was not checked: onnxruntime is not installed",)}
        else:
            found = task.checked(run, _TOLERANCE_ONNX)
        return Exported(str(target), _megabytes(file), mc, **found)


class _Task:
    """What is to be exported, and what it is held against."""

    def __init__(
        self, model: nn.Module, example: Any, *, mc: bool, dynamic_batch: bool, samples: int
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"an export needs an nn.Module, got {type(model).__name__}; pass the network."
            )
        if any(hasattr(m, "_orig_mod") for m in modules_of(model)):
            raise ModelError(
                f"an export needs an eager module, and {type(model).__name__} is compiled; "
                "export the original."
            )
        self._model = model
        self._mc = mc
        self._dynamic = dynamic_batch
        self._samples = samples
        inputs = leading_inputs(model, example)
        rows = max(count_rows(tree_leaves(inputs)), 1)
        self._rows = max(rows, _FEWEST_ROWS) if dynamic_batch else rows
        self._inputs = with_rows(inputs, self._rows) if dynamic_batch else inputs

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Without gradients, and with the model left as it was; its random modules are known."""
        plain = torch.inference_mode(False), torch.no_grad(), undisturbed_generators()
        with plain[0], plain[1], plain[2], Footprint(self._model):
            args, kwargs = arguments_of(self._inputs)
            self._live = StochasticModules(modules_of(self._model))
            if self._mc:
                with sampling_mode(self._live):
                    self._live = stochastic_modules(
                        self._model, lambda: self._model(*args, **kwargs)
                    )
                if not self._live:
                    raise NothingRandomError(
                        f"an export with dropout live needs some, and {type(self._model).__name__} "
                        "has none; sl.add_dropout(model, p=0.1) adds dropout before the head."
                    )
            with sampling_mode(self._live):
                yield

    def program(self) -> torch.export.ExportedProgram:
        """The model as torch sees it, in the mode of :meth:`alone`."""
        args, kwargs = arguments_of(self._inputs)
        model = self._plain(args, kwargs)
        dynamic = self._shapes(model, args, kwargs) if self._dynamic else None
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
        except Exception as error:
            raise _cannot(self._model, error) from error

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
        """The model, or what gives tuples where it gives named ones, which a file cannot name."""
        return _Unnamed(self._model) if _has_names(self._model(*args, **kwargs)) else self._model

    def _shapes(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Which axes are those of a batch, by the names of the forward's arguments."""
        positional, named = tree_map(self._shape, (args, kwargs))
        # What lands in *args is told as one tuple, in **kwargs as one dict: as bind does.
        return dict(inspect.signature(model.forward).bind(*positional, **named).arguments)

    def _shape(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != self._rows:
            return None
        return {0: torch.export.Dim.DYNAMIC}

    def checked(self, run: Run, tolerance: float) -> dict[str, Any]:
        """Hold what was written against the model."""
        if self._mc:
            apart, ratio = check_distribution(
                self._outputs, run, self._inputs, samples=self._samples
            )
            return {"means_apart": apart, "spread_ratio": ratio}
        batches = [self._inputs]
        for rows in (1, 2 * self._rows + 1) if self._dynamic else ():
            batches += self._if_it_runs(with_rows(self._inputs, rows))
        return {"difference": check_outputs(self._outputs, run, batches, tolerance=tolerance)}

    def _if_it_runs(self, inputs: Any) -> list[Any]:
        try:
            self._outputs(inputs)
        except Exception:  # the model itself does not take batches of that size
            return []
        return [inputs]

    def _outputs(self, inputs: Any) -> list[Tensor]:
        args, kwargs = arguments_of(tree_map(_own, inputs))
        return tensors_in(self._model(*args, **kwargs))


class _Unnamed(nn.Module):
    """A model whose named tuples are plain ones: a program must run where their class is not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _without_names(self.model(*args, **kwargs))


def _has_names(output: Any) -> bool:
    if isinstance(output, tuple | list):
        return hasattr(output, "_fields") or any(map(_has_names, output))
    return isinstance(output, dict) and any(map(_has_names, output.values()))


def _without_names(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(map(_without_names, output))
    if isinstance(output, list):
        return list(map(_without_names, output))
    if isinstance(output, dict):
        return {key: _without_names(value) for key, value in output.items()}
    return output


def _own(leaf: Any) -> Any:
    """Forwards may write into their inputs."""
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def require_onnx() -> None:
    """Find out whether ONNX can be written.

    Raises:
        MissingPackageError: a package of the extra ``onnx`` is missing.
    """
    for name in ("onnx", "onnxscript"):
        require(name, extra="onnx")


def _in_onnxruntime(file: Path) -> Callable[[Any], list[Tensor]] | None:
    """Runs an ONNX file; ``None`` where onnxruntime is not installed."""
    try:
        runtime = require("onnxruntime", extra="onnx")
    except ImportError:
        return None
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Any) -> list[Tensor]:
        tensors = [t.detach().cpu().numpy() for t in tensors_in(arguments_of(inputs))]
        made = session.run(None, dict(zip(names, tensors, strict=True)))
        return [torch.from_numpy(array) for array in made]

    return run


def _cannot(model: nn.Module, error: Exception) -> ModelError:
    reason = reason_of(error)
    return ModelError(
        f"{type(model).__name__} must be one that torch.export can follow, and it raised "
        f"{type(error).__name__}: {reason}; export the network inside, or with "
        "dynamic_batch=False where it is made for one batch size."
    )


def _target(path: str | os.PathLike[str], suffix: str, samples: int) -> Path:
    target = Path(path)
    if target.suffix != suffix:
        raise RecipeError(f"path must end with {suffix}, got {target.name!r}.")
    check_whole("samples", samples, least=2)
    return target


def _megabytes(file: Path) -> float:
    return file.stat().st_size / 1e6
