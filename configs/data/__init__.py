"""Data: mixtures of text, instructions and preference sets."""
