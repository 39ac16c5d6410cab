"""Plots of a run, redrawn from its `results.csv`, `timing.csv` and `scores/`: PNG and SVG.

No plot mixes protocols. Where lines are drawn, they are those of the best methods and of the ones that every paper
compares with; heat map, histograms and costs show all.
"""

from .write import write_plots

__all__ = ["write_plots"]
