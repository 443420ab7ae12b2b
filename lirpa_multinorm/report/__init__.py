"""Tables in Markdown and figures in PNG, of results, training logs and recorded certifications."""

from ..utils.statistics import mean_interval
from .bars import grouped_bars, stacked_bars
from .certified import certification_report
from .curves import has_curves, learning_curves, line_chart
from .images import patch_places_figure, pixel_ranges_figure
from .pair_rows import data_frame, pair_rows, write_csv
from .scatter import scatter_chart
from .tables import markdown_table

__all__ = [
    "certification_report",
    "data_frame",
    "grouped_bars",
    "has_curves",
    "learning_curves",
    "line_chart",
    "markdown_table",
    "mean_interval",
    "pair_rows",
    "patch_places_figure",
    "pixel_ranges_figure",
    "scatter_chart",
    "stacked_bars",
    "write_csv",
]
