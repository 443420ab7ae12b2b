"""A module in training mode: clean passes, and bounds with their BatchNorm statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import host
from ..errors import InvalidArgumentError, NaNBoundError
from ..tracing.clean_pass import CleanPass
from ..tracing.trace_check import check_training
from ..utils.deferred import require
from ..utils.modes import sheltered
from ..verifier.lipschitz.estimate import LipschitzEstimate
from ..verifier.patches.offered import offering_layer
from .host_calls import HostCallingModule

_PASSES = 32  # between two comparisons of graph and model in training mode
_CHECKED_ROWS = 64  # of a clean batch, by which graph and model are compared in training mode


class CleanModule(HostCallingModule):
    """A traced module that computes its model's function in training mode too.

    Args:
        model: The network.
        arguments: The host's further constructor arguments.
    """

    def __init__(self, model: nn.Module, arguments: dict) -> None:
        super().__init__(model, arguments)
        self.__dict__.update(_clean=None, _passes=0, _lipschitz=None, lipschitz_vectors={})
        self.__dict__["_trusts_marks"] = False

    @sheltered
    def forward(self, *x, **kwargs):
        """Return the network's outputs, in eval mode by the graph.

        Where any layer is in training mode, the model itself runs: the clean pass, whose BatchNorm
        statistics the bounds use.
        """
        if self._tracing or self._running or kwargs:
            return super().forward(*x, **kwargs)
        # Bounds that a model offers need no graph, and neither does a clean pass.
        if not (self.is_training and offering_layer(self.model)):
            self._trace_for(x, self._fixed_batch)
        self.__dict__["_last_inputs"] = x
        if self.is_training:
            return self._pass_clean(x).output
        return super().forward(*x) if self._fixed_batch in (None, len(x[0])) else self.model(*x)

    @property
    def is_training(self) -> bool:
        """Whether any layer of the model is in training mode."""
        return any(layer.training for layer in self.model.modules())

    @sheltered
    def clean_outputs(self, *x: Tensor) -> Tensor:
        """Return the model's outputs at a batch; in training mode those of a clean pass.

        The clean pass of the last call ``bounded(x)`` is taken if it was of this batch and of this
        model, and gradients can still flow through it. A batch that has just been passed changes no
        running statistics again.

        Args:
            *x: A batch of each input, (B, ...).

        Returns:
            Outputs, as the model returns them.
        """
        last = self._clean
        if not self.is_training or last is None or self._watch is None or self._watch.is_stale():
            return self(*x)
        trusted = self._trusts_marks and last.is_untouched(self.model, x)
        if not trusted and not (last.is_of(x) and last.is_of_values(self.model)):
            return self(*x)
        if not last.is_usable(self.model, compare=False):
            last = self._pass_clean(x, update=False)
        return last.output

    @contextlib.contextmanager
    def trusting_marks(self) -> Iterator[None]:
        """Take a clean pass for one of the present weights without a look at their values.

        It is a context for a training step, in which nothing changes a tensor through ``.data`` or
        in an array beneath; other changes are noticed.
        """
        before = self._trusts_marks
        self.__dict__["_trusts_marks"] = True
        try:
            yield
        finally:
            self.__dict__["_trusts_marks"] = before

    @sheltered
    def class_falls(self, x: Tensor, norms: Sequence[float] = (2,)) -> list[Tensor]:
        """Return an **estimate**, with gradients, of the fall of ``f_i - f_k`` per unit of input.

        In training, BatchNorm normalises by the statistics of the last clean pass. The vectors of
        the power iteration are kept in ``lipschitz_vectors`` from call to call.

        Args:
            x: Inputs like the model's, (B, ...).
            norms: The norms of the input's move, 2 or 1.

        Returns:
            (K, K) per norm, zero on the diagonal.

        Raises:
            UnsupportedModelError: The model is not piecewise linear, or computes a weight from
                another.
            NaNBoundError: A constant is NaN or infinite.
        """
        if self._lipschitz is None or not self._lipschitz.is_of(x[:1]):
            self.__dict__["_lipschitz"] = LipschitzEstimate(
                self.model, x[:1], self.lipschitz_vectors
            )
        falls = self._lipschitz.class_falls(self._clean_statistics(), norms)
        for fall in falls:
            require(torch.isfinite(fall).all(), _refuse_constants)
        return falls

    def _note_change(self) -> None:
        super()._note_change()
        if self._clean is not None:
            self._clean.is_outdated = True

    def _pass_clean(self, x: Sequence, update: bool = True) -> CleanPass:
        """Make a clean pass of a batch, whose statistics the next bounds use."""
        plain = [
            value.as_subclass(Tensor) if isinstance(value, host.BoundedTensor) else value
            for value in x
        ]
        try:
            self.__dict__["_clean"] = CleanPass(self.model, plain, update)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InvalidArgumentError(
                f"x: BatchNorm in training mode cannot normalise so few inputs ({error}); give "
                "larger batches and drop a last one of a single input, or call bounded.eval()"
            ) from error
        if self._watch is not None:
            self._watch.settle()  # counters in a forward are no other model
        self.__dict__["_passes"] += 1
        if self._passes % _PASSES == 0:  # for changes later in training
            self.__dict__["_checked_modes"] = None
        return self._clean

    def _prepare_training(self, x: Sequence[Tensor]) -> None:
        """Make the graph match the model in training mode, with the last clean pass's statistics.

        Raises:
            InvalidArgumentError: See :meth:`_clean_statistics`.
            UnsupportedModelError: In training mode the model is no function, or another than in
                eval mode.
        """
        if not self.is_training:
            return
        statistics = self._clean_statistics()
        if statistics:
            x = self._clean.inputs
        modes = [layer.training for layer in self.model.modules()]
        if modes != self._checked_modes:
            rows = torch.arange(
                self._fixed_batch or min(len(x[0]), _CHECKED_ROWS), device=x[0].device
            )
            check_training(
                self.model,
                super().forward,
                [value.detach()[rows % len(value)] for value in x],
                partial(host.set_batch_statistics, self._mode_owners),
            )
            self._watch.settle()  # counters that only training moves
            self.__dict__["_checked_modes"] = modes
        host.set_batch_statistics(self._mode_owners, statistics)

    def _clean_statistics(self) -> host.Statistics:
        """Return the BatchNorm statistics of the last clean pass, made anew if it is stale.

        Raises:
            InvalidArgumentError: There was no clean pass.
        """
        if not any(
            isinstance(layer, _BatchNorm) and layer.training for layer in self.model.modules()
        ):
            return {}
        if self._clean is None:
            raise InvalidArgumentError(
                "x: BatchNorm in training mode takes its statistics from a clean pass, and there "
                "was none; call bounded(x) first, or bounded.eval()"
            )
        trusted = self._trusts_marks and self._clean.is_untouched(self.model)
        if not self._clean.is_usable(self.model, compare=not trusted):
            self._pass_clean(self._clean.inputs, update=False)
        return self._clean.statistics


def _refuse_constants() -> None:
    raise NaNBoundError(
        "the Lipschitz constants of the output are NaN or infinite; check the model's"
        " weights, or lower the learning rate"
    )
