"""Device operations as Triton kernels, one operation and its launcher a file."""
