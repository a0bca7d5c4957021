"""Functions of one document (or of statistics over many), without Beam."""
