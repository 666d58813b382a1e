"""Feature maps of any network, taken where its modules give them out.

A tap is the path of a module, as in ``net.get_submodule(path)``; what the module returns is the map. Paths may be
given; otherwise :func:`match_taps` chooses them from one traced forward pass:

1. where the network says itself which of its modules are stages (timm's ``feature_info``), or is one of a few families
   of transformers whose blocks are known, these;
2. else its modules in the order of their calls, containers opened as long as they hold three or more sizes.

Of each size the last output counts, and of the sizes the four deepest; 1x1 is no map, nor is what is larger than the
map before it. A network of one size (ViT,
DeiT, Mixer) offers all its blocks. Of two networks' lists the longer is thinned out by relative depth. There is no
stem.

``preact`` does nothing here: a map is what the tapped module returns, in the usual networks after the activation.
For methods that were published on maps before it (AB, OFD, ReviewKD's teacher), tap a module that ends before it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from itrd.errors import UserError
from itrd.models.adapt import Adapted
from itrd.models.base import Outputs
from itrd.models.observe import (
    EMBEDDING,
    Observer,
    Tap,
    TapObserver,
    examined,
    first_tensor,
    has_own_features,
    observer,
    plain,
    through,
)

MOST_MAPS = 4  # chosen automatically
MOST_PREFIX_TOKENS = 16  # class, distillation and register tokens before those of the image

# Blocks of networks whose containers mislead: Swin's stages end with the reduction to the next size, and
# EfficientNet's blocks have a third size inside, padded by hand.
_BLOCKS = {
    "transformers.models.swin": re.compile(r"(.*\.)?layers\.\d+\.blocks\.\d+"),
    "transformers.models.swinv2": re.compile(r"(.*\.)?layers\.\d+\.blocks\.\d+"),
    "transformers.models.efficientnet": re.compile(r"(.*\.)?blocks\.\d+"),
}


# --- student and teacher together ------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """What is read of one network.

    Attributes:
        names: of the maps, shallow to deep: paths of modules, or ``map 1`` ... for a network's own.
        shapes: (C, H, W) of each map.
        chosen: ``given``, ``automatic`` or ``its own``.
        observe: reads them.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    chosen: str
    observe: Observer


@dataclass(frozen=True)
class MatchedTaps:
    """The maps of two networks, pair by pair.

    Attributes:
        student: its side.
        teacher: its side.
        thinned: whether maps of one of the two were left out to make the numbers agree.
    """

    student: Side
    teacher: Side
    thinned: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """The pairs as plain values: ``student``, ``student_shape``, ``teacher``, ``teacher_shape``."""
        sides = {"student": self.student, "teacher": self.teacher}
        return [
            {
                key: value
                for name, side in sides.items()
                for key, value in ((name, side.names[i]), (f"{name}_shape", list(side.shapes[i])))
            }
            for i in range(len(self.student.names))
        ]

    def __str__(self) -> str:
        """A table: pair, path and shape of the student's map, path and shape of the teacher's."""
        lines = [["pair", "student", "C x H x W", "teacher", "C x H x W"]]
        for i, row in enumerate(self.rows(), 1):
            shapes = ["x".join(map(str, row[f"{side}_shape"])) for side in ("student", "teacher")]
            lines.append([str(i), row["student"], shapes[0], row["teacher"], shapes[1]])
        widths = [max(len(line[column]) for line in lines) for column in range(5)]
        table = [
            "  ".join(f"{text:{w}}" for text, w in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        how = f"student's maps: {self.student.chosen}; teacher's maps: {self.teacher.chosen}"
        return "\n".join([*table, how + ("; paired by relative depth" if self.thinned else "")])


def match_taps(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    student_taps: Sequence[str] | None = None,
    teacher_taps: Sequence[str] | None = None,
) -> MatchedTaps:
    """Decide which map of the student belongs to which of the teacher.

    Where one list is longer, and not given, it is thinned out: of m maps the i-th of n pairs takes number
    round(i m / n), so the deepest of both belong together.

    Args:
        student, teacher: the networks. Both are run, without gradient and in eval mode, and left in their modes.
        images: a few images (B, C, H, W), B at least 2, on the networks' device.
        student_taps, teacher_taps: paths of modules, shallow to deep; one may be ``embedding=PATH``, the module
            whose output is the embedding. None to choose automatically.

    Raises:
        UserError: a path does not exist or gives no map, a network offers none, or the numbers cannot be made equal.
    """
    found = [
        _Found.of(role, net, images, taps)
        for role, net, taps in (("student", student, student_taps), ("teacher", teacher, teacher_taps))
    ]
    counts = [len(side.taps) for side in found]
    given = [len(side.taps) for side in found if side.chosen == "given" and side.taps]
    n = max(given) if given else min(*counts, MOST_MAPS)
    sides = []
    for side in found:
        if (side.chosen == "given" and side.taps and len(side.taps) != n) or len(side.taps) < n:
            lists = "; ".join(f"{s.role}: {', '.join(t.path for t in s.taps) or 'none'}" for s in found)
            raise UserError(
                f"student and teacher need equally many taps, deep beside deep, but they have {counts[0]} and "
                f"{counts[1]} ({lists}); leave some out of the longer list of --student_taps and --teacher_taps, "
                "or give only one list, and the other is chosen to fit"
            )
        sides.append(side.side(n))
    return MatchedTaps(sides[0], sides[1], any(count != n for count in counts))


@dataclass(frozen=True)
class _Found:
    """The maps that one network offers."""

    role: str
    net: nn.Module
    taps: tuple[Tap, ...]
    chosen: str
    embedding: str | None

    @classmethod
    def of(cls, role: str, net: nn.Module, images: Tensor, paths: Sequence[str] | None) -> _Found:
        whole, net = net, plain(net)
        images = whole.adapt(images) if isinstance(whole, Adapted) else images
        maps = None if paths is None else [path for path in paths if not path.startswith(EMBEDDING)]
        marked = [path.removeprefix(EMBEDDING) for path in paths or () if path.startswith(EMBEDDING)]
        if not maps and not marked and has_own_features(net):
            with examined(role, net, images):
                own = observer(net)(images, False).maps
            taps = tuple(Tap(f"map {i}", _shape(value)) for i, value in enumerate(own, 1))
            return cls(role, whole, taps, "its own", None)
        for path in (*(maps or ()), *marked):
            _check_path(role, net, path)
        traced = trace(net, images[:2], role)
        for path in marked:
            if traced.widths.get(path) is None:
                raise UserError(
                    f"the {role}'s {EMBEDDING}{path} gives no vector (B, D); choose another module"
                )
        embedding = marked[-1] if marked else None
        if maps:
            for path in maps:
                if path not in traced.taps:
                    raise UserError(
                        f"the {role}'s tap {path!r} gives {traced.said.get(path, 'nothing: it is not called')}; a "
                        "feature map has the axes (B, C, H, W), (B, H, W, C) or, for tokens of a grid, (B, N, C)"
                    )
            return cls(role, whole, tuple(traced.taps[path] for path in maps), "given", embedding)
        return cls(role, whole, tuple(_automatic(net, traced)), "automatic", embedding)

    def side(self, n: int) -> Side:
        kept = [_nearest(i, n, len(self.taps)) for i in range(n)]
        taps = [self.taps[i] for i in kept]
        if self.chosen == "its own":
            own = observer(self.net)
            observe: Observer = own if n == len(self.taps) else _Selected(own, kept)
        else:
            observe = through(self.net, TapObserver(plain(self.net), taps, self.embedding))
        return Side(tuple(t.path for t in taps), tuple(t.shape for t in taps), self.chosen, observe)


class _Selected:
    """Some of the maps that a network offers itself."""

    def __init__(self, observe: Observer, kept: Sequence[int]) -> None:
        self._observe, self._kept = observe, kept

    def __call__(self, images: Tensor, preact: bool) -> Outputs:
        seen = self._observe(images, preact)
        return seen._replace(maps=tuple(seen.maps[i] for i in self._kept))


def _nearest(i: int, n: int, m: int) -> int:
    """Place, from 0, among m maps of the i-th (from 0) of n pairs: round((i + 1) m / n) - 1, halves up."""
    return (2 * (i + 1) * m + n) // (2 * n) - 1


def _check_path(role: str, net: nn.Module, path: str) -> None:
    names = [name for name, _ in net.named_modules() if name]
    if path not in names:
        close = difflib.get_close_matches(path, names, n=3, cutoff=0.4)
        top = [name for name in names if "." not in name]
        advice = (
            f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {', '.join(top[:12])}"
        )
        raise UserError(f"the {role} {type(net).__name__} has no module {path!r}; {advice}")


# --- one traced forward pass -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """What the modules of a network gave in one forward pass.

    Attributes:
        taps: path -> tap, for modules whose output is a map, in the order in which they ended.
        widths: path -> D, for modules whose output is (B, D) or (B, D, 1, 1).
        said: path -> the output in words, for errors.
        children: path of a called module -> paths of the called modules directly inside it, in that order.
        size: (H, W) of the images.
    """

    taps: dict[str, Tap]
    widths: dict[str, int]
    said: dict[str, str]
    children: dict[str, list[str]]
    size: tuple[int, int]

    def shows_whole_image(self, tap: Tap) -> bool:
        """Whether a map has more than one place, and the image's proportions: it is no pooled vector, no window."""
        return _area(tap) > 1 and _proportional(*tap.shape[1:], self.size)


def trace(net: nn.Module, images: Tensor, role: str = "network") -> Trace:
    """Run a network on images (B, C, H, W) and note what every module gives, without gradient, in eval mode."""
    seen: dict[str, tuple[Tensor, int]] = {}
    said: dict[str, str] = {}

    def look(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            value = first_tensor(output)
            seen.pop(path, None)  # of several calls the last one counts, also for the order
            said[path] = type(output).__name__ if value is None else f"a tensor of shape {tuple(value.shape)}"
            if value is not None:
                seen[path] = (value, value._version)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in net.named_modules() if name]
    try:
        with examined(role, net, images):
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    batch, size = images.shape[0], (images.shape[2], images.shape[3])
    grids = _grids([value.shape for value, _ in seen.values() if value.ndim == 4], size)
    taps = {}
    for path, (value, version) in seen.items():
        tap = _tap(path, value.shape, batch, size, grids)
        if tap is not None:
            taps[path] = replace(tap, overwritten=value._version != version)
    widths = {
        path: value.shape[1]
        for path, (value, _) in seen.items()
        if value.ndim >= 2 and value.shape[0] == batch and value[0].numel() == value.shape[1]
    }
    children: dict[str, list[str]] = {}
    for path in seen:
        parent = path.rpartition(".")[0]
        while parent and parent not in seen:
            parent = parent.rpartition(".")[0]
        children.setdefault(parent, []).append(path)
    return Trace(taps, widths, said, children, size)


def _tap(
    path: str, shape: torch.Size, batch: int, size: tuple[int, int], grids: list[tuple[int, int]]
) -> Tap | None:
    if shape[0] != batch:
        return None
    if len(shape) == 4:
        _, a, b, c = shape
        # Sides in the images' proportion are height and width.
        if _proportional(a, b, size) and not _proportional(b, c, size):
            return Tap(path, (c, a, b), "nhwc")
        return Tap(path, (a, b, c))
    if len(shape) == 3:
        for height, width in grids:
            if 0 <= shape[1] - height * width <= MOST_PREFIX_TOKENS:
                return Tap(path, (shape[2], height, width), "tokens", shape[1] - height * width)
    return None


def _proportional(height: int, width: int, size: tuple[int, int]) -> bool:
    return abs(height * size[1] - width * size[0]) < max(size)


def _grids(shapes: list[torch.Size], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Grids that tokens may form: of the convolutions' outputs, and halved again and again; large ones first."""
    grids = set()
    for _, _, height, width in shapes:
        while _proportional(height, width, size) and height * width > 1:
            grids.add((height, width))
            height, width = -(-height // 2), -(-width // 2)
    return sorted(grids, reverse=True)


def _shape(value: Tensor) -> tuple[int, int, int]:
    _, c, h, w = value.shape
    return c, h, w


# --- automatic choice ------------------------------------------------------------------------------------


def _automatic(net: nn.Module, traced: Trace) -> list[Tap]:
    whole = {path: tap for path, tap in traced.taps.items() if traced.shows_whole_image(tap)}
    paths = _declared(net, whole) or _known(net, whole) or _chain("", traced.children, whole)
    last: dict[tuple[int, ...], str] = {}
    for path in paths:
        # What is larger than the map before it was only enlarged, as VGG's is for its classifier.
        if path in whole and _area(whole[path]) <= min(map(math.prod, last), default=_area(whole[path])):
            last[whole[path].shape[1:]] = path
    if len(last) == 1:
        paths = _blocks(net, whole)
        return [whole[path] for path in (paths if len(paths) > 1 else last.values())]
    return [tap for path, tap in whole.items() if path in last.values()][-MOST_MAPS:]


def _area(tap: Tap) -> int:
    return tap.shape[1] * tap.shape[2]


def _declared(net: nn.Module, taps: Mapping[str, Tap]) -> list[str]:
    """The stages of a timm network, if it names them and each gives a map."""
    info = getattr(net, "feature_info", None)
    paths = [entry.get("module", "") for entry in info] if isinstance(info, list) else []
    return paths if all(path in taps for path in paths) else []


def _known(net: nn.Module, taps: Mapping[str, Tap]) -> list[str]:
    pattern = _BLOCKS.get(type(net).__module__.rpartition(".")[0])
    return [path for path in taps if pattern.fullmatch(path)] if pattern else []


def _chain(parent: str, children: Mapping[str, list[str]], taps: Mapping[str, Tap]) -> list[str]:
    """Modules below ``parent`` in the order of their calls; those that hold three or more sizes are opened."""
    paths = []
    for path in children.get(parent, []):
        inside = {tap.shape[1:] for name, tap in taps.items() if name.startswith(f"{path}.")}
        paths += _chain(path, children, taps) if len(inside) >= 3 else [path]
    return paths


def _blocks(net: nn.Module, taps: Mapping[str, Tap]) -> list[str]:
    """The most numerous modules of one class side by side that give maps: a transformer's blocks."""
    best: list[str] = []
    for name, container in net.named_modules():
        if isinstance(container, (nn.Sequential, nn.ModuleList)):
            paths = [f"{name}.{child}".lstrip(".") for child, _ in container.named_children()]
            classes = {type(module) for module in container.children()}
            if len(classes) == 1 and len(paths) > len(best) and all(path in taps for path in paths):
                best = paths
    return best
