"""Read logits, embedding and maps from any classifier, benchmark network or not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from itrd.errors import UserError, first_line
from itrd.models.adapt import Adapted
from itrd.models.base import FeatureNet, Outputs

Observer = Callable[[Tensor, bool], Outputs]


def observer(net: nn.Module) -> Observer:
    """Return a function ``(images, preact) -> Outputs`` for a network.

    * A :class:`FeatureNet` offers everything.
    * A network with the calling convention ``net(x, is_feat=True, preact=...) -> (features, logits)`` of the
      existing benchmark scripts likewise.
    * Any other module: the embedding is the input of its last linear layer, if it has one; there are no maps
      (:func:`itrd.models.taps.match_taps` finds some).
    """
    if isinstance(net, Adapted):
        return through(net, observer(net.net))
    net = plain(net)
    if isinstance(net, FeatureNet):
        return net.observe
    if has_own_features(net):
        return _OwnFeatures(net)
    return TapObserver(net, ())


def through(net: nn.Module, observe: Observer) -> Observer:
    """Let images pass a network's adapter, if it has one, on their way to the function that observes what is inside."""
    return _Through(net, observe) if isinstance(net, Adapted) else observe


# Objects that hold their network, so that a copy of what holds both observes the copy of the network.


class _OwnFeatures:
    """Observes a network of the benchmark scripts' calling convention."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def __call__(self, images: Tensor, preact: bool) -> Outputs:
        features, logits = self._net(images, is_feat=True, preact=preact)
        return Outputs(logits, features[-1].flatten(1), tuple(features[1:-1]), features[0])


class _Through:
    """Observes what is behind an adapter."""

    def __init__(self, net: Adapted, observe: Observer) -> None:
        self._net, self._observe = net, observe

    def __call__(self, images: Tensor, preact: bool) -> Outputs:
        return self._observe(self._net.adapt(images), preact)


def plain(net: nn.Module) -> nn.Module:
    """Return a network without what is wrapped around it: its adapter, and ``torch.compile``.

    Features are read with hooks, which a compiled graph does not call.
    """
    net = net.net if isinstance(net, Adapted) else net
    original = getattr(net, "_orig_mod", net)
    return original if isinstance(original, nn.Module) else net


def has_own_features(net: nn.Module) -> bool:
    """Whether a network offers maps itself, see :func:`observer`."""
    return isinstance(net, FeatureNet) or "is_feat" in inspect.signature(net.forward).parameters


def last_linear(net: nn.Module) -> str | None:
    """Path of a network's last linear layer, its classifier; None if it has none."""
    return next((name for name, m in reversed(list(net.named_modules())) if isinstance(m, nn.Linear)), None)


def logits_of(output: Any) -> Tensor:
    """Return the logits (B, K) of what a classifier returned: themselves, or an object or a mapping that has them.

    Raises:
        UserError: it is neither a tensor nor has ``logits``.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"a classifier must return logits, or an object with .logits; this one returned {type(output).__name__}; "
            "wrap it in a module whose forward() returns the logits alone"
        )
    return logits


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor of what a module returned: itself, or of a tuple, a list or a mapping; None if there is none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = output.values()
    elif not isinstance(output, (tuple, list)):
        return None
    return next((value for value in output if isinstance(value, Tensor)), None)


@contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """Put a network into eval mode; then give every module its mode back."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        net.train(modes[net])  # a module may do more here than to note its mode
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def examined(role: str, net: nn.Module, images: Tensor) -> Iterator[None]:
    """Put a network into eval mode, without gradient, for a first look; then give every module its mode back.

    Raises:
        UserError: the network fails on the images, which are not of a kind that it takes, or returns no logits.
    """
    shape = "x".join(map(str, images.shape[1:]))
    flags = {"teacher": " or add --teacher_size", "student": " or another --image_size"}
    advice = f"choose another network{flags.get(role, '')}"
    kind = next((p.dtype for p in net.parameters() if p.is_floating_point()), images.dtype)
    if kind != images.dtype:
        mend = (
            ".float() makes the weights float32"
            if images.dtype == torch.float32
            else "bring both to one type"
        )
        advice = f"its weights are {kind} and the images {images.dtype}; {mend}"
    with (
        in_eval_mode(net),
        torch.no_grad(),
        failing(role, net, f"does not take images of {shape}", advice),
    ):
        yield


@contextmanager
def failing(role: str, net: nn.Module, what: str, advice: str) -> Iterator[None]:
    """Say in one sentence which network fails, in what, and what to do.

    Raises:
        UserError: the network fails.
    """
    name = f"the {role} {type(plain(net)).__name__}"
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError, AttributeError) as error:
        if "deterministic" in str(error):  # no fault of the network
            raise
        reason = first_line(error)
        raise UserError(f"{name} {what}: {reason}; {advice}") from error


# --- hooks -----------------------------------------------------------------------------------------------


EMBEDDING = "embedding="  # marks the tap whose output is the embedding


@dataclass(frozen=True)
class Tap:
    """One place of a network, and how what it gives becomes a map.

    Attributes:
        path: of the module.
        shape: (C, H, W) of the map, for the images it was found with.
        layout: order of the axes: ``nchw``, ``nhwc`` (Swin), or ``tokens`` (B, N, C), row by row.
        prefix: tokens before those of the image, which are left out.
        overwritten: the network changes the output in place afterwards, so it is copied first.
    """

    path: str
    shape: tuple[int, int, int]
    layout: Literal["nchw", "nhwc", "tokens"] = "nchw"
    prefix: int = 0
    overwritten: bool = False

    def map(self, value: Tensor) -> Tensor:
        """Bring an output of the module to (B, C, H, W)."""
        if self.layout == "nhwc":
            return value.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            return value[:, self.prefix :].transpose(1, 2).unflatten(2, self.shape[1:])
        return value


class TapObserver:
    """Reads maps and embedding of a network with hooks that live for one forward pass.

    A module that is called several times in a pass gives its last output.

    Args:
        net: the network.
        taps: where the maps are, shallow to deep.
        embedding: path of the module whose output is the embedding; None for the input of the last linear layer,
            where there is one.
    """

    def __init__(self, net: nn.Module, taps: Sequence[Tap], embedding: str | None = None) -> None:
        self._net = net
        self._taps = [(tap, net.get_submodule(tap.path)) for tap in taps]
        self._embedding = None if embedding is None else net.get_submodule(embedding)
        last = last_linear(net) if embedding is None else None
        self._last = None if last is None else net.get_submodule(last)

    def __call__(self, images: Tensor, preact: bool) -> Outputs:
        """Run the network on images (B, C, H, W); ``preact`` has no effect."""
        seen: dict[str, Tensor] = {}

        def keep(key: str, copy: bool = False) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                value = first_tensor(output)
                if value is not None:
                    seen[key] = value.clone() if copy else value

            return hook

        def keep_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[EMBEDDING] = inputs[0]

        hooks = [module.register_forward_hook(keep(tap.path, tap.overwritten)) for tap, module in self._taps]
        if self._embedding is not None:
            hooks.append(self._embedding.register_forward_hook(keep(EMBEDDING)))
        if self._last is not None:
            hooks.append(self._last.register_forward_pre_hook(keep_input))
        try:
            logits = logits_of(self._net(images))
        finally:
            for hook in hooks:
                hook.remove()
        embedding = seen.get(EMBEDDING)
        maps = tuple(tap.map(seen[tap.path]) for tap, _ in self._taps)
        return Outputs(logits, None if embedding is None else embedding.flatten(1), maps)
