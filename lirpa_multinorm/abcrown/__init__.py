"""Problems for alpha-beta-CROWN, and its results as our records."""

from .export import export_problems
from .results import import_results

__all__ = ["export_problems", "import_results"]
