"""Tiny models of every family, with every mechanism at work, for comparing lmx with transformers live and through goldens."""
