"""Reusable parts of experiments: functions that return frozen dataclasses. No run is defined here."""
