"""The sides of the benchmarks, each run in a process of its own: `python -m tools.bench_sides.lmx_side` and the like."""
