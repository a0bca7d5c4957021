"""Checkpoints of a run and parameter files of an artefact, both written by orbax and both checked when they are read."""
