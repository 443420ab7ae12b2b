"""The only door to auto_LiRPA ("the host"): imports, shims, and the internals that we rely on.

Nothing else in the package imports auto_LiRPA or asks for its version. Differences between versions
are detected by their features, never by version numbers.
"""

from ._load import (
    DEFAULT_OPTIONS,
    BoundedTensor,
    HostModule,
    Patches,
    Perturbation,
    PerturbationLpNorm,
    eyeC,
    namespace,
    version,
)
from .batch_norm import Statistics, hold_batch_statistics, set_batch_statistics
from .distance import BoundLinfDistance
from .faults import host_fault
from .intervals import (
    last_relu_bounds,
    nan_nodes,
    relu_input_intervals,
    shrink_relu,
    without_nan_search,
)
from .latent import latent_nodes, node_interval, nodes_behind, run_behind
from .nodes import (
    RESHAPES,
    FirstLayer,
    chain_kinds,
    first_layers,
    has_perturbed_weights,
    kernel_options,
    layer_constants,
    layer_weight,
    merge_specification,
    propagate_box,
    refuses_specification,
    run_chain,
)
from .patches import shaped_bound, unfold
from .trace import follow_modes, mode_owners, share_tensors, tracing

#: Operators that the host does not have, by their names in a graph.
OPERATORS = {"lirpa_multinorm::LinfDistance": BoundLinfDistance}

__all__ = [
    "BoundLinfDistance",
    "BoundedTensor",
    "DEFAULT_OPTIONS",
    "FirstLayer",
    "HostModule",
    "OPERATORS",
    "Patches",
    "Perturbation",
    "PerturbationLpNorm",
    "RESHAPES",
    "Statistics",
    "chain_kinds",
    "eyeC",
    "first_layers",
    "follow_modes",
    "has_perturbed_weights",
    "hold_batch_statistics",
    "host_fault",
    "kernel_options",
    "last_relu_bounds",
    "latent_nodes",
    "layer_constants",
    "layer_weight",
    "merge_specification",
    "mode_owners",
    "namespace",
    "nan_nodes",
    "node_interval",
    "nodes_behind",
    "propagate_box",
    "refuses_specification",
    "relu_input_intervals",
    "run_behind",
    "run_chain",
    "set_batch_statistics",
    "shaped_bound",
    "share_tensors",
    "shrink_relu",
    "tracing",
    "unfold",
    "version",
    "without_nan_search",
]
