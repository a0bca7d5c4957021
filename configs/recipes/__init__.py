"""The papers' pre-training recipes: functions from a scale to stages, with the source of every figure."""
