"""The registry of bounding methods for ``compute_bounds``, ``certify``, command line and docs."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidArgumentError
from ..utils.hints import did_you_mean

HOST, VERIFIER = "auto_LiRPA", "verifier"


@dataclass(frozen=True)
class Method:
    """A way to bound a network's outputs, or to prove margins positive.

    Args:
        name: Its name in settings and results.
        engine: The engine that bounds: :data:`HOST`, or :data:`VERIFIER`, this package's own for
            piecewise-linear networks, which takes fixed weights in eval mode and has no gradients.
        summary: One line for tables.
        aliases: Other names, in any case.
        options: Options of ``compute_region_bounds`` for it beside ``bound_lower`` and
            ``bound_upper``.
        bounds: Whether ``compute_bounds`` knows it; branch and bound proves margins only.
        faster: The method that ``certify`` runs instead where it can: the same relaxation.

    Example:
        >>> method_of("alpha-crown").name, method_of("SDP-CROWN").engine
        ('CROWN-Optimized', 'verifier')
    """

    name: str
    engine: str
    summary: str
    aliases: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()
    bounds: bool = True
    faster: str | None = None


_NODE, _STOP = frozenset({"final_node_name"}), frozenset({"enough"})

#: The methods by name, cheap ones first.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("IBP", HOST, "interval arithmetic from exact first layers", options=_NODE),
        Method("Lipschitz", VERIFIER, "the clean margin less what Lipschitz constants allow"),
        Method(
            "CROWN-IBP",
            HOST,
            "CROWN with intermediate bounds by IBP",
            ("IBP+backward", "IBP+CROWN"),
            _NODE,
        ),
        Method(
            "CROWN",
            HOST,
            "linear bounds of ReLUs, propagated backward",
            ("backward",),
            _NODE,
            faster="Sparse-CROWN",
        ),
        Method(
            "Sparse-CROWN",
            VERIFIER,
            "CROWN of unstable neurons, each through its receptive field",
            options=_STOP,
        ),
        Method("CROWN-Optimized", HOST, "CROWN with optimised slopes", ("alpha-CROWN",), _NODE),
        Method(
            "SDP-CROWN",
            VERIFIER,
            "ReLU layers relaxed over interval and l_2 ball together, optimised",
            options=_STOP,
        ),
        Method(
            "SDP-CROWN-Optimized",
            VERIFIER,
            "SDP-CROWN with optimised intermediate bounds",
            options=_STOP,
        ),
        Method("BaB", VERIFIER, "branch and bound on top of SDP-CROWN", bounds=False),
    )
}


def canonical_name(method: object) -> str:
    """Return the registry's name of a method in any spelling; "" for an unknown method.

    Example:
        >>> canonical_name("backward"), canonical_name("forward")
        ('CROWN', '')
    """
    spelling = str(method).lower()
    for entry in METHODS.values():
        if spelling in map(str.lower, (entry.name, *entry.aliases)):
            return entry.name
    return ""


def method_of(method: object) -> Method:
    """Return a method by its name or an alias, in any case.

    Raises:
        InvalidArgumentError: There is none, or it gives no bounds; the message names the nearest.
    """
    name = canonical_name(method) if isinstance(method, str) else ""
    usable = [entry.name for entry in METHODS.values() if entry.bounds]
    if name and METHODS[name].bounds:
        return METHODS[name]
    if name:
        raise InvalidArgumentError(
            f"method={method!r} proves margins and gives no bounds; use certify or "
            f"BoundedModule.branch_and_bound, or one of {', '.join(usable)}"
        )
    hint = did_you_mean(method, usable, sentence=False)
    raise InvalidArgumentError(f"method={method!r} is unknown;{hint} use {', '.join(usable)}")
