"""Where the weight layers, the head and the blocks of a network are.

Found by structure and by the flow of data, so that it holds for networks nobody here has seen;
names are asked last, where there is neither an example to follow nor an order to trust.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._pytree import tree_leaves

from stablelightning.errors import ModelError
from stablelightning.model.generators import preserved_generators

#: Modules that hold a matrix or more and do not mix their input with it.
_NOT_WEIGHT_LAYERS = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    _NormBase,
    ParametrizationList,
)
#: Modules that only hold others; the last resort calls them blocks too.
_PLAIN_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
#: What torchvision and timm call the part of a network that classifies.
_HEAD_NAMES = ("fc", "head", "heads", "classifier")


def is_weight_layer(module: nn.Module) -> bool:
    """Whether ``module`` itself multiplies its input by a weight matrix or kernel.

    Linear, convolution and recurrent layers, and any module of the user's that has a parameter of
    two or more dimensions and no module with parameters inside. Not embeddings, not norms.

    Example:
        >>> is_weight_layer(nn.Linear(2, 3)), is_weight_layer(nn.LayerNorm((4, 4)))
        (True, False)
    """
    if isinstance(module, nn.Linear | _ConvNd | nn.RNNBase | nn.Bilinear):
        # nn.MultiheadAttention reads the weight of its output layer and never calls it.
        return not isinstance(module, NonDynamicallyQuantizableLinear)
    inside = (p for child in module.children() for p in child.parameters())
    if isinstance(module, _NOT_WEIGHT_LAYERS) or any(True for _ in inside):
        return False
    return any(p.ndim >= 2 for p in module.parameters(recurse=False) if not is_lazy(p))


def weight_layers(module: nn.Module) -> list[nn.Module]:
    """All weight layers in ``module``, itself included, in the order of ``modules()``.

    Example:
        >>> weight_layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))[-1]
        Linear(in_features=3, out_features=1, bias=True)
    """
    return [m for m in module.modules() if is_weight_layer(m)]


def find_heads(model: nn.Module, run: Callable[[], Any] | None = None) -> list[nn.Module]:
    """Find the last weight layers of ``model``: those whose output becomes the prediction.

    Args:
        model: any module; flags, gradients and generators are left as they were.
        run: runs the model once on an example. With it the flow of data decides: every weight layer
            whose output reaches the model's output through no other weight layer, so that each head
            of a network with several is found. Without it, what timm's ``get_classifier()``
            returns, else the last weight layer of a child called ``fc``, ``head``, ``heads`` or
            ``classifier``, else the last weight layer in the order of ``modules()``.

    Returns:
        One or more weight layers, in the order of ``modules()``.

    Raises:
        ModelError: ``model`` has no weight layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> find_heads(net, lambda: net(torch.zeros(1, 2)))
        [Linear(in_features=3, out_features=1, bias=True)]
    """
    layers = weight_layers(model)
    if not layers:
        raise ModelError(
            f"a head must be a layer with weights, and {type(model).__name__} has none; "
            "pass the network itself."
        )
    chosen = _heads_by_convention(model) if run is None else _heads_by_flow(model, run, layers)
    return [layer for layer in layers if any(layer is c for c in chosen)]


def find_blocks(model: nn.Module, run: Callable[[], Any] | None = None) -> list[nn.Module]:
    """Find the repeated blocks of ``model``, such as the residual blocks of a ResNet's stages.

    A block is one of two or more adjacent modules of the same class, with two or more weight layers
    inside (a convolution with its norm is no block), that holds no such run itself (a stage is no
    block). Single modules of those classes count too: a stage may have one block only. Runs are
    looked for in ``Sequential``, ``ModuleList`` and ``ModuleDict``, and across stages that are
    plain ``Sequential``; where none is there, among the children of any module (Inception); where
    none is there either, plain ``Sequential`` siblings count as blocks.

    Args:
        model: any module; flags, gradients and generators are left as they were.
        run: runs the model once on an example. With it, blocks that eval does not run are left out
            (the auxiliary classifiers of GoogLeNet look like blocks, too).

    Returns:
        The blocks in the order of ``modules()``; none inside another; empty where nothing repeats.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
        >>> len(find_blocks(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)))
        3
    """

    def is_container(module: nn.Module) -> bool:
        return isinstance(module, _PLAIN_CONTAINERS)

    def is_own_class(module: nn.Module) -> bool:
        return type(module) not in _PLAIN_CONTAINERS and len(weight_layers(module)) >= 2

    def is_composite(module: nn.Module) -> bool:
        return not is_weight_layer(module) and len(weight_layers(module)) >= 1

    blocks = (
        _repeated(model, is_container, is_own_class, _children_of_stages)
        or _repeated(model, lambda _: True, is_own_class, _children_of_stages)
        or _repeated(model, is_container, is_composite, nn.Module.children)
    )
    if run is not None:
        ran: set[nn.Module] = set()
        watched_run(model, run, blocks, lambda block, *_: ran.add(block))
        blocks = [block for block in blocks if block in ran]
    return blocks


# ---- the head ---------------------------------------------------------------------------------


def _heads_by_convention(model: nn.Module) -> list[nn.Module]:
    network = model
    while True:  # a LightningModule around the network, a wrapper around that
        classifier = getattr(network, "get_classifier", None)
        parts = _modules_in(classifier()) if callable(classifier) else []
        parts = parts or [c for name, c in network.named_children() if name in _HEAD_NAMES]
        heads = [layers[-1] for part in parts if (layers := weight_layers(part))]
        if heads:
            return heads
        inner = [child for child in network.children() if weight_layers(child)]
        if len(inner) != 1 or is_weight_layer(network):
            return weight_layers(network)[-1:]
        network = inner[0]


def _modules_in(value: Any) -> list[nn.Module]:
    found = value if isinstance(value, tuple | list | nn.ModuleList) else [value]
    return [m for m in found if isinstance(m, nn.Module)]


def _heads_by_flow(
    model: nn.Module, run: Callable[[], Any], layers: list[nn.Module]
) -> list[nn.Module]:
    """Walk back from the output along autograd's graph until a weight layer made the tensor."""
    maker: dict[Any, nn.Module] = {}
    executed: list[nn.Module] = []

    def remember(module: nn.Module, _args: Any, output: Any) -> None:
        executed.append(module)
        maker.update({node: module for node in graph_ends(output)})

    output = watched_run(model, run, layers, remember)
    if not executed:
        raise ModelError(
            f"the example must go through the weight layers of {type(model).__name__}, and it "
            "reached none; pass the network that is called."
        )
    reached: dict[nn.Module, list[Any]] = {}
    for node in _walk(graph_ends(output), stop=maker):
        reached.setdefault(maker[node], []).append(node)
    if not reached:  # the model runs itself without gradients: order is all there is
        return [executed[-1]]
    # A network that also returns its features, or adds its input to its output, reaches earlier
    # layers too: they are upstream of the real head.
    upstream: set[nn.Module] = set()
    for head, nodes in reached.items():
        before = _walk((n for node in nodes for n, _ in node.next_functions if n), stop=())
        upstream |= {maker[n] for n in before if n in maker} - {head}
    return [head for head in reached if head not in upstream] or list(reached)


def watched_run(
    model: nn.Module, run: Callable[[], Any], watched: list[nn.Module], hook: Callable[..., Any]
) -> Any:
    """Run in eval, with every parameter in autograd's graph, and leave no trace of it."""
    flags = [(m, m.training) for m in model.modules()]
    frozen = [
        p
        for p in model.parameters()
        if not p.requires_grad and p.is_floating_point() and not p.is_inference()
    ]
    handles = [module.register_forward_hook(hook) for module in watched]
    try:
        for module, _ in flags:
            module.training = False
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad(), preserved_generators():
            return run()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in flags:
            module.training = training


def graph_ends(output: Any) -> list[Any]:
    """The nodes of autograd's graph that made the tensors of an output."""
    ends = []
    for leaf in tree_leaves(output):
        # An output object that pytree does not know (a distribution, a dataclass): its own tensors.
        inside = [leaf] if isinstance(leaf, Tensor) else getattr(leaf, "__dict__", {}).values()
        ends += [t.grad_fn for t in inside if isinstance(t, Tensor) and t.grad_fn is not None]
    return ends


def _walk(starts: Iterable[Any], *, stop: Any) -> list[Any]:
    """The nodes of ``stop`` first met on the way back from ``starts``; all nodes without it."""
    pending, seen, met = list(starts), set(), []
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if not stop or node in stop:
            met.append(node)
        if node not in stop:
            pending += [following for following, _ in node.next_functions if following is not None]
    return met


# ---- the blocks -------------------------------------------------------------------------------


def _repeated(
    model: nn.Module,
    is_parent: Callable[[nn.Module], bool],
    is_block: Callable[[nn.Module], bool],
    children_of: Callable[[nn.Module], Iterable[nn.Module]],
) -> list[nn.Module]:
    siblings = [
        [child for child in children_of(parent) if weight_layers(child)]
        for parent in model.modules()
        if is_parent(parent)
    ]
    in_runs: set[nn.Module] = set()
    for children in siblings:
        for _, group in groupby(children, key=type):
            run = list(group)
            if len(run) >= 2:
                in_runs.update(m for m in run if is_block(m))
    classes = {type(m) for m in _innermost(in_runs)}
    alike = {m for children in siblings for m in children if type(m) in classes and is_block(m)}
    blocks = _innermost(alike)
    return [m for m in model.modules() if m in blocks]


def _children_of_stages(parent: nn.Module) -> Iterator[nn.Module]:
    """The children, with those of a plain ``Sequential`` in its place, as they are run."""
    for child in parent.children():
        if type(child) is nn.Sequential:
            yield from _children_of_stages(child)
        else:
            yield child


def _innermost(modules: set[nn.Module]) -> set[nn.Module]:
    return {m for m in modules if not any(d in modules for d in m.modules() if d is not m)}
