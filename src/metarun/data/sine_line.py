"""Sine waves and lines, half and half: a few noisy points may be read as either, and a learner that knows only one reading is often wrong.
The ambiguous regression of Finn, Xu, Levine 2018 (PLATIPUS), arXiv:1806.02817, section 5.1."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le

from metarun.data.episodes import draws
from metarun.data.sinusoid import Interval, Sinusoid, SinusoidEpisodes, check_intervals, scale
from metarun.problem import EpisodeSpec

LINE, WHICH = 14, 15  # streams of draws, apart from those of waves


class SineLineEpisodes(SinusoidEpisodes):
    """Waves A sin(x - b), and lines slope · x + intercept, where a task is one with probability ``lines``."""

    def __init__(self, data: SineLine, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device) -> None:
        super().__init__(data.amplitude, data.phase, data.domain, data.noise, split, spec, seed, device)
        self.slope, self.intercept, self.lines = data.slope, data.intercept, data.lines

    def parameters(self, keys: np.ndarray) -> list[np.ndarray]:
        """Amplitude, phase, slope and intercept [B, 1]; a line has amplitude 0, a wave slope and intercept 0."""
        amplitude, phase = super().parameters(keys)
        line, straight = draws(keys, LINE, (2,)), draws(keys, WHICH, (1,)) < self.lines
        slope, intercept = scale(line[:, :1], self.slope), scale(line[:, 1:], self.intercept)
        return [np.where(straight, 0, amplitude), phase, np.where(straight, slope, 0), np.where(straight, intercept, 0)]

    def function(self, x: np.ndarray, *parameters: np.ndarray) -> np.ndarray:
        amplitude, phase, slope, intercept = parameters
        return super().function(x, amplitude, phase) + slope * x + intercept


class SineLine(Sinusoid):
    """Waves of random amplitude and phase among lines of random slope and intercept; regression of one number on one number.

    Args:
        seed, amplitude, phase, domain, noise: as of ``Sinusoid``.
        slope, intercept: [low, high] of a line's.
        lines: the share of lines among tasks, 0..1.

    Raises:
        UserError: an interval is empty or not finite.
    """

    def __init__(self, seed: int, *, slope: Interval, intercept: Interval, lines: Annotated[float, Ge(0), Le(1)], **of_waves: Any) -> None:
        super().__init__(seed, **of_waves)
        check_intervals(slope=slope, intercept=intercept)
        self.slope, self.intercept, self.lines = slope, intercept, lines

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> SineLineEpisodes:
        self.check_split(split)
        return SineLineEpisodes(self, split, spec, seed, device)
