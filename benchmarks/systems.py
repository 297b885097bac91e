"""One measurement of one system, in this process: ``python systems.py SYSTEM CASE FOLDER`` prints it as JSON.

A script that needs NumPy and the system, since peers run in an environment of their own. FOLDER has net D's layers and
weights (`bench_peers.write_net`); ``prepare`` writes there what a system reads instead. CASE is batchN (a forward pass of N
images), denseN (one image of N x N, scores at every position), trainN (a step on N images), or size (of the installation).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
CASE = re.compile(r"(batch|dense|train)(\d+)")
LEARNING = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
CLASSES = 1000


def images(count: int, size: int) -> Array:
    """Random images in NHWC, the same for every system."""
    return np.random.Generator(np.random.Philox(0)).standard_normal((count, size, size, 3), dtype=np.float32)


def labels(count: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(1)).integers(CLASSES, size=count)


def nchw(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def nhwc(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


class System:
    """A net that was loaded for one kind of pass: "batch", "dense" or "train".

    `forward` and `step` make a call that is ready to be timed. `forward`'s returns class scores, (N, classes) or
    (N, h, w, classes); `step`'s takes whether dropout is on and returns the gradient to conv1_1's weights, (K, 3, 3, C).
    """

    distribution = ""
    kinds: tuple[str, ...] = ("batch", "dense")
    settings = ""  # in words, for the report
    largest_batch = 1 << 30

    def __init__(self, folder: Path, kind: str, shape: tuple[int, ...], threads: int) -> None:
        raise NotImplementedError

    @staticmethod
    def prepare(folder: Path) -> None:
        """Write the files that the system reads."""

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version(cls.distribution)

    @classmethod
    def installed_bytes(cls) -> dict[str, int]:
        """Of the distribution, and with all that it needs, NumPy included."""
        sizes = dict(distributions(cls.distribution, set()))
        return {"alone": sizes[cls.distribution], "with_dependencies": sum(sizes.values())}

    def forward(self, x: Array) -> Callable[[], Array]:
        raise NotImplementedError

    def step(self, x: Array, labels: npt.NDArray[np.int64]) -> Callable[[bool], Array]:
        raise NotImplementedError


def distributions(name: str, seen: set[str]) -> Iterator[tuple[str, int]]:
    """Names and sizes of a distribution and of those that it needs and that are there; extras are left out."""
    if name in seen:
        return
    seen.add(name)
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:  # needed on other systems only
        return
    files = (Path(str(found.locate_file(file))) for file in found.files or ())
    yield name, sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
    for need in found.requires or ():
        if "extra ==" not in need:
            yield from distributions(re.split(r"[^\w.-]", need, maxsplit=1)[0], seen)


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Layers and weights of the net, as vggnet lays them out."""
    from safetensors.numpy import load_file

    return json.loads((folder / "layers.json").read_text()), load_file(folder / "model.safetensors")


def oihw(layer: dict[str, Any], weight: Array) -> Array:
    """A weight as (out, in, row, column): a convolution's, or a linear layer's as one; fc6's window is pool5's map."""
    side = layer["window"]
    return nchw(weight.reshape(layer["outputs"], side, side, -1))


# ---- vggnet


class Vggnet(System):
    distribution = "vggnet"
    kinds = ("batch", "dense", "train")
    settings = "algorithm auto"

    def __init__(self, folder: Path, kind: str, shape: tuple[int, ...], threads: int) -> None:
        import vggnet as vgg

        vgg.set_num_threads(threads)
        self.dense = kind == "dense"
        self.model = vgg.load(folder / "model.safetensors")
        if kind == "train":
            vgg._C.keep_memory(True)  # as `train.fit` does
            shapes = {name: p.shape for name, p in self.model.parameters.items()}
            self.grads = {name: vgg.zeros(shape) for name, shape in shapes.items()}
            self.velocity = [vgg.zeros(shape) for shape in shapes.values()]

    @classmethod
    def version(cls) -> str:
        import vggnet as vgg

        return f"{vgg.__version__} ({vgg.build_info()['isa']})"

    @classmethod
    def installed_bytes(cls) -> dict[str, int]:
        """Counted in the folder of the package, which may be a working copy."""
        import tomllib

        import vggnet

        package = Path(vggnet.__file__).parent
        files = [f for f in package.rglob("*") if f.is_file() and f.suffix != ".pyc"]
        alone = sum(file.stat().st_size for file in files)
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        seen: set[str] = set()
        needs = [
            item for need in project["dependencies"] for item in distributions(re.split(r"\W", need)[0], seen)
        ]
        return {"alone": alone, "with_dependencies": alone + sum(size for _, size in needs)}

    def forward(self, x: Array) -> Callable[[], Array]:
        import vggnet as vgg

        tensor = vgg.tensor(x)
        call = self.model.dense if self.dense else self.model.forward
        return lambda: call(tensor).numpy()

    def step(self, x: Array, labels: npt.NDArray[np.int64]) -> Callable[[bool], Array]:
        import vggnet as vgg

        tensor, model = vgg.tensor(x), self.model

        def step(dropout: bool) -> Array:
            model.loss_and_gradients(tensor, labels, training=dropout, grads=self.grads)
            vgg.ops.sgd_(
                list(model.parameters.values()), list(self.grads.values()), self.velocity, **LEARNING
            )
            return self.grads["conv1_1.weight"].numpy()

        return step


# ---- PyTorch


class Torch(System):
    distribution = "torch"
    kinds = ("batch", "dense", "train")
    settings = (
        "eager, oneDNN, channels_last; inference_mode; training: SGD(fused=True), zero_grad(set_to_none=True)"
    )

    def __init__(self, folder: Path, kind: str, shape: tuple[int, ...], threads: int) -> None:
        import torch
        from torch import nn

        torch.set_num_threads(threads)
        layers, weights = read(folder)
        modules: list[nn.Module] = []
        linear = False
        for layer in layers:
            if layer["kind"] == "pool":
                modules.append(nn.MaxPool2d(2))
                continue
            as_conv = layer["kind"] == "conv" or kind == "dense"
            if not as_conv and not linear:
                modules.append(nn.Flatten())
                linear = True
            weight = torch.from_numpy(oihw(layer, weights.pop(f"{layer['name']}.weight")))
            module: nn.Module
            if as_conv:
                side = layer["window"]
                padding = side // 2 if layer["kind"] == "conv" else 0
                with torch.device("meta"):
                    module = nn.Conv2d(weight.shape[1], layer["outputs"], side, padding=padding)
                weight = weight.contiguous(memory_format=torch.channels_last)
            else:
                with torch.device("meta"):
                    module = nn.Linear(weight[0].numel(), layer["outputs"])
                weight = weight.flatten(1)
            module.weight = nn.Parameter(weight)
            module.bias = nn.Parameter(torch.from_numpy(weights.pop(f"{layer['name']}.bias")))
            modules.append(module)
            if layer["relu"]:
                modules.append(nn.ReLU(inplace=True))
                if layer["kind"] == "linear":
                    modules.append(nn.Dropout(0.5))
        self.net = nn.Sequential(*modules)
        self.net.train(kind == "train")

    def forward(self, x: Array) -> Callable[[], Array]:
        import torch

        tensor = torch.from_numpy(x).permute(0, 3, 1, 2)  # channels_last, without a copy

        def forward() -> Array:
            with torch.inference_mode():
                y = self.net(tensor)
            return y.permute(0, 2, 3, 1).numpy() if y.ndim == 4 else y.numpy()

        return forward

    def step(self, x: Array, labels: npt.NDArray[np.int64]) -> Callable[[bool], Array]:
        import torch

        tensor, targets = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(labels)
        optimizer = torch.optim.SGD(self.net.parameters(), fused=True, **LEARNING)

        def step(dropout: bool) -> Array:
            for module in self.net:
                if isinstance(module, torch.nn.Dropout):
                    module.train(dropout)
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(self.net(tensor), targets).backward()
            optimizer.step()
            return nhwc(self.net[0].weight.grad.numpy())

        return step


# ---- ONNX: a graph for each kind of pass over one file of weights


def write_onnx(folder: Path) -> None:
    from onnx import TensorProto, helper, save

    if (folder / "dense.onnx").exists():
        return
    layers, weights = read(folder)
    offsets: dict[str, tuple[int, int]] = {}
    with open(folder / "weights.bin", "wb") as file:
        for layer in layers:
            if layer["kind"] != "pool":
                name = layer["name"]
                for key, array in (
                    (f"{name}.weight", oihw(layer, weights.pop(f"{name}.weight"))),
                    (f"{name}.bias", weights.pop(f"{name}.bias")),
                ):
                    file.write(b"\0" * (-file.tell() % 4096))  # a page, so that it can be mapped
                    offsets[key] = (file.tell(), array.nbytes)
                    file.write(memoryview(array).cast("B"))

    def tensor(key: str, shape: tuple[int, ...]) -> Any:
        proto = TensorProto(name=key, data_type=TensorProto.FLOAT, dims=shape)
        proto.data_location = TensorProto.EXTERNAL
        offset, length = offsets[key]
        for entry, value in (("location", "weights.bin"), ("offset", offset), ("length", length)):
            proto.external_data.add(key=entry, value=str(value))
        return proto

    for kind in ("batch", "dense"):
        nodes, tensors, at, flat = [], [], "data", False
        for layer in layers:
            name, side = layer["name"], layer["window"]
            if layer["kind"] == "pool":
                nodes.append(helper.make_node("MaxPool", [at], [name], kernel_shape=[2, 2], strides=[2, 2]))
                at = name
                continue
            inputs = layer["inputs"] if layer["kind"] == "conv" else layer["inputs"] // side**2
            parameters = [f"{name}.weight", f"{name}.bias"]
            if layer["kind"] == "conv" or kind == "dense":
                shape: tuple[int, ...] = (layer["outputs"], inputs, side, side)
                pads = [side // 2 if layer["kind"] == "conv" else 0] * 4
                nodes.append(
                    helper.make_node("Conv", [at, *parameters], [name], kernel_shape=[side, side], pads=pads)
                )
            else:
                if not flat:
                    nodes.append(helper.make_node("Flatten", [at], ["flat"]))
                    at, flat = "flat", True
                shape = (layer["outputs"], layer["inputs"])
                nodes.append(helper.make_node("Gemm", [at, *parameters], [name], transB=1))
            tensors += [tensor(parameters[0], shape), tensor(parameters[1], (layer["outputs"],))]
            at = name
            if layer["relu"]:
                nodes.append(helper.make_node("Relu", [at], [f"{name}.relu"]))
                at = f"{name}.relu"
        data = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, "H", "W"])
        scores = helper.make_tensor_value_info(at, TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "VGG", [data], [scores], tensors)
        save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
            folder / f"{kind}.onnx",
        )


def as_scores(y: Array) -> Array:
    return nhwc(y) if y.ndim == 4 else y


class OnnxRuntime(System):
    distribution = "onnxruntime"
    settings = "CPUExecutionProvider, all graph optimizations, fixed shapes, sequential"

    def __init__(self, folder: Path, kind: str, shape: tuple[int, ...], threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        for name, size in zip("NHW", shape, strict=False):
            options.add_free_dimension_override_by_name(name, size)
        self.session = ort.InferenceSession(folder / f"{kind}.onnx", options, ["CPUExecutionProvider"])

    prepare = staticmethod(write_onnx)

    def forward(self, x: Array) -> Callable[[], Array]:
        data = {"data": nchw(x)}
        return lambda: as_scores(self.session.run(None, data)[0])


class OpenVino(System):
    distribution = "openvino"
    settings = "CPU, PERFORMANCE_HINT=LATENCY, INFERENCE_PRECISION_HINT=f32, fixed shapes"

    def __init__(self, folder: Path, kind: str, shape: tuple[int, ...], threads: int) -> None:
        import openvino as ov

        core = ov.Core()
        model = core.read_model(folder / f"{kind}.onnx")
        model.reshape([shape[0], 3, *shape[1:3]])
        self.compiled = core.compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )

    prepare = staticmethod(write_onnx)

    def forward(self, x: Array) -> Callable[[], Array]:
        data = nchw(x)
        request = self.compiled.create_infer_request()
        return lambda: as_scores(request.infer({0: data}, share_inputs=True, share_outputs=True)[0])


# ---- ncnn


class Ncnn(System):
    distribution = "ncnn"
    settings = "Winograd and packed layouts on (the defaults), float32: fp16, bf16 and int8 off"
    largest_batch = 1  # it has no batches

    def __init__(self, folder: Path, kind: str, shape: tuple[int, ...], threads: int) -> None:
        import ncnn

        self.net = ncnn.Net()
        options = self.net.opt
        options.num_threads = threads
        for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "int8_inference"):
            setattr(options, f"use_{name}", False)
        if self.net.load_param(str(folder / f"{kind}.param")) or self.net.load_model(
            str(folder / "ncnn.bin")
        ):
            raise RuntimeError("ncnn cannot read its files")

    @staticmethod
    def prepare(folder: Path) -> None:
        if (folder / "dense.param").exists():
            return
        layers, weights = read(folder)
        with open(folder / "ncnn.bin", "wb") as file:
            for layer in layers:
                if layer["kind"] != "pool":
                    file.write(b"\0\0\0\0")  # float32
                    for array in (
                        oihw(layer, weights.pop(f"{layer['name']}.weight")),
                        weights.pop(f"{layer['name']}.bias"),
                    ):
                        file.write(memoryview(array).cast("B"))
        for kind in ("batch", "dense"):
            lines, at = ["Input data 0 1 data"], "data"
            for layer in layers:
                name, side = layer["name"], layer["window"]
                if layer["kind"] == "pool":
                    what, options = "Pooling", "0=0 1=2 2=2 5=1"
                else:
                    inputs = layer["inputs"] if layer["kind"] == "conv" else layer["inputs"] // side**2
                    size = layer["outputs"] * inputs * side**2
                    common = f"0={layer['outputs']} 9={int(layer['relu'])}"
                    if layer["kind"] == "conv" or kind == "dense":
                        pad = side // 2 if layer["kind"] == "conv" else 0
                        what, options = "Convolution", f"{common} 1={side} 4={pad} 5=1 6={size}"
                    else:
                        what, options = "InnerProduct", f"{common} 1=1 2={size}"
                lines.append(f"{what} {name} 1 1 {at} {name} {options}")
                at = name
            text = "\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines])
            (folder / f"{kind}.param").write_text(text + "\n")

    def forward(self, x: Array) -> Callable[[], Array]:
        import ncnn

        image = nchw(x)[0]  # a name, since a Mat does not keep what it borrows
        data = ncnn.Mat(image).clone()

        def forward() -> Array:
            extractor = self.net.create_extractor()
            extractor.input("data", data)
            failed, y = extractor.extract("fc8")
            if failed:
                raise RuntimeError(f"ncnn: status {failed}")
            return as_scores(np.array(y)[None])

        return forward


SYSTEMS: dict[str, type[System]] = {
    "vggnet": Vggnet,
    "torch": Torch,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "ncnn": Ncnn,
}


def supports(system: str, case: str) -> bool:
    """Whether a system can do a case at all."""
    kind, number = split(case)
    return kind in SYSTEMS[system].kinds and (kind != "batch" or number <= SYSTEMS[system].largest_batch)


def split(case: str) -> tuple[str, int]:
    """ "batch32" as ("batch", 32)."""
    match = CASE.fullmatch(case)
    if match is None:
        raise ValueError(f"no case {case!r}; expected batchN, denseN or trainN")
    return match[1], int(match[2])


# ---- one measurement


def reset_peak() -> int:
    """Forget the peak of the resident set so far, which is that of loading, and return it (Linux)."""
    peak = peak_bytes()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak


def peak_bytes() -> int:
    """The largest resident set, since `reset_peak` if that was called."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def measure(system: str, case: str, folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    """Load, make one pass that is dropped, then time passes until `seconds` have gone by; the least counts.

    The pass that is dropped writes what other systems' should equal: scores, or conv1_1's gradient of a step without dropout.
    """
    kind, number = split(case)
    count, size = (1, number) if kind == "dense" else (number, 224)
    begin = time.perf_counter()
    loaded = SYSTEMS[system](folder, kind, (count, size, size, 3), threads)
    load_seconds = time.perf_counter() - begin
    x = images(count, size)
    call: Callable[[], Array]
    if kind == "train":
        step = loaded.step(x, labels(count))
        loading_peak = reset_peak()
        answer = step(False).copy()
        call = lambda: step(True)  # noqa: E731
    else:
        call = loaded.forward(x)
        loading_peak = reset_peak()
        answer = call().copy()
    passes: list[float] = []
    start = time.perf_counter()
    while not passes or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        call()
        passes.append(time.perf_counter() - begin)
    np.save(folder / f"answer-{case}-{system}.npy", answer)
    return {
        "ms": 1e3 * min(passes) / count,  # an image
        "passes": len(passes),
        "load_seconds": load_seconds,
        "peak_bytes": peak_bytes(),
        "loading_peak_bytes": loading_peak,
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("case", help="batchN, denseN, trainN, prepare, size or version")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args(arguments)
    system = SYSTEMS[options.system]
    if options.case == "prepare":
        system.prepare(options.folder)
        result: Any = None
    elif options.case == "size":
        result = system.installed_bytes()
    elif options.case == "version":
        result = system.version()
    else:
        result = measure(options.system, options.case, options.folder, options.threads, options.seconds)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
