"""A Prediction of what was predicted elsewhere, plainly or by sampling."""

from typing import Any

from torch.utils._pytree import tree_map

from stablelightning.model.prediction import Prediction, Task
from stablelightning.model.summarize import Summary, select_output


def plain_prediction(output: Any, *, task: Task = "classification") -> Prediction:
    """What a model has said in one pass, as a :class:`Prediction` that can be calibrated.

    Args:
        output: class scores or probabilities ``(N, C)``, label scores ``(N, L)``, values ``(N,)``
            or a ``Gaussian``.
        task: what kind of prediction it is.

    Raises:
        ModelError: the output is none of these.

    Example:
        >>> import torch
        >>> plain_prediction(torch.tensor([[2.0, 0.0]])).mean
        tensor([[0.8808, 0.1192]])
    """
    return sampled_prediction(
        tree_map(lambda values: values.unsqueeze(0), select_output(output)), task=task
    )


def sampled_prediction(samples: Any, *, task: Task = "classification") -> Prediction:
    """What a model has said in several passes, as a :class:`Prediction`.

    Args:
        samples: as the output of :func:`plain_prediction`, with a leading axis of T samples.
        task: what kind of prediction it is.

    Raises:
        ModelError: the samples are none of these.

    Example:
        >>> import torch
        >>> sampled_prediction(torch.randn(20, 5, 3)).epistemic.shape
        torch.Size([5])
    """
    output = select_output(samples)
    summary = Summary(task)
    summary.update_(output)
    one = summary.centre.count == 1
    return summary.prediction(engine="plain" if one else "given", samples=None if one else output)
