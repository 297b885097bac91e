"""The C sources keep the rules that no compiler checks: rings, allocation in one place, errors by status."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".c", ".h", ".def", ".cu", ".cuh"})
COLUMNS = 128

# What a ring's files may include besides system headers and their own folder's.
RINGS = {
    "core": {"vgg.h", "vgg_internal.h"},
    "kernels": {"vgg.h", "vgg_internal.h", "core"},
    "ops": {"vgg.h", "vgg_internal.h", "core", "kernels"},
    "cuda": {"vgg.h", "vgg_internal.h", "core"},
    "py": {"vgg.h", "vgg_internal.h", "core", "ops", "kernels"},
    "": {"vgg.h", "core"},
}
PYTHON = re.compile(r"Python\.h|structmember\.h|numpy/")
CUDA = re.compile(r"cuda|cudnn|cublas|nccl")


def code_of(text):
    """text with comments and the insides of strings blanked, line numbers kept."""

    def blank(match):
        found = match.group()
        if found.startswith("/"):
            return re.sub(r"[^\n]", " ", found)
        return found[0] + found[0]

    return re.sub(
        r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.DOTALL
    )


def _banned_words(path, code):
    rules = [
        (r"\b(exit|_exit|abort|assert)\s*\(", "ends the process"),
        (
            r"\b(printf|fprintf|puts|fputs|perror|putchar|sprintf|gets|strcpy|strcat)\s*\(",
            "prints, or has no bound",
        ),
        (
            r"\bstatic\s+(const\s+)?Py\w*Object\s*\*\s*(const\s+)?\w+\s*[;=\[,]",
            "a global that holds a Python object",
        ),
        (r"\bPyModule_AddObject\s*\(", "steals a reference on success only: PyModule_AddObjectRef"),
        (r"^\s*#\s*if\s+0\b", "dead code"),
        (r"\b(atof|atoi|strtok|rand|srand)\s*\(", "no error, or hidden state"),
        (r"\bint\s+main\s*\(", "a library has no main"),
        (r"\balloca\s*\(", "an unchecked stack"),
    ]
    if path.relative_to(CSRC).as_posix() != "core/memory.c":
        rules.append(
            (
                r"\b(malloc|calloc|realloc|free|aligned_alloc|posix_memalign|strdup)\s*\(",
                "memory is core/memory.c's",
            )
        )
    for pattern, why in rules:
        for match in re.finditer(pattern, code, re.MULTILINE):
            yield code.count("\n", 0, match.start()) + 1, f"{match.group().strip()}: {why}"


def _includes(path, text):
    folder = path.relative_to(CSRC).parent.as_posix().removeprefix(".").split("/")[0]
    for number, line in enumerate(text.split("\n"), 1):
        match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if not match:
            continue
        bracket, name = match.groups()
        if PYTHON.search(name) and folder != "py" and path != CSRC / "cuda" / "module.c":
            yield number, f"{name}: only csrc/py and the CUDA extension's module.c know Python"
        if CUDA.search(name) and folder != "cuda" and bracket == "<":
            yield number, f"{name}: only csrc/cuda knows CUDA"
        if bracket == '"':
            target = (path.parent / name).resolve()
            if not target.is_relative_to(CSRC):
                yield number, f"{name}: outside csrc"
                continue
            parts = target.relative_to(CSRC).parts
            ring = parts[0]
            if ring != folder and ring not in RINGS[folder]:
                yield number, f"{name}: {folder or 'csrc'} may not include {ring}"


def _layout(path, text, code):
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > COLUMNS:
            yield number, f"{len(line)} columns; at most {COLUMNS}"
        if line != line.rstrip() or "\t" in line:
            yield number, "a tab, or blanks at the end"
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
            yield number, "unfinished work belongs in the tracker"
    if not text.endswith("\n") or text.endswith("\n\n"):
        yield text.count("\n") + 1, "ends in exactly one newline"
    # A template (..._tile.h) is included once by each ISA's file, which says what NAME is.
    if (
        path.suffix == ".h"
        and not path.name.endswith("_tile.h")
        and not re.search(r"#ifndef (\w+)\n#define \1\n", text)
    ):
        yield 1, "no include guard"
    if path.suffix == ".c" and not text.startswith("/*"):
        yield 1, "begins with a comment that says what it is for"


def _isa(path, code):
    """Vector instructions live in files whose suffix names their ISA; headers that ISAs share are static
    throughout, or the linker may take one ISA's copy for all."""
    name = path.name
    if re.search(r"\b_mm\d*_|\b__m\d{3}", code) and not re.search(
        r"_(avx2|avx512|neon)\.c$|(_tile|\bvectors)\.h$", name
    ):
        yield 1, "intrinsics outside a file named by its ISA"
    if path.parent.name == "kernels" and name.endswith(("_tile.h", "vectors.h")):
        for match in re.finditer(
            r"^(?!static|#|typedef|struct|enum|union|extern|\w+ NAME\()[A-Za-z_][\w \*]*\([^;{]*\)\s*\{",
            code,
            re.M,
        ):
            yield (
                code.count("\n", 0, match.start()) + 1,
                f"{match.group()[:40]}: not static in a shared header",
            )


def _cuda(path, code):
    """Launches are looked at, sums have one order, and positions have 64 bits."""
    if path.suffix not in {".cu", ".cuh"}:
        return
    for launch in re.finditer(r"<<<", code):
        end = re.compile(r"^}", re.MULTILINE).search(code, launch.start())
        if "cudaGetLastError()" not in code[launch.start() : end.start() if end else None]:
            yield (
                code.count("\n", 0, launch.start()) + 1,
                "a launch whose function does not look at cudaGetLastError()",
            )
    for pattern, why in [
        (r"\batomic\w+\s*\(", "an atomic: sums would depend on who comes first"),
        (
            r"(?<!\(size_t\))\bblockIdx\.[xyz]\s*\*",
            "a position of 32 bits: widen blockIdx before the product",
        ),
        (r"\*\s*(blockIdx|gridDim)\.[xyz]", "a position of 32 bits: widen before the product"),
        (r"\bint\s+\w*(count|rows|columns|size|pixels|index)\b", "a count of 32 bits: size_t"),
        (r"\b(cudaDeviceSynchronize|cudaStreamSynchronize)\b", "a kernel's launch does not wait"),
    ]:
        for match in re.finditer(pattern, code):
            yield code.count("\n", 0, match.start()) + 1, f"{match.group()}: {why}"


def problems(path, text):
    code = code_of(text)
    found = [
        *_banned_words(path, code),
        *_includes(path, text),
        *_layout(path, text, code),
        *_isa(path, code),
        *_cuda(path, code),
    ]
    return [f"{path.relative_to(ROOT)}:{number}: {what}" for number, what in found]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(CSRC).as_posix())
def test_source(path):
    assert problems(path, path.read_text()) == []


def test_there_are_sources():
    folders = {p.relative_to(CSRC).parts[0] for p in SOURCES}
    assert {"core", "kernels", "ops", "py", "cuda", "vgg.h"} <= folders


@pytest.mark.parametrize(
    "where, planted",
    [
        ("ops/relu.c", "void f(void) { exit(1); }"),
        ("core/status.c", 'void f(void) { printf("x"); }'),
        ("ops/relu.c", "void f(int x) { assert(x); }"),
        ("py/module.c", "static PyObject *cache;"),
        ("py/module.c", "static PyTypeObject *type = NULL;"),
        ("py/module.c", 'int f(PyObject *m) { return PyModule_AddObject(m, "x", m); }'),
        ("ops/relu.c", "void *f(void) { return malloc(4); }"),
        ("core/threads.c", "void f(void *p) { free(p); }"),
        ("ops/relu.c", "#include <Python.h>"),
        ("cuda/layers.c", "#include <Python.h>"),
        ("kernels/kernels.c", '#include "../ops/cpu.h"'),
        ("core/status.c", '#include "../kernels/kernels.h"'),
        ("ops/relu.c", '#include "../py/py.h"'),
        ("ops/relu.c", "#include <cuda_runtime.h>"),
        ("ops/relu.c", "#if 0"),
        ("ops/relu.c", "/* TODO: later */"),
        ("ops/relu.c", "\tint x;"),
        ("ops/relu.c", "/* " + "x" * COLUMNS + " */"),
        ("ops/relu.c", "void f(float *p) { _mm256_storeu_ps(p, _mm256_setzero_ps()); }"),
        ("cuda/lrn.cu", "void f(void)\n{\n    lrn_kernel<<<1, 1>>>();\n}"),
        ("cuda/lrn.cu", "__device__ void f(float *p) { atomicAdd(p, 1.0f); }"),
        ("cuda/lrn.cu", "__device__ int f(void) { return blockIdx.x * 3; }"),
        ("cuda/lrn.cu", "__device__ int f(void) { return 3 * blockIdx.x; }"),
        ("cuda/lrn.cu", "__global__ void f(int count) {}"),
        ("cuda/lrn.cu", "void f(void) { cudaDeviceSynchronize(); }"),
        ("cuda/layers.c", '#include "../ops/cpu.h"'),
        ("cuda/layers.c", "void *f(void) { return malloc(4); }"),
        ("ops/relu.c", '#include "../cuda/cuda.h"'),
        ("kernels/gemm_tile.h", "float f(float x)\n{\n    return x;\n}"),
    ],
)
def test_the_lint_sees(where, planted):
    """Each rule goes red on a breach of it, and not on the same words in a comment or a string."""
    path = CSRC / where
    text = path.read_text() if path.exists() else "/* a file */\n"
    assert problems(path, f"{text}{planted}\n") != problems(path, text)


def test_the_lint_reads_past_comments_and_strings():
    path = CSRC / "ops/relu.c"
    innocent = '/* exit(1); malloc(2) */\nconst char *f(void) { return "printf(free(abort()))"; }\n'
    assert problems(path, path.read_text() + innocent) == []
