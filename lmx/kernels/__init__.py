"""Array functions with several implementations behind one api each: attention, the output head, grouped matmul."""
