"""Triton kernels, one module an operator; installed as `stylekern.triton_kernels`. Imports torch and triton only.

Each module has host functions that launch its kernels on the tensors given: `forward` and `backward`. They check
nothing: `stylekern.ops` does. With TRITON_INTERPRET=1, set before triton is imported, they run on CPU tensors.
"""

if __name__ == "triton_kernels":
    raise ImportError(
        "these are stylekern's kernels: import stylekern.triton_kernels. The top-level name triton_kernels belongs to "
        "another project; take stylekern's source tree off sys.path to import that one."
    )
