"""Colours of methods and tasks: all can be seen on white and on black."""

from __future__ import annotations

from equipoise.lab.results.comparison import Comparison

TASK_COLORS = (
    *("#2f7fc1", "#d1602a", "#2e9a55", "#c94f6d", "#a067c8", "#8d6e63", "#d05fb0", "#7c8794", "#9a7b16", "#11918f"),
    *("#5a9bd8", "#b3541e", "#1f7a41", "#a83b57", "#8450ad", "#a98274", "#b8479a", "#5f6b78", "#b59a2c", "#2bb0ad"),
)
METHOD_COLORS = ("#7c8794", "#2f7fc1", "#d1602a", "#2e9a55", "#a067c8", "#c98a12", "#11918f", "#c94f6d")


def method_colors(comparison: Comparison) -> dict[str, str]:
    """The colour of each method; beyond the palette they repeat."""
    return {method: METHOD_COLORS[i % len(METHOD_COLORS)] for i, method in enumerate(comparison.runs)}


def task_colors(comparison: Comparison) -> dict[str, str]:
    """The colour of each task; beyond the palette they repeat."""
    return {task.name: TASK_COLORS[i % len(TASK_COLORS)] for i, task in enumerate(comparison.tasks)}
