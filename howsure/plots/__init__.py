"""Plots of a run, drawn from its `results.csv`, `timing.csv` and `scores/`, as PNG and SVG.

No plot mixes protocols. Line plots show the best methods and the baselines that every paper compares with; the heat
map, the histograms and the cost plot show all methods.
"""

from .write import write_plots

__all__ = ["write_plots"]
