"""The multi-norm ``BoundedModule``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Callable

import torch
from torch import Tensor, nn

from .. import host
from ..errors import InvalidArgumentError, UnsupportedModelError
from ..perturbations import Region, as_perturbations
from ..utils.memory import is_out_of_memory
from ..utils.modes import sheltered
from ..verifier.patches.offered import offering_layer
from .host_inputs import check_perturbed, guarded
from .region_module import RegionModule
from .result import Bounds

_NO_SETS = (
    "perturbations: the module has none; give them to the constructor, or pass x as a BoundedTensor"
    " with its own perturbation"
)
_SEVERAL_INPUTS = (
    "x: the module's sets are for models with one input; pass those of several inputs that are"
    " perturbed as BoundedTensor, each with its own perturbation"
)
_NO_INPUTS = "x is left out, and no call bounded(x) came before; give x, or run bounded(x) first"


class BoundedModule(RegionModule):
    """A model with bounds that hold on the union of several perturbation sets.

    It is a subclass of the host's ``BoundedModule``: a plain tensor means "around x, the module's
    perturbations", a ``BoundedTensor`` with its own perturbation means the host's own call. The
    model is traced on first use (or at once if ``global_input`` is given); parameters, buffers and
    state-dict keys are those of ``model`` at any time.

    Args:
        model: The network; takes one tensor (B, ...) and returns one tensor (B, K).
        global_input: A sample input, as the host asks for; optional.
        bound_opts: The host's bound options.
        device: As the host's; "auto" follows the model.
        verbose: As the host's.
        custom_ops: As the host's.
        perturbations: The sets, any number of ours and of the host's ``PerturbationLpNorm``.

    Raises:
        InvalidArgumentError: An argument cannot be used.
        UnsupportedModelError: An operator or the output of the model is not supported (on tracing).

    Example:
        >>> from lirpa_multinorm import PerturbationLinf, PerturbationL2Box
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1., 1.], [1., -1.]]))
        >>> sets = [PerturbationLinf(0.1), PerturbationL2Box(0.1)]
        >>> bounded = BoundedModule(model, perturbations=sets)
        >>> lb, ub = bounded.compute_bounds(torch.full((1, 2), 0.5), method="IBP")
        >>> lb.detach(), ub.detach()
        (tensor([[ 0.8000, -0.2000]]), tensor([[1.2000, 0.2000]]))
        >>> x = torch.full((1, 2), 0.5)
        >>> (lb_inf, _), (lb_2, _) = bounded.compute_norm_bounds(x, method="IBP")
        >>> lb_2.detach()
        tensor([[ 0.8586, -0.1414]])
    """

    def __init__(
        self,
        model: nn.Module,
        global_input=None,
        bound_opts: dict | None = None,
        device="auto",
        verbose: bool = False,
        custom_ops: dict | None = None,
        *,
        perturbations: Sequence | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidArgumentError(
                f"model must be a torch.nn.Module, found {type(model).__name__}"
            )
        for name, options in (("bound_opts", bound_opts), ("custom_ops", custom_ops)):
            if not isinstance(options, (Mapping, type(None))):
                raise InvalidArgumentError(
                    f"{name}={options!r} must be a dict or None; the sets are given by name: "
                    "perturbations=[...]"
                )
        model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
        if isinstance(model, BoundedModule):
            model = model.model
        super().__init__(
            model,
            {
                "bound_opts": bound_opts,
                "device": device,
                "verbose": verbose,
                "custom_ops": custom_ops,
            },
        )
        self.perturbations = perturbations
        self.__dict__.update(_host_inputs=None)
        if global_input is not None:
            self.__dict__["_last_inputs"] = (
                global_input if isinstance(global_input, tuple) else (global_input,)
            )
            self._trace_or_read(self._last_inputs)

    @property
    def perturbations(self) -> list | None:
        """The sets around plain inputs, or None."""
        return self.__dict__["_perturbations"]

    @perturbations.setter
    def perturbations(self, perturbations: Sequence | None) -> None:
        self.__dict__["_perturbations"] = (
            None if perturbations is None else as_perturbations(perturbations)
        )

    def _trace_or_read(self, x: tuple) -> None:
        """Trace at once, or check that our methods can bound what the host cannot trace."""
        try:
            self._trace_for(x)
        except UnsupportedModelError as error:
            if len(x) > 1 or is_out_of_memory(error):
                raise
            try:
                self._verified_network(torch.as_tensor(x[0]).detach())
            except UnsupportedModelError:
                if offering_layer(self.model) is None:
                    raise error from None
            warnings.warn(f"{error}; only this package's own methods bound it", stacklevel=4)

    # --- bounds -----------------------------------------------------------------------------------

    @sheltered
    def compute_bounds(
        self, x=None, aux=None, C: Tensor | None = None, method: str = "backward", *args, **kwargs
    ):
        """Bound the model's outputs on the union of the module's sets around x.

        ``lb = min over sets, ub = max over sets`` of each set's own sound bounds.

        Args:
            x: Plain inputs (B, ...): the union call. A tuple of the host's ``BoundedTensor``: the
                host's own call, with all its arguments and return values; p < inf is then bounded
                by our sets, because the host's own bounds are unsound unless a Linear or Conv comes
                first. None: the inputs of the last forward pass, with the perturbations that they
                had there.
            aux: As the host's.
            C: Specification (B, S, K); None bounds the outputs themselves.
            method: "IBP", "CROWN-IBP", "CROWN" or "CROWN-Optimized" (also "alpha-CROWN"), and for
                networks of ReLUs and affine operators "Lipschitz", "Sparse-CROWN" (CROWN of the
                unstable neurons, each through its receptive field, without gradients), "SDP-CROWN"
                or "SDP-CROWN-Optimized", which also optimises the bounds of the hidden layers; in
                any case.
            *args: The host's further positional arguments (its own call only).
            **kwargs: ``bound_lower``, ``bound_upper`` and ``final_node_name``, or whatever the
                host's own call takes.

        Returns:
            (lb, ub), each (B, S), or the output's shape without C.

        Raises:
            InvalidArgumentError: An argument cannot be used.
            NaNBoundError: A bound came out as NaN.
        """
        if self._running:  # the host calling itself
            return super().compute_bounds(x, aux, C, method, *args, **kwargs)
        if x is None and not (kwargs.get("reuse_ibp") and self._host_inputs is self._last_inputs):
            if self._last_inputs is None:
                raise InvalidArgumentError(_NO_INPUTS)
            x = self._last_inputs
        if self._is_union_call(x):
            per_set = self.compute_norm_bounds(x, C, method, *args, **kwargs)
            lower, upper = zip(*per_set)
            return _fold(torch.minimum, lower), _fold(torch.maximum, upper)
        if x is not None:
            x = x if isinstance(x, (tuple, list)) else (x,)
            self._check_perturbed(x)
            self._trace_for(x)
            self._prepare_training([tensor.detach().as_subclass(Tensor) for tensor in x])
            self.__dict__.update(_last_inputs=x, _host_inputs=x)
            x = tuple(guarded(tensor) for tensor in x)
        bounds = self._host_bounds(x, aux, C, method, *args, **kwargs)
        if kwargs.get("final_node_name") is None and x is not None:
            centers = [tensor.detach().as_subclass(Tensor) for tensor in x]
            single, (lower, upper) = self._fixed_batch is not None, bounds[:2]
            self._check_contained(centers, C, lower, upper, str(method), single)
        return bounds

    def _check_perturbed(self, x: Sequence) -> None:
        """Raise InvalidArgumentError unless the host's own call perturbs an input or a weight."""
        no_sets = self.perturbations is None or len(x) == 1
        check_perturbed(x, self.model, _NO_SETS if no_sets else _SEVERAL_INPUTS)

    @sheltered
    def compute_norm_bounds(
        self, x: Tensor | None = None, C: Tensor | None = None, method: str = "backward", **kwargs
    ) -> list[Bounds]:
        """Bound the model's outputs on each of the module's sets around x, in a single pass.

        Args:
            x: Inputs, shape (B, ...); None: those of the last forward pass.
            C: Specification (B, S, K), or None.
            method: As in :meth:`compute_bounds`.
            **kwargs: ``bound_lower``, ``bound_upper``, ``final_node_name``.

        Returns:
            A pair (lb, ub) per set, in the order of ``perturbations``.
        """
        if not self.perturbations:
            raise InvalidArgumentError(_NO_SETS)
        x = self._last_inputs if x is None else x
        if x is None:
            raise InvalidArgumentError(_NO_INPUTS)
        x = x[0] if isinstance(x, (tuple, list)) and len(x) == 1 else x
        return self.compute_region_bounds(
            [Region(x, perturbation) for perturbation in self.perturbations], C, method, **kwargs
        )

    def _is_union_call(self, x) -> bool:
        first = x[0] if isinstance(x, (tuple, list)) and len(x) == 1 else x
        return (
            self.perturbations is not None
            and isinstance(first, Tensor)
            and not isinstance(first, host.BoundedTensor)
        )

    def __reduce__(self):
        return _rebuild, (self.model, dict(self._host_arguments, perturbations=self.perturbations))


def _rebuild(model: nn.Module, arguments: dict) -> BoundedModule:
    return BoundedModule(model, **arguments)


def _fold(function: Callable, bounds: Sequence[Tensor | None]) -> Tensor | None:
    """Return the bounds of several sets folded by a function; None where there are none."""
    result = bounds[0]
    for bound in bounds[1:]:
        result = None if bound is None else function(result, bound)
    return result
