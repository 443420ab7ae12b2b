"""Torch's protocol for a module that wraps a model, with the model's parameters and modes."""

from __future__ import annotations

from .. import host


class WrappingModule(host.HostModule):
    """A host module with the layers of its ``model``; the nodes of its graph are no layers."""

    def _named_members(self, *args, **kwargs):
        return self.model._named_members(*args, **kwargs)

    def named_modules(
        self, memo: set | None = None, prefix: str = "", remove_duplicate: bool = True
    ):
        """Yield this module and the model's layers; the nodes of the graph are no layers."""
        memo = set() if memo is None else memo
        if self not in memo:
            if remove_duplicate:
                memo.add(self)
            yield prefix, self
            yield from self.model.named_modules(memo, prefix, remove_duplicate)

    def apply(self, fn) -> WrappingModule:
        """Apply a function to the model's layers, for example to initialise them; returns self."""
        self.model.apply(fn)
        return self

    def state_dict(self, *args, **kwargs):
        """Return the model's own state dict."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, *args, **kwargs):
        """Load a state dict of the plain model."""
        if self._tracing:  # the host's copy; the nodes share the model's tensors instead
            return None
        return self.model.load_state_dict(state_dict, *args, **kwargs)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        """Load the model's entries of a parent module's state dict (torch's protocol)."""
        # Torch would go on with the nodes of the graph, which have no entries.
        self._forget_trace()
        entries = {
            key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)
        }
        assign = {"assign": True} if local_metadata.get("assign_to_params_buffers") else {}
        try:
            result = self.model.load_state_dict(entries, strict=False, **assign)
        except RuntimeError as error:
            error_msgs.append(str(error))
            return
        missing_keys.extend(prefix + key for key in result.missing_keys)
        unexpected_keys.extend(prefix + key for key in result.unexpected_keys if strict)

    def train(self, mode: bool = True) -> WrappingModule:
        """Set training mode of the model and of its graph; returns self, as in torch."""
        self.model.train(mode)
        if not self._tracing:
            self._follow_modes()
        return self

    def eval(self) -> WrappingModule:
        """Set evaluation mode; returns self, as in torch."""
        return self.train(False)

    def to(self, *args, **kwargs) -> WrappingModule:
        """Move or cast the model; the graph is traced anew on next use."""
        self.model.to(*args, **kwargs)
        return self._forget_trace()

    def _apply(self, fn, *args, **kwargs) -> WrappingModule:
        if self._tracing:
            return super()._apply(fn, *args, **kwargs)
        self.model._apply(fn, *args, **kwargs)
        return self._forget_trace()

    def _forget_trace(self) -> WrappingModule:
        """Let the graph be made anew on next use; returns self."""
        raise NotImplementedError

    def _follow_modes(self) -> None:
        """Let the graph follow the model's layers, which the user may have switched one by one."""
        raise NotImplementedError
