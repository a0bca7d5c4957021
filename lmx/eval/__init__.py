"""Row 4: held-out measures with their intervals, honest baselines, and the report."""
