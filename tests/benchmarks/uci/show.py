"""The table in words, against the published rows."""

import math
from statistics import mean, stdev
from typing import Any

from tests.benchmarks.uci.columns import Column
from tests.benchmarks.uci.tuning import Choice

#: Published rows: RMSE and log-likelihood, each with its standard error over 20 splits; the
#: authors' repository as updated in 2018, after Gal, Ghahramani 2016, arXiv:1506.02142.
PUBLISHED = {
    "concrete": ((4.8265, 0.161), (-2.9367, 0.025)),
    "energy": ((0.5389, 0.014), (-1.2115, 0.005)),
    "kin8nm": ((0.0789, 0.0006), (1.1364, 0.007)),
    "wine-quality-red": ((0.6218, 0.008), (-0.9281, 0.013)),
    "yacht": ((0.6663, 0.049), (-1.2501, 0.015)),
}
#: What the headline's log-likelihood is to reach.
WANTED = {
    "concrete": -2.85,
    "energy": -0.80,
    "kin8nm": 1.19,
    "wine-quality-red": -0.90,
    "yacht": -0.75,
}


def centre(values: list[float]) -> tuple[float, float]:
    """Mean over the splits and its standard error; no error of one split."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return mean(values), error


def line(name: str, column: Column) -> str:
    (rmse, rmse_error), (fit, fit_error) = centre(column.rmse), centre(column.log_likelihood)
    return (
        f"{name:20} RMSE {rmse:.4f} ({rmse_error:.4f})   log-likelihood {fit:.4f} "
        f"({fit_error:.4f})   {column.seconds:.0f} s"
    )


def setting(choice: Choice) -> str:
    """What was chosen, in few words."""
    chosen = choice.candidate
    parts = [chosen.activation]
    parts += [f"dropout {chosen.rate:g}"] if chosen.rate else []
    parts += [f"decay {chosen.decay:g}"] if chosen.decay else []
    parts += [] if chosen.heteroscedastic else [f"precision {1 / choice.scale:g}"]
    return ", ".join(parts)


def verdict(result: dict[str, Any]) -> str:
    """The bounds of a published set, met or missed; nothing of another one."""
    return "\n".join(f"{name}: {'met' if met else 'missed'}" for name, met in bounds(result))


def bounds(result: dict[str, Any]) -> list[tuple[str, bool]]:
    """What was asked of the columns that were run."""
    published = PUBLISHED.get(result["dataset"])
    found = []
    fit = mean(result["log_likelihood"])
    if published:
        (rmse, rmse_error), (_, _) = published
        wanted = WANTED[result["dataset"]]
        found.append((f"log-likelihood at least {wanted}", fit >= wanted))
        most = rmse + rmse_error
        found.append((f"RMSE at most {most:.4f}", mean(result["rmse"]) <= most))
    if plain := result.get("heteroscedastic"):
        found.append(
            ("log-likelihood not below that without dropout", fit >= mean(plain["log_likelihood"]))
        )
    if published and (repeated := result.get("homoscedastic_mc")):
        for what, (value, error) in zip(("rmse", "log_likelihood"), published, strict=True):
            ours, own_error = centre(repeated[what])
            near = abs(ours - value) <= 2 * math.hypot(error, own_error)
            found.append((f"homoscedastic {what} within two standard errors of {value}", near))
    return found
