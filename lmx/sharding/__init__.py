"""Meshes, the table from logical to mesh axes, and what follows from both: array shardings and sharded kernels."""

from lmx.sharding.mesh import MeshConfig, build_mesh
from lmx.sharding.rules import DEFAULT_RULES, Rules

__all__ = ["DEFAULT_RULES", "MeshConfig", "Rules", "build_mesh"]
