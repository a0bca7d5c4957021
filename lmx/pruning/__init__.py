"""Smaller dense models cut out of larger ones: what each part is worth, which parts stay, and the cut itself."""
