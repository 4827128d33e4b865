"""Our own TFDS builders: they prepare ArrayRecord files without TensorFlow, from data that are at hand."""
