"""Tables in Markdown and figures in PNG, from rows of results and logs of training runs."""

from ..intervals import mean_interval
from .bars import grouped_bars
from .curves import has_curves, learning_curves, line_chart
from .scatter import scatter_chart
from .tables import markdown_table

__all__ = ["grouped_bars", "has_curves", "learning_curves", "line_chart", "markdown_table", "mean_interval",
           "scatter_chart"]
