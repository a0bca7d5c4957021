"""An embedded corpus: the text that every Python installation carries, as a TensorFlow Datasets builder."""
