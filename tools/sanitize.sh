#!/bin/sh
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer in a copy of the tree and runs the tests of
# tensors and operations there. Leaks are the business of tests/test_extension.py: CPython itself keeps memory at exit.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$scratch"
cd "$scratch"
CC=gcc VGGNET_SANITIZE=address,undefined "$python" setup.py -q build_ext --inplace
asan=$(gcc -print-file-name=libasan.so)
ubsan=$(gcc -print-file-name=libubsan.so)
ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 LD_PRELOAD="$asan $ubsan" \
    PYTHONPATH="$scratch" PYTHONMALLOC=malloc "$python" -m pytest -q -x -p no:cacheprovider \
    tests/test_tensor.py tests/test_dlpack.py tests/test_conv2d.py tests/test_winograd.py tests/test_winograd_weight.py \
    tests/test_linear.py tests/test_bfloat16.py tests/test_max_pool2d.py tests/test_lrn.py tests/test_softmax.py tests/test_random.py \
    tests/test_sgd.py tests/test_augment.py tests/test_workspace.py "$@"
