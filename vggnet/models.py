"""The networks A, A-LRN, B, C, D and E of the paper as one class (paper, sections 2 and 3.2)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _C, cuda, ops
from .configs import (
    CONFIGS,
    STRIDE,
    Layer,
    count_parameters,
    layers_of,
    parameter_shapes,
)
from .dense import DENSE_MEMORY, dense_pass
from .init import INITS, initialise
from .memory import free_memory, memory_plan
from .rng import Rng
from .run import MemoryPlan, Plan, Precision, Run, Step, as_input, nbytes

if TYPE_CHECKING:
    import numpy.typing as npt

log = logging.getLogger("vggnet")

ILSVRC_MEAN = (123.68, 116.779, 103.939)  # RGB, 0..255 scale: of the authors' released models
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, which turns an RGB mean into that of gray images
FORMAT = "vggnet-1"
WEIGHT_DTYPES = ("float32", "bfloat16")
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")
BOX_NUMBERS = 4  # centre x and y, width, height
HEADS = ("classes", "SCR", "PCR")


class VGG:
    """A VGG network: weights, and how images become its input.

    Parameters
    ----------
    config : "A" | "A-LRN" | "B" | "C" | "D" | "E"
        A column of the paper's table 1.
    num_classes : int
        Classes, each an output of fc8 unless `head` says otherwise.
    input_size : int
        Height and width that `forward` takes, a multiple of 32.
    in_channels : 3 (RGB) | 1 (gray)
    fc_width : int
        Outputs of fc6 and fc7; 4096 in the paper, fewer suit small data sets.
    dropout : float
        Probability that dropout after relu6 and relu7 sets a value to 0 in training (paper, section 3.1).
    init : "paper" | "paper-variance" | "xavier" | "he" | None
        First weights, see `vggnet.init.initialise`; None leaves zeros.
    seed : int
        Seed of the first weights.
    mean : sequence of in_channels floats
        Mean of the training set on the 0..255 scale, subtracted from every pixel (paper, section 2.1). The default is the
        RGB mean of ILSVRC-2012; a gray model takes its luma.
    classes : sequence of str, optional
        Names of the classes.
    pool_rounding : "floor" | "ceil"
        How odd heights and widths are halved; "ceil" is Caffe's. Only maps of images that are no multiple of 32 differ.
    precision : "float32" | "tf32" | "bf16"
        "tf32" allows a GPU's tensor cores, which round the factors of products to 10 bits of fraction, in convolutions and
        linear layers: see docs/cuda.md. Weights, maps and sums stay float32, and the CPU computes as ever. "bf16", on CUDA
        devices only, stores maps and their gradients as bfloat16 and multiplies with weights rounded to it; weights, their
        gradients, sums, class scores and the loss stay float32.
    device : str
    weight_dtype : "float32" | "bfloat16"
        What the weights of fc6, fc7 and fc8, nine tenths of all, are stored as; "bfloat16" is for inference, see `load`.
    scale : int or (lowest, highest), optional
        Shorter side S that training images were rescaled to; `train.fit` sets it, and scales of testing follow it where none
        are given (paper, section 4.1).
    covariance : (C, C) floats, optional
        Of the channels over the training set, with pixels on the 0..1 scale: what the RGB shift of training is made from
        (paper, section 3.1). `train.fit` computes it when it is needed and not given.
    head : "classes" | "SCR" | "PCR"
        What fc8 predicts: scores of classes, or boxes (paper, appendix A), one for all classes ("SCR", 4 outputs) or one for
        each ("PCR", 4 x num_classes); see `vggnet.localize`.

    Raises
    ------
    ValueError
        For a value out of its range; the message names it.
    DeviceError
        If the device can't be used.

    Examples
    --------
    >>> model = VGG("A", num_classes=10, input_size=32, fc_width=64)
    >>> model.num_parameters
    9258122
    >>> model.forward(np.zeros((2, 32, 32, 3), np.float32)).shape
    (2, 10)
    """

    def __init__(
        self,
        config: str = "D",
        num_classes: int = 1000,
        input_size: int = 224,
        in_channels: int = 3,
        fc_width: int = 4096,
        dropout: float = 0.5,
        init: str | None = "paper",
        seed: int = 0,
        mean: Sequence[float] = ILSVRC_MEAN,
        classes: Sequence[str] | None = None,
        pool_rounding: str = "floor",
        precision: Precision = "float32",
        device: str = "cpu",
        weight_dtype: str = "float32",
        scale: int | Sequence[int] | None = None,
        covariance: Sequence[Sequence[float]] | None = None,
        head: str = "classes",
    ) -> None:
        from .preprocess import Preprocessing  # Pillow is not needed to import vggnet

        _check_choice("config", config, CONFIGS)
        _check_choice("pool_rounding", pool_rounding, ("floor", "ceil"))
        _check_choice("in_channels", in_channels, (1, 3))
        _check_choice("precision", precision, PRECISIONS)
        _check_precision("VGG: precision", precision, device)
        _check_choice("weight_dtype", weight_dtype, WEIGHT_DTYPES)
        _check_choice("head", head, HEADS)
        if init is not None:
            _check_choice("init", init, INITS)
            if weight_dtype != "float32":
                raise ValueError(
                    f"VGG: weight_dtype is {weight_dtype!r}, which is for inference; expected init=None, "
                    f"or use vggnet.load(path, weight_dtype={weight_dtype!r})"
                )
        if input_size < STRIDE or input_size % STRIDE:
            raise ValueError(f"VGG: input_size is {input_size}; expected a multiple of {STRIDE}")
        for name, value in (("num_classes", num_classes), ("fc_width", fc_width)):
            if value < 1:
                raise ValueError(f"VGG: {name} is {value}; expected at least 1")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"VGG: dropout is {dropout}; expected 0 <= dropout < 1")
        if classes is not None and len(classes) != num_classes:
            raise ValueError(f"VGG: classes has {len(classes)} names; expected num_classes = {num_classes}")
        mean = tuple(float(value) for value in mean)
        if in_channels == 1 and mean == ILSVRC_MEAN:
            mean = (sum(weight * value for weight, value in zip(LUMA, ILSVRC_MEAN, strict=True)),)
        if len(mean) != in_channels:
            raise ValueError(f"VGG: mean has {len(mean)} values; expected in_channels = {in_channels}")

        self.config = config
        self.num_classes = num_classes
        self.input_size = input_size
        self.in_channels = in_channels
        self.fc_width = fc_width
        self.dropout = dropout
        self.seed = seed
        self.classes = None if classes is None else [str(name) for name in classes]
        self.scale = scale if scale is None or isinstance(scale, int) else (int(scale[0]), int(scale[-1]))
        self.head = head
        self.pool_rounding = pool_rounding
        self.precision = precision
        self.device = device
        self.weight_dtype = weight_dtype
        self.preprocessing = Preprocessing(
            mean=mean,
            channels="gray" if in_channels == 1 else "RGB",
            input_size=input_size,
            covariance=None if covariance is None else tuple(map(tuple, covariance)),
        )
        layers = layers_of(
            config,
            num_classes=self.outputs,
            input_size=input_size,
            in_channels=in_channels,
            fc_width=fc_width,
        )
        # Boxes have no soft-max.
        self.layers: tuple[Layer, ...] = layers if head == "classes" else layers[:-1]
        shapes = parameter_shapes(self.layers)
        make = _C.zeros if init is None else _C.empty
        narrow = {f"{layer.name}.weight" for layer in self.layers if layer.kind == "linear"}
        tensors = {
            name: make(shape, weight_dtype if name in narrow else "float32", device=device)  # type: ignore[arg-type]
            for name, shape in shapes.items()
        }
        if init is not None:
            initialise(tensors, init, seed)
        # Weights change in place only (sgd_, copy_, load), which bumps the version that cached transforms are keyed by.
        self.parameters: Mapping[str, _C.Tensor] = MappingProxyType(
            {name: tensor.freeze_views() for name, tensor in tensors.items()}
        )
        # (layer, algorithm) -> the weights' version, and what conv2d_transform_weights made of it.
        self._transformed: dict[tuple[str, str], tuple[int, _C.Tensor]] = {}
        # precision "bf16": layer -> the weights' version, and what they are rounded to bfloat16.
        self._rounded: dict[str, tuple[int, _C.Tensor]] = {}

    def __repr__(self) -> str:
        head = "" if self.head == "classes" else f", head={self.head!r}"
        return (
            f"VGG({self.config!r}, num_classes={self.num_classes}, input_size={self.input_size}, "
            f"in_channels={self.in_channels}, fc_width={self.fc_width}, device={self.device!r}{head})"
        )

    @property
    def outputs(self) -> int:
        """Outputs of fc8: a score for each class, or the numbers of one box or of a box for each class."""
        outputs = {"classes": self.num_classes, "SCR": BOX_NUMBERS, "PCR": BOX_NUMBERS * self.num_classes}
        return outputs[self.head]

    def expect_classes(self, what: str) -> None:
        """Raise ValueError, naming `what` was asked for, when this net predicts boxes."""
        if self.head != "classes":
            raise ValueError(
                f"{what}: this model predicts boxes (head {self.head!r}), not classes; expected a classification net, "
                "or use vggnet.localize"
            )

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of all layers in order, the paper's: "conv1_1", "relu1_1", ..., "fc8", "prob"."""
        return tuple(layer.name for layer in self.layers)

    @property
    def num_parameters(self) -> int:
        """The number of weights and biases."""
        return count_parameters(self.layers)

    # ---------------------------------------------------------------- passes

    def _plan(
        self, shape: Sequence[int], layers: Sequence[str] | None, *, training: bool, keep: bool
    ) -> Plan:
        if training and self.weight_dtype != "float32":
            raise ValueError(
                f"training=True: this model has weight_dtype {self.weight_dtype!r}, which is for inference; "
                f"load it with weight_dtype='float32' to train"
            )
        names = self.layer_names
        taps = ("fc8",) if layers is None else tuple(layers)
        if not taps:
            raise ValueError("layers is empty; expected at least one layer's name")
        for tap in taps:
            if tap not in names:
                raise ValueError(f"layers names {tap!r}; {self.config} has {', '.join(names)}")
        last = max(names.index(tap) for tap in taps)
        through = self.layers[: last + 1]
        if len(shape) != 4 or shape[3] != self.in_channels:
            raise ValueError(f"x has shape {tuple(shape)}; expected (N, H, W, {self.in_channels})")
        side = self.input_size
        if tuple(shape[1:3]) != (side, side) and any(layer.kind == "linear" for layer in through):
            raise ValueError(
                f"x has shape {tuple(shape)}; expected height and width {side}, the input_size of this model. "
                f"For larger images use model.dense(x), or layers before fc6"
            )
        return Plan(
            through,
            tuple(shape),
            taps,
            pool_rounding=self.pool_rounding,
            dropout=training and self.dropout > 0.0,
            keep=keep,
            device=self.device,
            weight_dtype=self.weight_dtype,
            precision=self.precision,
        )

    def weights_of(self, layer: Layer) -> tuple[_C.Tensor, _C.Tensor]:
        """A layer's weights, as `precision` multiplies with them, and biases.

        For "bf16" they are rounded once for each change of the weights themselves, which stay float32; and by each replay of
        a CUDA graph, since they may have changed before it.
        """
        weight, bias = (self.parameters[f"{layer.name}.{kind}"] for kind in ("weight", "bias"))
        if self.precision != "bf16" or weight.dtype == "bfloat16":
            return weight, bias
        version, rounded = self._rounded.get(layer.name, (None, None))
        if rounded is None or version != weight.storage.version or cuda.capturing(self.device):
            version = weight.storage.version
            rounded = weight.to(dtype="bfloat16") if rounded is None else rounded.copy_(weight)
            self._rounded[layer.name] = version, rounded
        return rounded, bias

    def rounded_bytes(self, steps: Iterable[Step]) -> int:
        """Bytes of the weights that `weights_of` rounds for these steps."""
        shapes = [(f"{step.layer.name}.weight", step.layer.parameter_shapes) for step in steps]
        return sum(
            nbytes(named[name], "bfloat16")
            for name, named in shapes
            if self.precision == "bf16" and name in named and self.parameters[name].dtype == "float32"
        )

    def transformed_weights(self, layer: Layer, x_shape: Sequence[int]) -> _C.Tensor:
        """The weights of a convolution as its algorithm for `x_shape` multiplies with them, made once for inference.

        They are made again when the weights have changed, and let go by the next training pass.
        """
        weight = self.parameters[f"{layer.name}.weight"]
        shape = tuple(x_shape)
        key = layer.name, _C.conv2d_algorithm(shape, weight.shape)
        version, made = self._transformed.get(key, (None, None))
        if made is None or version != weight.storage.version:
            version = weight.storage.version
            made = ops.conv2d_transform_weights(weight, shape, out=made)
            self._transformed[key] = version, made
        return made

    def run(
        self,
        x: Any,
        *,
        layers: Sequence[str] | None = None,
        training: bool = False,
        rng: Rng | None = None,
        keep: bool = True,
    ) -> Run:
        """One forward pass, kept so that maps can be read and gradients computed.

        Parameters
        ----------
        x : (N, H, W, C) float32
            Preprocessed images: pixels on the 0..255 scale minus `preprocessing.mean`. H and W are `input_size` unless the
            last of `layers` lies before fc6.
        layers : sequence of layer names, optional
            Maps to keep apart for the caller; nothing after the last of them is computed. Default: fc8.
        training : bool
            Apply dropout (paper, section 3.1).
        rng : Rng, optional
            Key of the dropout masks; by default the model's seed and rows 0..N-1, so every call draws the same masks.
        keep : bool
            Keep what `Run.backward` needs. False is for inference: two buffers take turns.

        Returns
        -------
        Run
            ``run["relu5_3"]``, ``run.logits``, ``run.backward(...)``.

        Raises
        ------
        TypeError
            If x holds uint8: images go through `predict` or `vggnet.evaluate`.
        ValueError
            For a shape that does not fit or an unknown layer, and for training with a weight_dtype other than "float32".

        Examples
        --------
        >>> model = VGG("A", num_classes=10, input_size=32, fc_width=16)
        >>> run = model.run(np.zeros((1, 32, 32, 3), np.float32), layers=["relu3_2"])
        >>> run["relu3_2"].shape
        (1, 8, 8, 256)
        """
        if getattr(x, "dtype", None) == "uint8":
            raise TypeError(
                "x is uint8; expected float32 pixels minus the mean. For images use model.predict(images), "
                "or subtract model.preprocessing.mean"
            )
        shape = getattr(x, "shape", None) or np.shape(x)
        try:
            x = as_input(x, self.device)
            plan = self._plan(x.shape, layers, training=training, keep=keep)
            if training:
                self._transformed.clear()  # about to be out of date, and memory is dear now
                rng = rng if rng is not None else Rng(self.seed, np.arange(x.shape[0]))
                if rng.rows.shape[0] != x.shape[0]:
                    raise ValueError(f"rng has {rng.rows.shape[0]} rows; expected {x.shape[0]}, one an image")
            return Run(self, plan, x, rng)
        except MemoryError as error:
            raise self.too_large(error, shape, layers, training=training, keep=keep) from None

    def too_large(
        self,
        error: MemoryError,
        shape: Sequence[int],
        layers: Sequence[str] | None,
        *,
        training: bool,
        keep: bool,
    ) -> MemoryError:
        """The error of a pass that found no memory, with the largest batch for which there would be enough."""

        def maps(batch: int) -> int:
            plan = self._plan((batch, *shape[1:]), layers, training=training, keep=keep)
            backward = plan.backward_arena(plan.steps, plan.learning(True)).size if training else 0
            held = sum(rounded.nbytes for _, rounded in self._rounded.values())
            backward += max(0, self.rounded_bytes(plan.steps) - held)
            return nbytes(plan.shapes["data"]) + plan.forward.size + plan.output_bytes() + backward

        error.with_traceback(None)  # whose frames hold what the pass had taken
        free, batch = free_memory(self.device) or 0, shape[0]
        try:
            wanted = needed = maps(batch)
            while batch > 1 and needed > free:
                batch = max(1, min(batch - 1, batch * free // needed))
                needed = maps(batch)
        except (MemoryError, NotImplementedError, _C.DeviceError):  # the device can't even say
            return error
        most = f"the largest batch that fits has {batch}" if needed <= free else "not even one fits"
        return MemoryError(f"{error}; a pass of {shape[0]} images takes {wanted} bytes, and {most}")

    def forward(self, x: Any) -> _C.Tensor:
        """Outputs of fc8, class scores before soft-max, (N, outputs), of preprocessed images (N, input_size, input_size, C)."""
        return self.run(x, keep=False).logits

    def features(self, x: Any, layers: Sequence[str]) -> dict[str, _C.Tensor]:
        """Maps of some layers by name, (N, h, w, c) or (N, width); nothing past the last of them is computed.

        With precision "bf16" those before fc8 are bfloat16: ``map.to(dtype="float32")`` is what NumPy takes.

        "conv4_2" is the map before its ReLU, "relu4_2" the one after. Images may have any size unless a layer from fc6 on
        is asked for.

        Examples
        --------
        >>> model = VGG("A", num_classes=10, input_size=32, fc_width=16)
        >>> model.features(np.zeros((1, 48, 64, 3), np.float32), ["relu2_1"])["relu2_1"].shape
        (1, 24, 32, 128)
        """
        run = self.run(x, layers=layers, keep=False)
        return {name: run[name] for name in layers}

    def loss_and_gradients(
        self,
        x: Any,
        labels: Any,
        *,
        training: bool = True,
        rng: Rng | None = None,
        normalizer: float | None = None,
        grads: Mapping[str, _C.Tensor] | None = None,
        accumulate: bool = False,
        ready: Callable[[tuple[str, ...]], None] | None = None,
    ) -> tuple[_C.Tensor, dict[str, _C.Tensor]]:
        """Multinomial logistic loss and its gradients (paper, section 3.1), without weight decay.

        Parameters
        ----------
        x : (N, input_size, input_size, C) float32, preprocessed
        labels : (N,) int64
        training, rng :
            As in `run`.
        normalizer : float, optional
            What the sum over images is divided by; default N. A micro-batch passes the size of its whole batch.
        grads, accumulate, ready :
            As in `Run.backward`.

        Returns
        -------
        (loss, grads)
            A 0-d tensor, and gradients by parameter name.
        """
        self.expect_classes("loss_and_gradients")
        run = self.run(x, training=training, rng=rng)
        loss, dlogits = ops.cross_entropy(run.logits, labels, normalizer=normalizer)
        gradients, _ = run.backward({"fc8": dlogits}, grads=grads, accumulate=accumulate, ready=ready)
        return loss, gradients

    def memory_plan(
        self,
        batch: int,
        *,
        size: int | tuple[int, int] | None = None,
        layers: Sequence[str] | None = None,
        training: bool | Collection[str] = False,
    ) -> MemoryPlan:
        """Bytes that a pass will take, by purpose, from shapes alone: nothing is allocated.

        Parameters
        ----------
        batch : int
            Images.
        size : int or (height, width), optional
            Of the images; default `input_size`. Another size is planned up to pool5.
        layers : sequence of layer names, optional
            Maps to keep apart for the caller, as in `run`.
        training : bool or names of layers
            Plan a training step (forward, gradients, SGD with momentum) of all or of these layers, instead of inference.

        Returns
        -------
        MemoryPlan
            A mapping; ``plan.total`` is exactly what the allocator's counter will show at its peak.
        """
        return memory_plan(self, batch, size, layers, training)

    # ---------------------------------------------------------------- dense

    def dense(self, x: Any, *, layer: str = "fc8", memory: int | None = None) -> _C.Tensor:
        """The map of a layer, by default class scores, at every position of larger images (paper, section 3.2).

        fc6 becomes a convolution of the size of pool5's map, fc7 and fc8 become 1x1 convolutions, and the network runs over
        the whole image: one position every 32 pixels.

        Parameters
        ----------
        x : (N, H, W, C) float32, preprocessed
            H, W >= input_size for a layer from fc6 on; any size for those before.
        layer : str
            "fc8": scores before soft-max; "relu7": the features of the paper's appendix B; any other of `layer_names`.
        memory : int, optional
            Bytes that the maps of one band may take; default 1 GiB. Larger images are computed in bands of rows, or of columns
            where they are wider than high, with halos; the result is the same to rounding (Winograd's tiles lie differently in
            a band).

        Returns
        -------
        (N, h, w, channels)
            For layers from fc6 on h is (height of pool5's map) - input_size / 32 + 1, and channels are `outputs` or fc_width.
            float32; with precision "bf16" bfloat16 for layers before fc8.

        Raises
        ------
        ValueError
            If an image is smaller than input_size, or there is no such layer.
        MemoryError
            If one band of the least height does not fit into `memory`.

        Examples
        --------
        >>> model = VGG("A", num_classes=10, input_size=32, fc_width=16)
        >>> model.dense(np.zeros((1, 64, 96, 3), np.float32)).shape
        (1, 2, 3, 10)
        >>> model.dense(np.zeros((1, 64, 96, 3), np.float32), layer="relu7").shape
        (1, 2, 3, 16)
        """
        return dense_pass(self, x, layer, DENSE_MEMORY if memory is None else memory)

    def trunk_layer(self, layer: str) -> str:
        """The layer itself if it lies before fc6, where images may have any size; else "pool5", which fc6 looks at."""
        names = self.layer_names
        if layer not in names:
            raise ValueError(f"layer is {layer!r}; {self.config} has {', '.join(names)}")
        return layer if names.index(layer) < names.index("fc6") else "pool5"

    # ---------------------------------------------------------------- images

    def predict(
        self, images: Any, protocol: Any = "paper", top: int = 5
    ) -> list[list[tuple[str | int, float]]]:
        """The most probable classes of images.

        Parameters
        ----------
        images : path, PIL image or uint8 array (H, W, 3) in RGB order, or a sequence of these
            Gray models take (H, W) or (H, W, 1). Scaling, cropping and mean subtraction are done here.
        protocol : vggnet.evaluate.Protocol | "paper" | "center" | "ten-crop" | "multi-crop" | "dense" | "combined"
            "paper" is "dense" at the paper's scales (paper, section 3.2).
        top : int
            How many classes to tell.

        Returns
        -------
        list of list of (class, probability)
            One list an image, best first; the class is its name, or its number when the model knows no names.

        Raises
        ------
        ImageError
            If a file can't be read.
        TypeError, ValueError
            If an array can't be an image of this model; the message says what to do.
        """
        from . import evaluate
        from .preprocess import load_image

        self.expect_classes("predict")
        one_array = isinstance(images, np.ndarray) and images.ndim <= 3
        if one_array or isinstance(images, (str, os.PathLike)) or not isinstance(images, Iterable):
            images = [images]
        if top < 1:
            raise ValueError(f"predict: top is {top}; expected at least 1")
        loaded = [load_image(image, self.preprocessing.channels) for image in images]
        posteriors: npt.NDArray[np.float32] = evaluate.posteriors(self, loaded, protocol)
        order = np.argsort(-posteriors, axis=1, kind="stable")[:, :top]
        return [
            [(self.classes[c] if self.classes else int(c), float(row[c])) for c in best]
            for row, best in zip(posteriors, order, strict=True)
        ]

    # ---------------------------------------------------------------- files

    def to_dict(self) -> dict[str, Any]:
        """The arguments that make this model again, without its weights."""
        return {
            "config": self.config,
            "num_classes": self.num_classes,
            "input_size": self.input_size,
            "in_channels": self.in_channels,
            "fc_width": self.fc_width,
            "dropout": self.dropout,
            "seed": self.seed,
            "mean": list(self.preprocessing.mean),
            "covariance": self.preprocessing.to_dict()["covariance"],
            "classes": self.classes,
            "scale": self.scale,
            "pool_rounding": self.pool_rounding,
            "precision": self.precision,
            "head": self.head,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a safetensors file, with configuration, preprocessing, class names and a checksum.

        The file appears whole or not at all: it is written beside `path`, flushed, and renamed.

        Raises
        ------
        ValueError
            If weight_dtype is not "float32": the file that the model was loaded from holds the weights whole.
        """
        if self.weight_dtype != "float32":
            raise ValueError(
                f"save: this model has weight_dtype {self.weight_dtype!r}, a copy rounded for inference; "
                f"keep the file it was loaded from"
            )
        from .checkpoint import write_tensors

        metadata = {
            "format": FORMAT,
            "model": json.dumps(self.to_dict()),
            "preprocessing": json.dumps(self.preprocessing.to_dict()),
        }
        write_tensors(path, {name: tensor.numpy() for name, tensor in self.parameters.items()}, metadata)

    def load_parameters(self, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Overwrite all weights and biases.

        Raises
        ------
        WeightsError
            If a name is missing or unknown, or a shape differs; nothing is changed then.
        """
        shapes = parameter_shapes(self.layers)
        missing, unknown = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
        if missing or unknown:
            raise _C.WeightsError(
                f"weights of {self!r}: missing {missing or 'none'}, unknown {unknown or 'none'}"
            )
        for name, shape in shapes.items():
            if tuple(arrays[name].shape) != shape:
                raise _C.WeightsError(f"weights: {name} has shape {arrays[name].shape}; expected {shape}")
        for name, array in arrays.items():
            self.parameters[name].copy_(array)


def load(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    weight_dtype: str = "float32",
    config: str | None = None,
    num_classes: int | None = None,
    format: str | None = None,
    precision: Precision | None = None,
) -> VGG:
    """Read a model: a file that `VGG.save` or training wrote, or weights of another program.

    Parameters
    ----------
    path : path of a file
        Its suffix says whose: .safetensors (ours, or torchvision's state dict), .pth and .pt (torchvision), .caffemodel
        (Caffe), .h5, .hdf5 and .keras (Keras), .mat (MatConvNet), .onnx (as vggnet writes it). See docs/weights.md.
    device : str
    weight_dtype : "float32" | "bfloat16"
        "bfloat16" rounds the weights of fc6, fc7 and fc8 to bfloat16, which halves their memory and the time that one image
        takes in these layers; sums are still made in float32. Weights of convolutions and biases stay float32. Such a model is
        for inference: it can't be trained or saved.
    config : "A" | "A-LRN" | "B" | "C" | "D" | "E", optional
        The net that the file must hold. Needed for weights of A-LRN in a file that doesn't tell them from those of A.
    num_classes : int, optional
        For fine-tuning: with another number than the file's, fc8 is drawn anew (as by init="paper", zero biases) and class
        names are dropped; all other weights are the file's. The logger "vggnet" tells.
    format : str, optional
        A name of `vggnet.convert.FORMATS`, for a suffix that doesn't tell.
    precision : "float32" | "tf32" | "bf16", optional
        As in `VGG`; the file's unless it is given, which must be where the file's is "bf16" and the device is the CPU.

    Raises
    ------
    WeightsError
        If the file is damaged, holds something else, or does not fit its own description or `config`.
    FileNotFoundError
        If there is no such file.
    ImportError
        If the format needs a package that is not installed; the message names the extra.
    ValueError
        For another number of classes with weight_dtype "bfloat16".

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     VGG("A", num_classes=10, input_size=32, fc_width=16).save(f"{directory}/A.safetensors")
    ...     load(f"{directory}/A.safetensors", num_classes=3)
    VGG('A', num_classes=3, input_size=32, in_channels=3, fc_width=16, device='cpu')
    """
    from .convert import open_model

    _check_choice("weight_dtype", weight_dtype, WEIGHT_DTYPES)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"load: num_classes is {num_classes}; expected at least 1")
    arguments, copy = open_model(path, config=config, format=format)
    anew: tuple[str, ...] = ()
    if num_classes not in (None, arguments.get("num_classes")):
        if weight_dtype != "float32":
            raise ValueError(
                f"load: num_classes is {num_classes}, the file has {arguments.get('num_classes')}: fc8 would be drawn "
                f"anew, to be trained; expected weight_dtype='float32'"
            )
        anew = ("fc8.weight", "fc8.bias")
        log.info(
            "%s has %s classes: fc8 is drawn anew for %d, all other weights are kept",
            os.fspath(path),
            arguments.get("num_classes"),
            num_classes,
        )
        arguments |= {"num_classes": num_classes, "classes": None}
    if precision is not None:
        arguments["precision"] = precision
    source = os.fspath(path) if precision is None else "load"
    _check_precision(f"{source}: precision", arguments.get("precision", "float32"), device)
    try:
        model = VGG(**arguments, init=None, device=device, weight_dtype=weight_dtype)
    except (TypeError, ValueError) as error:
        raise _C.WeightsError(f"{os.fspath(path)}: its description makes no model: {error}") from error
    copy(model.parameters, anew)
    if anew:
        initialise(model.parameters, "paper", model.seed, only=anew)
    return model


def _check_precision(what: str, precision: Precision, device: str) -> None:
    if precision == "bf16" and not device.startswith("cuda"):
        raise ValueError(
            f"{what} is 'bf16', which device {device!r} does not compute in; expected a CUDA device, or precision='float32' "
            f"(--precision float32). For less memory on the CPU load with weight_dtype='bfloat16'"
        )


def _check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"VGG: {name} is {value!r}; expected one of {', '.join(map(repr, choices))}")
