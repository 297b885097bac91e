"""The oracle: every operation and every net of vggnet again, in float64 NumPy with sums written as the
formulas are.

Nothing here imports vggnet. `tests/test_reference.py` proves each gradient by central differences; the C
kernels are then judged by these functions (`tests/tolerance.py` says how closely). All functions compute in
the dtype they are given, so a float32 run of the same code is the yardstick of what float32 arithmetic can do
at all.

Layouts are the library's: activations (N, H, W, C), convolution weights (K, R, S, C), linear weights (out,
in).
"""
