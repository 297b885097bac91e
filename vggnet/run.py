"""One pass through a network: what to compute (`Plan`, from shapes alone) and the pass itself (`Run`).

A plan turns the layers into steps, fusing convolution + ReLU + pooling wherever no map in between was asked for, and gives
every map its place in one arena before anything is allocated. A run owns that arena: everything that forward saved and
backward needs. Models hold weights only, so several runs of one model may be live.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from . import _C, ops
from .configs import Layer, pooled
from .rng import Purpose, Rng

FLOAT_BYTES = 4
ITEM_BYTES = {"float32": FLOAT_BYTES, "bfloat16": 2, "uint8": 1}
ALIGNMENT = 64  # of every slot in an arena, bytes

Shape = tuple[int, ...]
Precision = Literal["float32", "tf32", "bf16"]
MapType = Literal["float32", "bfloat16"]
Watch = Callable[[Layer, str], None]  # called after each operation with its layer and direction


def nbytes(shape: Sequence[int], dtype: str = "float32") -> int:
    """Bytes of a tensor of that shape."""
    return math.prod(shape) * ITEM_BYTES[dtype]


def map_type(name: str, precision: Precision) -> MapType:
    """What the map of a layer, and its gradient, is stored as: class scores and what follows them stay float32."""
    return "bfloat16" if precision == "bf16" and name not in ("fc8", "prob") else "float32"


def aligned(size: int) -> int:
    """`size` rounded up to the arena's alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Step:
    """One call of an operation: `layer` from map `source` to map `result`.

    A fused step stands for several layers; `covers` names them, the last one is `result`.
    """

    layer: Layer
    source: str
    result: str
    covers: tuple[str, ...]
    relu: bool = False
    pool: bool = False


class MemoryPlan(dict[str, int]):
    """Bytes by purpose; `total` is their sum.

    Examples
    --------
    >>> MemoryPlan(parameters=400, activations=100).total
    500
    """

    @property
    def total(self) -> int:
        """All bytes together: the peak of the allocator's counter."""
        return sum(self.values())

    def __str__(self) -> str:
        rows = [*self.items(), ("total", self.total)]
        return "\n".join(f"{name:<20} {size:>15,} bytes" for name, size in rows)


@dataclass
class Arena:
    """Places of maps in one storage: filled by `add`, fixed afterwards."""

    slots: dict[str, tuple[int, Shape, str]] = field(default_factory=dict)  # name -> offset, shape, dtype
    size: int = 0

    def add(self, name: str, shape: Shape, dtype: str = "float32") -> None:
        """Give a map a place of its own."""
        self.slots[name] = (self.size, shape, dtype)
        self.size += aligned(nbytes(shape, dtype))

    def share(self, name: str, shape: Shape, dtype: str, buffer: str) -> None:
        """Let a map lie in a buffer that was added before."""
        self.slots[name] = (self.slots[buffer][0], shape, dtype)

    def views(self, device: str) -> dict[str, Any]:
        """Allocate the storage, once, and carve it: name -> Tensor."""
        storage = _C.empty((self.size,), dtype="uint8", device=device)
        return {
            name: storage.view(offset, shape, dtype)  # type: ignore[arg-type]
            for name, (offset, shape, dtype) in self.slots.items()
        }


class Plan:
    """Steps and memory of a pass, from shapes alone.

    Parameters
    ----------
    layers : the network's layers, `vggnet.configs.layers_of`
    shape : (N, H, W, C) of the input
    taps : names of layers whose maps the caller asked for
    pool_rounding : "floor" | "ceil"
    dropout : whether dropout is applied (training with p > 0)
    keep : keep the maps that backward needs; False is for inference: two buffers take turns
    device, weight_dtype, precision : where it will run, with which weights of fc6, fc7 and fc8, and how exactly; workspaces
        depend on all three
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        shape: Shape,
        taps: Sequence[str],
        *,
        pool_rounding: str,
        dropout: bool,
        keep: bool,
        device: str,
        weight_dtype: str = "float32",
        precision: Precision = "float32",
    ) -> None:
        self.keep = keep
        self.taps = tuple(taps)
        self.pool_rounding = pool_rounding
        self.device = device
        self.weight_dtype = weight_dtype
        self.precision = precision
        self.shapes: dict[str, Shape] = {"data": shape}
        self.alias: dict[str, str] = {}  # a layer that changes nothing -> the map that stands for it
        self.steps = tuple(self._steps(layers, dropout))
        self.producer = {name: step for step in self.steps for name in step.covers}
        self.chunk = self._chunk()
        self.head = 0 if keep or self.chunk >= shape[0] else self._head()
        self.transformed = {} if keep else self._transformed_bytes()
        self.forward = self._forward_arena()

    def _steps(self, layers: Sequence[Layer], dropout: bool) -> Iterator[Step]:
        """Fuse layers into steps, and note the shape of every layer's map."""
        source, i = "data", 0
        shape = self.shapes["data"]
        while i < len(layers):
            layer, covers = layers[i], [layers[i].name]
            relu = pool = False
            if layer.kind == "dropout" and not dropout:
                self.alias[layer.name] = source
                self.shapes[layer.name] = shape
                i += 1
                continue
            shape = self._output_shape(layer, shape)
            self.shapes[layer.name] = shape

            def next_is(kind: str, covers: list[str] = covers, i: int = i) -> bool:
                after = i + len(covers)
                return after < len(layers) and layers[after].kind == kind and covers[-1] not in self.taps

            if layer.kind in ("conv", "linear") and next_is("relu"):
                relu = True
                covers.append(layers[i + 1].name)
                self.shapes[covers[-1]] = shape
                if layer.kind == "conv" and next_is("pool"):
                    pool = True
                    covers.append(layers[i + 2].name)
                    shape = self._output_shape(layers[i + 2], shape)
                    self.shapes[covers[-1]] = shape
            yield Step(layer, source, covers[-1], tuple(covers), relu, pool)
            source = covers[-1]
            i += len(covers)

    def _output_shape(self, layer: Layer, shape: Shape) -> Shape:
        if layer.kind == "conv":
            return (*shape[:3], layer.outputs)
        if layer.kind == "pool":
            n, h, w, c = shape
            return (n, pooled(h, self.pool_rounding), pooled(w, self.pool_rounding), c)
        if layer.kind == "linear":
            return (shape[0], layer.outputs)
        return shape

    def _chunk(self) -> int:
        """Images that the head takes at a time: on the CPU one for two threads, which share an image well."""
        return (
            -(-_C.get_num_threads(self.device) // 2)
            if self.device.startswith("cpu")
            else self.shapes["data"][0]
        )

    def _head(self) -> int:
        """How many of the first steps run some images at a time in inference: up to the second pooling.

        These maps are the largest: a batch's would fill the memory and no cache would hold them.
        """
        taps, head, pools = {self.resolve(tap) for tap in self.taps}, 0, 0
        for number, step in enumerate(self.steps, 1):
            if self._pools(step):
                head, pools = number, pools + 1
            if step.result in taps or pools == 2:
                break
        return head

    def dtype(self, name: str) -> MapType:
        """What a map is stored as."""
        return map_type(name, self.precision)

    def shape_of(self, step: Step, name: str) -> Shape:
        """The shape of a map as `step` sees it: of a chunk of the batch, in the head."""
        n, *rest = self.shapes[name]
        return (self.chunk if step in self.steps[: self.head] else n, *rest)

    def _transformed_bytes(self) -> dict[str, int]:
        """Convolutions of inference that take their weights transformed, and the bytes of these: result -> bytes."""
        sizes = {
            step.result: _C.conv2d_transformed_bytes(
                self.shape_of(step, step.source),
                step.layer.parameter_shapes[f"{step.layer.name}.weight"],
                device=self.device,
            )
            for step in self.steps
            if step.layer.kind == "conv"
        }
        return {result: size for result, size in sizes.items() if size}

    def workspace(self, step: Step, direction: str) -> int:
        """Bytes of scratch a step needs in one direction."""
        layer = step.layer
        if layer.kind == "conv":
            return _C.conv2d_workspace(
                self.shape_of(step, step.source),
                layer.parameter_shapes[f"{layer.name}.weight"],
                direction,  # type: ignore[arg-type]
                pool=self.pool_rounding if step.pool else False,  # type: ignore[arg-type]
                precision=self.precision,
                transformed=step.result in self.transformed,
                device=self.device,
            )
        if layer.kind == "linear":
            rows = self.shapes[step.result][0]
            return _C.linear_workspace(
                rows,
                layer.inputs,
                layer.outputs,
                direction,  # type: ignore[arg-type]
                weight_dtype=self.weight_dtype,  # type: ignore[arg-type]
                precision=self.precision,
                device=self.device,
            )
        return 0

    def _pools(self, step: Step) -> bool:
        return step.pool or step.layer.kind == "pool"

    def _forward_arena(self) -> Arena:
        """Maps in one arena: with `keep` each its own place, else two buffers in turn. Taps are tensors of their own.

        The input, which comes as float32, is rounded to what the first layer reads.
        """
        arena = Arena()
        first = ["data"] if self.dtype("data") == "bfloat16" else []
        index_shapes = {
            step.result: self.shape_of(step, step.result) for step in self.steps if self._pools(step)
        }
        if self.keep:
            for name in [*first, *(step.result for step in self.steps)]:
                if name not in self.taps:
                    arena.add(name, self.shapes[name], self.dtype(name))
            for name, shape in index_shapes.items():
                arena.add(f"{name}.index", shape, "uint8")
        else:
            inside = self.steps[: max(self.head - 1, 0)]  # the head's last map is the whole batch's
            self._share(arena, "head", {step.result: self.shape_of(step, step.result) for step in inside})
            outside = [*first, *(step.result for step in self.steps[len(inside) :])]
            self._share(
                arena, "buffer", {name: self.shapes[name] for name in outside if name not in self.taps}
            )
            arena.add("index", (max(map(math.prod, index_shapes.values()), default=0),), "uint8")
            for name, shape in index_shapes.items():
                arena.share(f"{name}.index", shape, "uint8", "index")
        scratch = max((self.workspace(step, "forward") for step in self.steps), default=0)
        arena.add("workspace", (scratch,), "uint8")
        return arena

    def _share(self, arena: Arena, name: str, shapes: Mapping[str, Shape]) -> None:
        """Give consecutive maps two buffers in turn."""
        for turn in (0, 1):
            sizes = [nbytes(shape, self.dtype(result)) for result, shape in list(shapes.items())[turn::2]]
            arena.add(f"{name}{turn}", (max(sizes, default=0),), "uint8")
        for number, (result, shape) in enumerate(shapes.items()):
            arena.share(result, shape, self.dtype(result), f"{name}{number % 2}")

    def learning(self, weights: bool | Collection[str]) -> list[Step]:
        """The steps whose weights get gradients: all that have weights, none, or those of the layers named."""
        steps = [step for step in self.steps if step.layer.parameter_shapes]
        if isinstance(weights, bool):
            return steps if weights else []
        unknown = sorted(set(weights) - {step.layer.name for step in steps})
        if unknown:
            raise ValueError(
                f"weights names {unknown[0]!r}; expected layers with weights: "
                f"{', '.join(step.layer.name for step in steps)}"
            )
        return [step for step in steps if step.layer.name in weights]

    def backward_arena(self, steps: Sequence[Step], learning: Collection[Step]) -> Arena:
        """Two buffers for gradients of maps, and scratch, for a backward pass through `steps`; `learning` of them get
        gradients of their weights, too."""
        arena = Arena()
        # From the last step on, whose gradient goes to buffer 0, as `_Backward.buffer` takes them.
        sources = [step.source for step in reversed(steps[1:])]
        sizes = [nbytes(self.shapes[name], self.dtype(name)) for name in sources]
        scratch = max(
            (
                self.workspace(step, direction)
                for step in steps
                for direction in ("backward_input", "backward_weight")
                if direction == "backward_input" or step in learning
            ),
            default=0,
        )
        arena.add("buffer0", (max(sizes[0::2], default=0),), "uint8")
        arena.add("buffer1", (max(sizes[1::2], default=0),), "uint8")
        arena.add("workspace", (scratch,), "uint8")
        return arena

    def output_bytes(self) -> int:
        """Bytes of the maps that are handed to the caller."""
        taps = dict.fromkeys(self.resolve(tap) for tap in self.taps)
        return sum(nbytes(self.shapes[tap], self.dtype(tap)) for tap in taps)

    def resolve(self, name: str) -> str:
        """The map that stands for layer `name`."""
        return self.alias.get(name, name)


class Run:
    """A forward pass and what backward needs of it. Made by `VGG.run`; see there."""

    def __init__(
        self,
        model: Any,
        plan: Plan,
        x: _C.Tensor,
        rng: Rng | None,
        watch: Watch = lambda layer, direction: None,
    ) -> None:
        self._model = model
        self._plan = plan
        self._rng = rng
        self._watch = watch
        self._maps: dict[str, Any] = {"data": x}
        self._multiplied: dict[str, tuple[_C.Tensor, _C.Tensor]] = {}  # layer -> its weights and biases
        self._versions = self._weight_versions()
        arena = plan.forward.views(plan.device)
        for tap in plan.taps:
            name = plan.resolve(tap)
            if name not in self._maps:
                self._maps[name] = _C.empty(plan.shapes[name], plan.dtype(name), plan.device)
        if "data" in arena:
            self._maps["data"] = arena["data"].copy_(x)
        slots = arena | self._maps
        head = plan.steps[: plan.head]
        for first in range(0, x.shape[0], plan.chunk) if head else ():
            self._forward_chunk(head, slots, first, min(first + plan.chunk, x.shape[0]))
        for step in plan.steps[plan.head :]:
            self._forward(step, slots)
            watch(step.layer, "forward")
        if plan.keep:
            self._maps = {name: slots[name] for name in slots if name != "workspace"}

    # ---------------------------------------------------------------- forward

    def _weights(self, layer: Layer) -> tuple[_C.Tensor, _C.Tensor]:
        """As the model has them for this run, which is no longer valid when they change."""
        if layer.name not in self._multiplied:
            self._multiplied[layer.name] = self._model.weights_of(layer)
        return self._multiplied[layer.name]

    def _weight_versions(self) -> list[int]:
        return [tensor.storage.version for tensor in self._model.parameters.values()]

    def _forward_chunk(self, steps: Sequence[Step], slots: Mapping[str, Any], first: int, last: int) -> None:
        """The head, for images first..last-1."""
        source, result = steps[0].source, steps[-1].result
        names = [name for step in steps for name in (step.result, f"{step.result}.index") if name in slots]
        part = {name: images(slots[name], 0, last - first) for name in names}
        part[source] = images(slots[source], first, last)
        part[result] = images(slots[result], first, last)
        part["workspace"] = slots["workspace"]
        for step in steps:
            self._forward(step, part)
            self._watch(step.layer, "forward")

    def _forward(self, step: Step, slots: Mapping[str, Any]) -> None:
        layer, x, y, scratch = step.layer, slots[step.source], slots[step.result], slots["workspace"]
        ceil_mode = self._plan.pool_rounding == "ceil"
        if layer.kind == "conv":
            w, b = self._weights(layer)
            out = (y, slots[f"{step.result}.index"]) if step.pool else y
            ops.conv2d(
                x,
                w,
                b,
                relu=step.relu,
                pool=self._plan.pool_rounding if step.pool else False,  # type: ignore[arg-type]
                precision=self._plan.precision,
                transformed=self._model.transformed_weights(layer, x.shape)
                if step.result in self._plan.transformed
                else None,
                out=out,
                workspace=scratch,
            )
        elif layer.kind == "linear":
            w, b = self._weights(layer)
            precision = self._plan.precision
            ops.linear(flat(x), w, b, relu=step.relu, precision=precision, out=y, workspace=scratch)
        elif layer.kind == "pool":
            ops.max_pool2d(x, ceil_mode=ceil_mode, out=(y, slots[f"{step.result}.index"]))
        elif layer.kind == "relu":
            ops.relu(x, out=y)
        elif layer.kind == "lrn":
            ops.lrn(x, out=y)
        elif layer.kind == "dropout":
            assert self._rng is not None
            ops.dropout(x, self._model.dropout, self._rng.seed, self._rng.rows, _purpose(layer), out=y)
        else:
            ops.softmax(x, out=y)

    # ---------------------------------------------------------------- maps

    @property
    def logits(self) -> _C.Tensor:
        """Class scores before soft-max, (N, classes): the map of fc8."""
        return self["fc8"]

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names that ``run[name]`` knows, in order."""
        return tuple(name for name in self._plan.shapes if name != "data")

    def __getitem__(self, name: str) -> _C.Tensor:
        """The map of a layer. One inside a fused step is computed again from that step's input.

        Raises
        ------
        KeyError
            If the run has no such layer, or was made with ``keep=False`` and without this layer in `layers`.
        """
        if name not in self._plan.shapes:
            raise KeyError(f"this run has no layer {name!r}; it has {', '.join(self.layer_names)}")
        name = self._plan.resolve(name)
        if name in self._maps:
            return self._maps[name]  # type: ignore[no-any-return]
        step = self._plan.producer[name]
        if not self._plan.keep:
            raise KeyError(f"the map of {name!r} was not kept; name it in layers=, or run with keep=True")
        self._check_weights()
        w, b = self._weights(step.layer)
        x, relu = self._maps[step.source], name != step.layer.name
        precision = self._plan.precision
        if step.layer.kind == "linear":
            return ops.linear(flat(x), w, b, relu=relu, precision=precision)
        return ops.conv2d(x, w, b, relu=relu, precision=precision)  # type: ignore[no-any-return]

    def _check_weights(self) -> None:
        if self._weight_versions() != self._versions:
            raise RuntimeError("the model's weights changed since this run's forward pass; make a new run")

    # ---------------------------------------------------------------- backward

    def backward(
        self,
        gradients: Mapping[str, Any],
        *,
        weights: bool | Collection[str] = True,
        input: bool = False,
        grads: Mapping[str, _C.Tensor] | None = None,
        accumulate: bool = False,
        ready: Callable[[tuple[str, ...]], None] | None = None,
    ) -> tuple[dict[str, _C.Tensor], _C.Tensor | None]:
        """Gradients of a scalar, given its gradients with respect to some layers' maps.

        Parameters
        ----------
        gradients : mapping of layer name to an array of that map's shape
            Where the scalar depends on several maps, their contributions add up.
        weights : bool or names of layers
            Compute gradients of weights and biases: of all layers, none, or these; the pass ends at the lowest of them.
        input : bool
            Compute the gradient with respect to the input.
        grads : mapping of parameter name to Tensor, optional
            Where to put the gradients; allocated when not given.
        accumulate : bool
            Add to `grads` instead of overwriting.
        ready : callable, optional
            Called with the names of a layer's gradients as soon as they are final (fc8's first).

        Returns
        -------
        (grads, dx)
            Gradients by parameter name, of the layers at or below those in `gradients`; and the gradient with respect to
            the input, (N, H, W, C), or None.

        Raises
        ------
        ValueError
            For an unknown layer, a wrong shape, or a run that kept nothing (``keep=False``).
        RuntimeError
            If weights changed since the forward pass.

        Notes
        -----
        Where a ReLU's output is 0 its gradient is 0; pooling gives the gradient to the element that won.
        """
        plan = self._plan
        if plan.weight_dtype != "float32":
            raise ValueError(
                f"backward: the model has weight_dtype {plan.weight_dtype!r}, which is for inference; "
                f"load it with weight_dtype='float32'"
            )
        if not plan.keep:
            raise ValueError("backward: this run kept no maps (keep=False); run with keep=True")
        self._check_weights()
        given = self._check_gradients(gradients)
        steps = plan.steps[: 1 + max(plan.steps.index(plan.producer[name]) for name in given)]
        learning = [step for step in plan.learning(weights) if step in steps]
        if not input:
            steps = steps[steps.index(learning[0]) :] if learning else ()
        shapes = {k: v for step in learning for k, v in step.layer.parameter_shapes.items()}
        if grads is None:
            if accumulate and learning:
                raise ValueError("backward: accumulate=True needs grads= to add to")
            grads = {name: _C.empty(shape, device=plan.device) for name, shape in shapes.items()}
        missing = [name for name in shapes if name not in grads]
        if missing:
            raise ValueError(f"backward: grads has no {missing[0]!r}; expected every parameter's name")
        try:
            backward = _Backward(self, given, steps, learning, grads, accumulate, ready)
        except MemoryError as error:
            x = plan.shapes["data"]
            raise self._model.too_large(error, x, plan.taps, training=True, keep=True) from None
        dx = backward.walk(input)
        return {name: backward.done[name] for name in self._model.parameters if name in backward.done}, dx

    def _check_gradients(self, gradients: Mapping[str, Any]) -> dict[str, _C.Tensor]:
        plan = self._plan
        if not gradients:
            raise ValueError("backward: gradients is empty; expected a mapping of layer name to gradient")
        given: dict[str, _C.Tensor] = {}
        for name, gradient in gradients.items():
            if name not in plan.shapes or name in ("data", "prob"):
                raise ValueError(
                    f"backward: no gradient can enter at {name!r}; expected one of "
                    f"{', '.join(n for n in self.layer_names if n != 'prob')}"
                )
            tensor = as_input(gradient, plan.device, plan.dtype(plan.resolve(name)))
            if tensor.shape != plan.shapes[name]:
                raise ValueError(
                    f"backward: the gradient of {name!r} has shape {tensor.shape}; "
                    f"expected {plan.shapes[name]}, the shape of its map"
                )
            target = plan.resolve(name)
            if target == "data":
                raise ValueError(f"backward: {name!r} is the input itself")
            if target in given:
                total = _C.tensor(given[target], device=plan.device)
                ops.add_(total, tensor)
                tensor = total
            given[target] = tensor
        return given


class _Backward:
    """One walk back through a run's steps; two buffers hold the gradients of maps in turn."""

    def __init__(
        self,
        run: Run,
        given: dict[str, _C.Tensor],
        steps: Sequence[Step],
        learning: Collection[Step],
        grads: Mapping[str, _C.Tensor],
        accumulate: bool,
        ready: Callable[[tuple[str, ...]], None] | None,
    ) -> None:
        self.run = run
        self.plan = run._plan
        self.maps = run._maps
        self.given = given
        self.steps = steps
        self.learning = learning
        self.grads = grads
        self.accumulate = accumulate
        self.ready = ready
        self.done: dict[str, _C.Tensor] = {}
        arena = self.plan.backward_arena(steps, learning)
        views = arena.views(self.plan.device)
        self.buffers = [views["buffer1"], views["buffer0"]]
        self.workspace = views["workspace"]

    def buffer(self, name: str) -> Any:
        """A place for a map's gradient: in the buffer that does not hold the current one."""
        self.buffers.reverse()
        return self.buffers[0].view(0, self.plan.shapes[name], self.plan.dtype(name))

    def walk(self, input: bool) -> _C.Tensor | None:
        """Go from the last step to the first; returns the input's gradient if asked for."""
        d: Any = None  # gradient with respect to the current step's result
        owned = False  # whether d lies in a buffer, so that it may be changed
        for step in reversed(self.steps):
            d, owned = self.meet(step.result, d, owned)
            further = step is not self.steps[0]
            dx = None
            if further or input:
                source, plan = step.source, self.plan
                dx = (
                    self.buffer(source)
                    if further
                    else _C.empty(plan.shapes[source], plan.dtype(source), plan.device)
                )
            if d is not None or any(name in self.given for name in step.covers):
                self.step(step, d, owned, dx)
            else:
                dx = None
            d, owned = dx, dx is not None
        return d if input else None

    def meet(self, name: str, d: Any, owned: bool) -> tuple[Any, bool]:
        """Add the gradient that enters at map `name`, if any, to the one that came from above."""
        entering = self.given.get(name)
        if entering is None:
            return d, owned
        if d is None:
            return entering, False
        if not owned:
            d = _C.tensor(d, device=self.plan.device)
        ops.add_(d, entering)
        return d, True

    def step(self, step: Step, d: Any, owned: bool, dx: Any) -> None:
        """Gradients of one step: to its weights, and to its input into `dx` unless that is None."""
        layer, plan, maps = step.layer, self.plan, self.maps
        if layer.kind in ("conv", "linear"):
            y: Any = maps[step.result] if step.relu else None
            index: Any = maps[f"{step.result}.index"] if step.pool else None
            if any(name in self.given for name in step.covers[:-1]):
                d, owned, y, index = self.unfuse(step, d, owned)
            if layer.kind == "conv":
                self.conv(step, d, y, index, dx)
            else:
                self.linear(step, d, owned, y, dx)
        elif dx is not None:
            if layer.kind == "pool":
                ops.max_pool2d_backward(d, maps[f"{step.result}.index"], plan.shapes[step.source], out=dx)
            elif layer.kind == "relu":
                ops.relu_backward(d, maps[step.result], out=dx)
            elif layer.kind == "lrn":
                ops.lrn_backward(d, maps[step.source], out=dx)
            else:  # dropout; nothing enters above soft-max
                rng = self.run._rng
                assert rng is not None
                p = self.run._model.dropout
                ops.dropout_backward(d, p, rng.seed, rng.rows, _purpose(layer), out=dx)
            self.run._watch(layer, "backward_input")

    def unfuse(self, step: Step, d: Any, owned: bool) -> tuple[Any, bool, None, None]:
        """Undo pooling and ReLU one by one, since gradients enter between them."""
        conv, relu = step.covers[0], step.covers[1]
        if step.pool and d is not None:
            index = self.maps[f"{step.result}.index"]
            d, owned = ops.max_pool2d_backward(d, index, self.plan.shapes[relu]), True
        if step.pool:  # without pooling the ReLU is the step's result, which has met its gradient
            d, owned = self.meet(relu, d, owned)
        if d is not None:
            d, owned = ops.relu_backward(d, self.run[relu]), True
        d, owned = self.meet(conv, d, owned)
        return d, owned, None, None

    def conv(self, step: Step, d: Any, y: Any, index: Any, dx: Any) -> None:
        layer, x = step.layer, self.maps[step.source]
        if step in self.learning:
            ops.conv2d_backward_weight(
                d,
                x,
                layer.window,
                y=y,
                index=index,
                precision=self.plan.precision,
                out=self.out(layer),
                accumulate=self.accumulate,
                workspace=self.workspace,
            )
            self.finish(layer)
        if dx is not None:
            w, _ = self.run._weights(layer)
            ops.conv2d_backward_input(
                d,
                w,
                y=y,
                index=index,
                input_shape=x.shape,
                precision=self.plan.precision,
                out=dx,
                workspace=self.workspace,
            )
            self.run._watch(layer, "backward_input")

    def linear(self, step: Step, d: Any, owned: bool, y: Any, dx: Any) -> None:
        layer, x = step.layer, self.maps[step.source]
        if y is not None:
            d = ops.relu_backward(d, y, out=d if owned else None)
        if step in self.learning:
            ops.linear_backward_weight(
                d,
                flat(x),
                precision=self.plan.precision,
                out=self.out(layer),
                accumulate=self.accumulate,
                workspace=self.workspace,
            )
            self.finish(layer)
        if dx is not None:
            w, _ = self.run._weights(layer)
            ops.linear_backward_input(
                d, w, precision=self.plan.precision, out=flat(dx), workspace=self.workspace
            )
            self.run._watch(layer, "backward_input")

    def out(self, layer: Layer) -> tuple[_C.Tensor, _C.Tensor]:
        return self.grads[f"{layer.name}.weight"], self.grads[f"{layer.name}.bias"]

    def finish(self, layer: Layer) -> None:
        """Note a layer's gradients as final, and tell whoever waits for them."""
        self.run._watch(layer, "backward_weight")
        names = tuple(layer.parameter_shapes)
        self.done.update((name, self.grads[name]) for name in names)
        if self.ready is not None:
            self.ready(names)


def images(x: _C.Tensor, first: int, last: int) -> _C.Tensor:
    """Images first..last-1 of a batch, in place."""
    image = nbytes(x.shape[1:], x.dtype)
    return x.view(first * image, (last - first, *x.shape[1:]), x.dtype)


def flat(x: _C.Tensor) -> _C.Tensor:
    """A batch of maps as rows, (N, H * W * C): what a linear layer takes."""
    return x.reshape((x.shape[0], math.prod(x.shape[1:])))


def _purpose(layer: Layer) -> Purpose:
    return {"drop6": Purpose.DROP6, "drop7": Purpose.DROP7}[layer.name]


def as_input(x: Any, device: str, dtype: MapType = "float32") -> _C.Tensor:
    """A tensor of that dtype on `device`: `x` itself when it is one, else a copy that the caller can't change any more."""
    if isinstance(x, _C.Tensor):
        return x.to(device=device, dtype=dtype)
    return _C.tensor(np.asarray(x) if isinstance(x, (list, tuple)) else x, dtype=dtype, device=device)
