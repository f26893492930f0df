"""Every metric a second time: in numpy, by its definition, row by row, and by other packages."""

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def brier(p: Floats, y: Ints) -> float:
    return float(
        np.mean([np.sum((row - np.eye(len(row))[k]) ** 2) for row, k in zip(p, y, strict=True)])
    )


def label_brier(p: Floats, y: Ints) -> float:
    return float(np.mean((p - y) ** 2))


def nll(p: Floats, y: Ints) -> float:
    return float(log_loss(y, p, labels=np.arange(p.shape[1])))


def label_nll(p: Floats, y: Ints) -> float:
    return float(log_loss(y.ravel(), p.ravel()))


def _bin(p: float, bins: int) -> int:
    return max(int(np.ceil(np.float32(p) * np.float32(bins))) - 1, 0)


def brier_parts(p: Floats, y: Ints, bins: int) -> dict[str, float]:
    total = {"reliability": 0.0, "resolution": 0.0, "uncertainty": 0.0}
    for k in range(p.shape[1]):
        hit = (y == k).astype(float)
        total["uncertainty"] += hit.mean() * (1 - hit.mean())
        place = np.array([_bin(value, bins) for value in p[:, k]])
        for bin in range(bins):
            inside = place == bin
            if inside.any():
                share = inside.mean()
                mean, seen = p[inside, k].mean(), hit[inside].mean()
                total["reliability"] += share * (mean - seen) ** 2
                total["resolution"] += share * (seen - hit.mean()) ** 2
    score = brier(p, y)
    rest = score - total["reliability"] + total["resolution"] - total["uncertainty"]
    return {"brier": score, **total, "within_bins": rest}


def classwise(p: Floats, y: Ints, bins: int) -> float:
    gaps = []
    for k in range(p.shape[1]):
        place = np.array([_bin(value, bins) for value in p[:, k]])
        gap = p[:, k] - (y == k)
        gaps.append(sum(abs(gap[place == bin].sum()) for bin in range(bins)) / len(p))
    return float(np.mean(gaps))


def label_classwise(p: Floats, y: Ints, bins: int) -> float:
    place = np.array([_bin(value, bins) for value in p])
    return float(sum(abs((p - y)[place == bin].sum()) for bin in range(bins)) / len(p))


def adaptive(p: Floats, y: Ints, bins: int) -> float:
    """For distinct confidences and rows that the bins divide."""
    order = np.argsort(p.max(1))
    gap = (p.max(1) - (p.argmax(1) == y))[order]
    return float(sum(abs(part.sum()) for part in np.split(gap, bins)) / len(p))


def risks(u: Floats, wrong: Floats) -> Floats:
    """Of the 1, 2, ... surest rows, for distinct uncertainties."""
    return np.cumsum(wrong[np.argsort(u)]) / np.arange(1, len(u) + 1)


def aurc(u: Floats, wrong: Floats) -> float:
    return float(risks(u, wrong).mean())


def excess_aurc(u: Floats, wrong: Floats) -> float:
    return aurc(u, wrong) - aurc(np.arange(len(u)), np.sort(wrong))


def augrc(u: Floats, wrong: Floats) -> float:
    """By the closed form of the paper, in which only an AUROC and the error rate stand."""
    error = wrong.mean()
    if error in (0.0, 1.0):
        return float(error**2 / 2)
    return float((1 - roc_auc_score(wrong, u)) * error * (1 - error) + error**2 / 2)


def risk_at_coverage(u: Floats, wrong: Floats, coverage: float) -> float:
    return float(risks(u, wrong)[int(np.ceil(coverage * len(u) - 1e-9)) - 1])


def coverage_at_risk(u: Floats, wrong: Floats, risk: float) -> float:
    good = np.flatnonzero(risks(u, wrong) <= risk)
    return float((good[-1] + 1) / len(u)) if len(good) else 0.0


def auroc(score: Floats, out: Ints) -> float:
    return float(roc_auc_score(out, score))


def aupr_out(score: Floats, out: Ints) -> float:
    return float(average_precision_score(out, score))


def aupr_in(score: Floats, out: Ints) -> float:
    return float(average_precision_score(1 - out, -score))


def false_positive_rate(score: Floats, out: Ints, recall: float) -> float:
    known = np.sort(score[out == 0])
    threshold = known[int(np.ceil(recall * len(known) - 1e-9)) - 1]
    return float((score[out == 1] <= threshold).mean())


def gaussian_nll(mean: Floats, variance: Floats, y: Floats) -> float:
    return float(-stats.norm(mean, np.sqrt(variance)).logpdf(y).mean())


def mixture_nll(means: Floats, variances: Floats, y: Floats) -> float:
    return float(-np.log(stats.norm(means, np.sqrt(variances)).pdf(y).mean(0)).mean())


def coverage(lower: Floats, upper: Floats, y: Floats) -> float:
    return float(
        np.mean([low <= value <= high for low, high, value in zip(lower, upper, y, strict=True)])
    )


def width(lower: Floats, upper: Floats, _y: Floats) -> float:
    return float(np.mean(upper - lower))


def interval_score(lower: Floats, upper: Floats, y: Floats, level: float) -> float:
    fine = 2 / (1 - level)
    each = [
        high - low + fine * ((low - v) * (v < low) + (v - high) * (v > high))
        for low, high, v in zip(lower, upper, y, strict=True)
    ]
    return float(np.mean(each))


def pinball(quantiles: Floats, y: Floats, levels: tuple[float, ...]) -> float:
    each = [
        level * (v - q) if v >= q else (1 - level) * (q - v)
        for row, v in zip(quantiles, y, strict=True)
        for q, level in zip(row, levels, strict=True)
    ]
    return float(np.mean(each))


def quantile_error(mean: Floats, variance: Floats, y: Floats, levels: Floats) -> float:
    quantiles = stats.norm(mean, np.sqrt(variance)).ppf(np.asarray(levels)[:, None])
    return float(np.mean(np.abs((y <= quantiles).mean(1) - levels)))


def mixture_quantile_error(means: Floats, variances: Floats, y: Floats, levels: Floats) -> float:
    below = stats.norm(means, np.sqrt(variances)).cdf(y).mean(0)
    return float(np.mean([abs((below <= level).mean() - level) for level in levels]))


def sharpness(_mean: Floats, variance: Floats, _y: Floats) -> float:
    return float(np.sqrt(variance.mean()))
