"""The incoming weights of every unit of a model, wherever its layers keep them."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList

from stablelightning.model.groups import decayed_parameters
from stablelightning.model.structure import is_weight_layer

#: Layers without a forward of their own weights, or with parts, whose rows are units all the same.
_ROWS = (nn.Linear, nn.MultiheadAttention)


@dataclass(frozen=True, eq=False)
class UnitWeight:
    """A weight, and along which axes its units are numbered.

    Args:
        name: of the parameter.
        parameter: the weight.
        groups: for a transposed convolution its groups; 0 for all others, whose first axis it is.
    """

    name: str
    parameter: nn.Parameter
    groups: int = 0

    def split(self) -> tuple[Tensor, tuple[int, ...]]:
        """A view of the weight, and the axes of it that number the units.

        Example:
            >>> layer = nn.ConvTranspose1d(4, 6, 3, groups=2)
            >>> weight, axes = UnitWeight("weight", layer.weight, groups=2).split()
            >>> weight.shape, axes
            (torch.Size([2, 2, 3, 3]), (0, 2))
        """
        weight = self.parameter.detach()
        if not self.groups:
            return weight, (0,)
        return weight.unflatten(0, (self.groups, -1)), (0, 2)


def unit_weights(model: nn.Module) -> tuple[list[UnitWeight], list[str]]:
    """Find the weights whose slices are what flows into one unit.

    Rows of linear, attention and recurrent layers (one for each gate), output channels of
    convolutions, transposed and grouped ones included. Not embeddings, whose rows are no unit's.

    Args:
        model: any module.

    Returns:
        The weights, and the names of those that are left out because a parametrization (weight or
        spectral normalization) makes the weight from them, and decides its length.

    Example:
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3), nn.LayerNorm(3))
        >>> [unit.name for unit in unit_weights(net)[0]]
        ['1.weight']
    """
    decayed = {id(p): name for name, p in decayed_parameters(model).items()}
    found: dict[int, UnitWeight] = {}
    left: list[str] = []
    for module in model.modules():
        for own, parameter in module._parameters.items():
            name = decayed.get(id(parameter))
            if name is None or parameter is None:
                continue
            if isinstance(module, ParametrizationList) or own.endswith("_v"):
                left.append(name)
            elif isinstance(module, _ConvTransposeNd):
                found[id(parameter)] = UnitWeight(name, parameter, module.groups)
            elif isinstance(module, _ROWS) or is_weight_layer(module):
                found[id(parameter)] = UnitWeight(name, parameter)
    return list(found.values()), left
