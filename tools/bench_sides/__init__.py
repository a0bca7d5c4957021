"""The two sides of `tools/bench_train.py`, each run in a process of its own: `python -m tools.bench_sides.lmx_side`."""
