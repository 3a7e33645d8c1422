"""Metrics with 95 % intervals: ratios, quantiles and times, resampled over whole episodes.

Contract: frames of one episode are not independent, so episodes are drawn and not frames; the same
data gives the same interval. Knows nothing of what is measured.
"""

from dataclasses import dataclass, field

import numpy as np

NUM_RESAMPLES = 1000
FEW = 2  # things that one sample counts (balls), unlike hundreds of tokens


@dataclass
class Metric:
    """A number with its interval and its baselines; `sums` and `counts` belong to `episodes`."""

    value: float
    low: float = float("nan")
    high: float = float("nan")
    num_samples: int = 0
    baselines: dict[str, "Metric"] = field(default_factory=dict)
    episodes: list = field(default_factory=list)
    sums: list = field(default_factory=list)
    counts: list = field(default_factory=list)

    def to_dict(self) -> dict:
        """Return plain values; NaN as None, which JSON can say."""
        plain: dict = {name: _plain(getattr(self, name)) for name in ("value", "low", "high")}
        plain["num_samples"] = int(self.num_samples)
        if self.baselines:
            plain["baselines"] = {name: m.to_dict() for name, m in self.baselines.items()}
        if self.episodes:
            plain["episodes"] = [int(episode) for episode in self.episodes]
            plain["sums"] = [_plain(value) for value in self.sums]
            plain["counts"] = [_plain(value) for value in self.counts]
        return plain


def _plain(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def mean_metric(values, episodes, counts=None, is_share: bool = True) -> Metric:
    """Return sum(values) / sum(counts) with its interval; by default every value counts once.

    Samples whose value is NaN are left out. Of a share that is 0 or 1 in all of E episodes
    resampling sees no doubt: its interval then reaches to what they still allow.
    """
    values = np.asarray(values, float).reshape(-1)
    episodes = np.asarray(episodes).reshape(-1)
    counts = np.ones_like(values) if counts is None else np.asarray(counts, float).reshape(-1)
    known = np.isfinite(values)
    values, episodes, counts = values[known], episodes[known], counts[known]
    if counts.sum() == 0:
        return Metric(float("nan"))
    names, index = np.unique(episodes, return_inverse=True)
    sums = np.bincount(index, values)
    totals = np.bincount(index, counts)
    draws = episode_draws(len(names))
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (draws @ sums) / (draws @ totals)
    low, high = interval(resampled, len(names))
    is_share = is_share and ((values >= 0) & (values <= counts)).all() and counts.max() <= FEW
    if len(names) > 1 and is_share:
        doubt = 0.025 ** (1 / (totals > 0).sum())
        if sums.sum() == 0:
            high = 1 - doubt
        if sums.sum() == totals.sum():
            low = doubt
    return Metric(
        float(sums.sum() / totals.sum()), float(low), float(high), int(counts.sum()),
        episodes=names.tolist(), sums=sums.tolist(), counts=totals.tolist(),
    )  # fmt: skip


def quantile_metric(values, episodes, quantile: float) -> Metric:
    """Return a quantile of the values with its interval; NaN values are left out."""
    values, episodes = np.asarray(values, float).reshape(-1), np.asarray(episodes).reshape(-1)
    known = np.isfinite(values)
    values, episodes = values[known], episodes[known]
    if len(values) == 0:
        return Metric(float("nan"))
    names, index = np.unique(episodes, return_inverse=True)
    order = np.argsort(values)
    values, index = values[order], index[order]
    weights = episode_draws(len(names))[: NUM_RESAMPLES // 2, index].cumsum(1)
    position = (weights < quantile * weights[:, -1:]).sum(1).clip(max=len(values) - 1)
    low, high = interval(values[position], len(names))
    middle = float(np.quantile(values, quantile))
    return Metric(middle, float(low), float(high), len(values))


def half_life_metric(hits, visible, episodes) -> Metric:
    """Return the first step at which fewer than half of what can be seen is right.

    Args:
        hits, visible: bool (B, steps).
    """
    return _time_metric(hits, visible, episodes, lambda right, seen: _first(right < 0.5 * seen))


def first_miss_metric(hits, visible, reached, episodes) -> Metric:
    """Return the median number of steps to a first miss, by Kaplan and Meier's estimate.

    Args:
        hits, visible: bool (B, steps); what cannot be seen is no miss.
        reached: (B,), how long each is watched; one that ends before its first miss counts until
            its end.
    """
    misses = visible & ~hits
    num_before = misses.cumsum(1) - misses
    is_watched = (num_before == 0) & (np.arange(hits.shape[1]) < reached[:, None])

    def median(missed, watched):
        with np.errstate(invalid="ignore"):
            keeps = np.where(watched > 0, 1 - missed / watched, 1)
        return _first(keeps.cumprod(-1) < 0.5)

    return _time_metric(misses & is_watched, is_watched, episodes, median)


def _first(is_below: np.ndarray) -> np.ndarray:
    """Return the first step of which this is true, else the last, over the last axis."""
    return np.where(is_below.any(-1), is_below.argmax(-1) + 1, is_below.shape[-1])


def _time_metric(parts, wholes, episodes, measure) -> Metric:
    """Resample episodes; `measure` takes the sums of both, (..., steps)."""
    names, index = np.unique(episodes, return_inverse=True)
    sums, totals = (np.zeros((len(names), parts.shape[1])) for _ in range(2))
    np.add.at(sums, index, parts)
    np.add.at(totals, index, wholes)
    draws = episode_draws(len(names))
    low, high = interval(measure(draws @ sums, draws @ totals), len(names))
    return Metric(float(measure(sums.sum(0), totals.sum(0))), low, high, len(episodes))


def paired_difference(first: dict, second: dict) -> tuple[float, float, float] | None:
    """Return second - first with its interval, from two metrics' plain values.

    Episodes are resampled in pairs where both carry the same ones; otherwise (quantiles) the two
    intervals are added in quadrature. None where one of the two has no value.
    """
    if first["value"] is None or second["value"] is None:
        return None
    difference = second["value"] - first["value"]
    if first.get("episodes") and first["episodes"] == second.get("episodes"):
        draws = episode_draws(len(first["episodes"]))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = [(draws @ np.array(m["sums"])) / (draws @ np.array(m["counts"]))
                      for m in (first, second)]  # fmt: skip
        low, high = interval(ratios[1] - ratios[0], len(first["episodes"]))
        return difference, float(low), float(high)
    if None in (first["low"], second["low"]):
        return difference, float("nan"), float("nan")
    down = np.hypot(first["high"] - first["value"], second["value"] - second["low"])
    up = np.hypot(first["value"] - first["low"], second["high"] - second["value"])
    return difference, difference - float(down), difference + float(up)


def interval(resampled: np.ndarray, num_episodes: int) -> tuple[float, float]:
    """Return the middle 95 %; one episode alone has no interval."""
    if num_episodes < 2:
        return float("nan"), float("nan")
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def episode_draws(num_episodes: int) -> np.ndarray:
    """Return how often each episode stands in each resample, (1000, E)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(num_episodes, np.full(num_episodes, 1 / num_episodes), NUM_RESAMPLES)
