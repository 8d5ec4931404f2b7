"""The pictures of a comparison, as matplotlib figures: learning curves, adaptation curves, score over way and shot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib import rc_context

from metarun.comparison.figures import DRAWN, STYLE, Plot, bars, figure_of, left_out, legend, lines_of, looks_of, named, panels_of
from metarun.comparison.groups import Group
from metarun.comparison.runs import OVER
from metarun.comparison.sweep_plots import hyperparameters
from metarun.comparison.view import View

POINTS = 300  # of a curve; a picture has no more


def pictures(view: View) -> list[Plot]:
    """Every picture for which the runs have data."""
    with rc_context(STYLE):
        made = [learning_curves(view), adaptation_curves(view), score_over(view, "shot"), score_over(view, "way"), hyperparameters(view)]
    return [picture for picture in made if picture]


def learning_curves(view: View) -> Plot | None:
    """Training (smoothed, thin) and development (with a band) over iterations."""
    panels = {
        block: drawn
        for block, members in panels_of(view).items()
        if (drawn := [(label, member, curves) for member, label in members.items() if (curves := _learning(view, member))])
    }
    if not panels:
        return None
    looks = looks_of(view)
    figure, axes = figure_of(len(panels))
    for axis, (block, members) in zip(axes, panels.items()):
        for label, _, curves in members:
            color, marker = looks[label]
            if "train" in curves:
                step, mean, _ = curves["train"]
                axis.plot(step, _smooth(mean), color=color, linewidth=1, linestyle=(0, (4, 2)), alpha=0.75)
            if "val" in curves:
                step, mean, band = curves["val"]
                axis.plot(step, mean, color=color, label=label, marker=marker, markevery=max(1, len(step) // 12))
                if band is not None:
                    axis.fill_between(step, mean - band, mean + band, color=color, alpha=0.18, linewidth=0)
        axis.set(title=named(block), xlabel="meta-training iteration", ylabel=view.metric or members[0][1].metric)
        _log_if_wide(axis, [curves["val"][1] for _, _, curves in members if "val" in curves])
    legend(figure, axes)
    caption = (
        f"Solid: development tasks; the band is ± std over {view.spread}, or ± ci95 over episodes for a single run. "
        f"Dashed: training, smoothed.{left_out(view)}"
    )
    return Plot("learning_curves", "Learning curves", caption, figure)


def _learning(view: View, member: Group) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """For ``train`` and ``val``: steps, mean over runs, half band (std over runs, or the single run's ci95); common steps only."""
    metric = view.metric or member.metric
    found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]] = {}
    points = [list(run.metrics()) for run in member.runs]
    for split in ("train", "val"):
        curves = [{p["step"]: p for p in run if p.get("split") == split and isinstance(p.get(metric), float | int)} for run in points]
        curves = [curve for curve in curves if curve]
        common = sorted(set(curves[0]).intersection(*curves[1:])) if curves else []
        if not common:
            continue
        steps = [common[i] for i in np.linspace(0, len(common) - 1, min(len(common), POINTS)).round().astype(int)]
        values = np.array([[curve[step][metric] for step in steps] for curve in curves], dtype=float)
        band = values.std(axis=0, ddof=1) if len(curves) > 1 else None
        if len(curves) == 1 and metric == member.metric and split == "val":
            band = np.array([curves[0][step].get("ci95") or np.nan for step in steps], dtype=float)
        found[split] = np.array(steps), values.mean(axis=0), band
    return found


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the curve, over what there is at the ends."""
    width = max(1, len(values) // 20)
    ones = np.ones(2 * width + 1)
    return np.convolve(values, ones)[width:-width] / np.convolve(np.ones_like(values), ones)[width:-width]


def _log_if_wide(axis: Any, curves: list[np.ndarray]) -> None:
    """Errors that fall by orders of magnitude are read on a logarithmic axis."""
    values = np.concatenate(curves) if curves else np.zeros(1)
    if values.min() > 0 and values.max() / values.min() > 20:
        axis.set_yscale("log")


def adaptation_curves(view: View) -> Plot | None:
    """Test score after 0, 1, … inner steps."""
    panels = {
        block: drawn
        for block, members in panels_of(view).items()
        if (drawn := [(label, member, curve) for member, label in members.items() if len(curve := _adaptation(member)) > 1])
    }
    if not panels:
        return None
    looks = looks_of(view)
    figure, axes = figure_of(len(panels))
    for axis, (block, members) in zip(axes, panels.items()):
        for label, _, curve in members:
            color, marker = looks[label]
            step, mean, ci95 = np.array(curve).T
            axis.plot(step, mean, color=color, marker=marker, label=label, markevery=max(1, len(step) // 12))
            axis.fill_between(step, mean - ci95, mean + ci95, color=color, alpha=0.18, linewidth=0)
        over, what = OVER.get(block[-1], ("inner steps at test", ""))
        axis.set(title=named(block), xlabel=over, ylabel=f"test {what or members[0][1].metric}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        _log_if_wide(axis, [np.array(curve)[:, 1] for _, _, curve in members])
    legend(figure, axes)
    caption = (
        f"The test score as learning goes on, mean over {view.spread}, at what all of a group have; the band is ± ci95 over episodes."
        f"{left_out(view)}"
    )
    return Plot("adaptation_curves", "Adaptation curves", caption, figure)


def _adaptation(member: Group) -> list[tuple[float, float, float]]:
    """(step, mean, ci95), averaged over the runs, at the steps that all have which have any; NaN where one diverged."""
    curves = []
    for run in member.runs:
        points = [point for point in (run.summary["test"] or {}).get("curve") or [] if isinstance(point, dict)]
        whole = [point for point in points if isinstance(point.get("step"), int)]
        if whole:
            curves.append({point["step"]: (_number(point.get("mean")), _number(point.get("ci95"))) for point in whole})
    common = sorted(set(curves[0]).intersection(*curves[1:])) if curves else []
    return [(step, *np.mean([curve[step] for curve in curves], axis=0).tolist()) for step in common]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, float | int) else math.nan


def score_over(view: View, axis_name: str) -> Plot | None:
    """The score over ways or over shots, one panel for each setting of the rest."""
    panels = lines_of(view, axis_name)
    if not panels:
        return None
    looks = looks_of(view)
    figure, axes = figure_of(len(panels))
    for axis, (rest, lines) in zip(axes, panels.items()):
        for label, points in lines.items():
            bars(axis, [(x, member.statistic(view.by, view.metric)) for x, member in points], looks[label], label)
        _log_if_wide(axis, [line.get_ydata() for line in axis.lines])
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xticks([], minor=True)
        other = "way" if axis_name == "shot" else "shot"
        metric = view.metric or next(iter(lines.values()))[0][1].metric
        axis.set(title=f"{rest[0]}, {rest[1]}-{other}", xlabel=f"{axis_name}s", ylabel=f"{view.by} {metric}")
    legend(figure, axes)
    caption = f"The {view.by} score over {axis_name}s; bars are ± std over {view.spread}, or ± ci95 over episodes for a single run."
    if any(len(lines) == DRAWN for lines in panels.values()):
        caption += f" At most the {DRAWN} best lines of a panel are drawn."
    return Plot(f"score_over_{axis_name}", f"Score over {axis_name}s", caption, figure)
