"""Beam graphs over the document functions, and the steps of a curation that look at more than one document."""
