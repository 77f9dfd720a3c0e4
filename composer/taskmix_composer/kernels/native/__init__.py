"""Kernels in C for CPUs: packing, loading, and the sources, which the build compiles."""
