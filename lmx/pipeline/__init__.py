"""Experiments as named stages: graph, artifacts, runner. It runs the stages it is given and imports none."""
