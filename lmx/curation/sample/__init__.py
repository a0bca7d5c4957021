"""A small crawl that the project makes itself, with faults whose places are known: to try a curation on, and to measure it by."""
