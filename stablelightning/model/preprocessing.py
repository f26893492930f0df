"""What images must look like for the weights of a network: size, resizing, mean, deviation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from stablelightning.errors import RecipeError

#: What torchvision and Pillow call the ways of resizing that backbones were trained with.
_INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "lanczos", "box", "hamming")
#: timm's word for a network that was trained with several.
_ANY_OF_THEM = "random"
#: A share is a quotient of whole pixels; a rounding error must not cost a pixel of them.
_PIXEL_FRACTION = 1e-6


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared where a network was trained.

    Args:
        mean: mean of each channel that was subtracted, in [0, 1] units.
        std: standard deviation of each channel that was divided by, in [0, 1] units; > 0.
        image_size: height and width that the network sees, in pixels; >= 1.
        interpolation: ``"bilinear"``, ``"bicubic"``, ``"nearest"``, ``"nearest-exact"``,
            ``"lanczos"``, ``"box"`` or ``"hamming"``.
        crop_share: share of an image's shorter side that the crop in its middle keeps; in (0, 1].

    Raises:
        RecipeError: a setting is out of its range.

    Example:
        >>> Preprocessing((0.5,), (0.25,), image_size=224, crop_share=0.875).resize_size
        256
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    interpolation: str = "bilinear"
    crop_share: float = 1.0

    def __post_init__(self) -> None:
        # A file's metadata is JSON, which knows lists only.
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) != len(self.std) or not self.std or min(self.std) <= 0:
            raise RecipeError(
                "mean and std must have one number for each channel, the second > 0, got "
                f"{self.mean} and {self.std}."
            )
        whole = isinstance(self.image_size, int) and not isinstance(self.image_size, bool)
        if not whole or self.image_size < 1:
            raise RecipeError(f"image_size must be a whole number >= 1, got {self.image_size!r}.")
        if self.interpolation not in _INTERPOLATIONS:
            raise RecipeError(
                f"interpolation must be one of {', '.join(_INTERPOLATIONS)}, got "
                f"{self.interpolation!r}."
            )
        if not 0 < self.crop_share <= 1:
            raise RecipeError(f"crop_share must lie in (0, 1], got {self.crop_share!r}.")

    @property
    def resize_size(self) -> int:
        """Pixels of the shorter side before the crop: ``image_size / crop_share``."""
        return int(self.image_size / self.crop_share + _PIXEL_FRACTION)


def preprocessing_of(model: nn.Module) -> Preprocessing | None:
    """Find what images must look like for ``model``.

    Asked are, from the outside to the inside: the attribute ``preprocessing`` of each module, which
    :func:`~stablelightning.model.backbones.backbone` leaves, and the ``pretrained_cfg`` of a timm
    model. timm says it of a fresh network too, which was made for such images.

    Args:
        model: a network, or a module around it; not changed.

    Returns:
        What the first one says; ``None`` where nobody does.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> print(preprocessing_of(net))
        None
        >>> net[0].preprocessing = Preprocessing((0.5,), (0.5,), image_size=32)
        >>> preprocessing_of(net).image_size
        32
    """
    for module in model.modules():
        kept = vars(module).get("preprocessing")
        if isinstance(kept, Preprocessing):
            return kept
        settings = vars(module).get("pretrained_cfg") or vars(module).get("default_cfg")
        if isinstance(settings, Mapping) and "mean" in settings and "std" in settings:
            return preprocessing_of_timm(module, settings)
    return None


def preprocessing_of_timm(model: nn.Module, settings: Mapping[str, Any]) -> Preprocessing:
    """Read a timm configuration.

    Args:
        model: the network; one that was made for images of another size has the last word on it.
        settings: timm's ``pretrained_cfg``.

    Example:
        >>> settings = {"mean": (0.5,), "std": (0.5,), "input_size": (1, 96, 96), "crop_pct": 0.9}
        >>> preprocessing_of_timm(nn.Identity(), settings).interpolation
        'bicubic'
    """
    size = settings.get("input_size") or (3, 224, 224)
    interpolation = settings.get("interpolation") or "bicubic"
    return Preprocessing(
        mean=settings["mean"],
        std=settings["std"],
        image_size=_own_image_size(model) or max(size[-2:]),
        interpolation="bilinear" if interpolation == _ANY_OF_THEM else interpolation,
        crop_share=float(settings.get("crop_pct") or 1.0),
    )


def preprocessing_of_torchvision(model: nn.Module, transforms: Any) -> Preprocessing | None:
    """Read the transforms that come with weights of torchvision.

    Args:
        model: the network; one that was made for images of another size has the last word on it.
        transforms: ``weights.transforms()``.

    Returns:
        ``None`` where they do not normalise (detection).

    Example:
        >>> print(preprocessing_of_torchvision(nn.Identity(), object()))
        None
    """
    mean, std = getattr(transforms, "mean", None), getattr(transforms, "std", None)
    if mean is None or std is None:
        return None
    resized = _largest(getattr(transforms, "resize_size", None))
    cropped = _largest(getattr(transforms, "crop_size", None)) or resized
    if cropped is None:
        return None
    interpolation = getattr(transforms, "interpolation", "bilinear")
    return Preprocessing(
        mean=tuple(mean),
        std=tuple(std),
        image_size=_own_image_size(model) or cropped,
        interpolation=str(getattr(interpolation, "value", interpolation)),
        crop_share=min(1.0, cropped / resized) if resized else 1.0,
    )


def _own_image_size(model: nn.Module) -> int | None:
    """The size that a vision transformer was made for, under timm's and torchvision's names."""
    patches = getattr(model, "patch_embed", None)
    return _largest(getattr(patches, "img_size", None) or getattr(model, "image_size", None))


def _largest(size: Any) -> int | None:
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    sides = list(size) if isinstance(size, Sequence) else []
    return max(sides) if sides and all(isinstance(side, int) for side in sides) else None
