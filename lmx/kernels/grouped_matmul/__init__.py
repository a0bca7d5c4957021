"""Matrix products of consecutive groups of rows with one matrix each: the work of a dropless mixture of experts."""
