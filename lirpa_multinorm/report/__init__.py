"""Tables in Markdown and figures in PNG, of results, training logs and recorded certifications."""

from ..utils.statistics import mean_interval
from .bars import grouped_bars, stacked_bars
from .certified import certification_report
from .curves import has_curves, learning_curves, line_chart
from .scatter import scatter_chart
from .tables import markdown_table

__all__ = [
    "certification_report",
    "grouped_bars",
    "has_curves",
    "learning_curves",
    "line_chart",
    "markdown_table",
    "mean_interval",
    "scatter_chart",
    "stacked_bars",
]
