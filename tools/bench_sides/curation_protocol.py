"""What the sides of `tools/bench_data.py` share in curation: the jobs, the figures of MinHash, the names of the folders."""

JOBS = {
    "filter": "extract with trafilatura, Gopher's rules, scrub personal data, write",
    "dedup": "MinHash of 5-grams over the extracted texts, keep one of each cluster, write",
}
BANDS, ROWS = 14, 8  # of MinHash
FOLDER = {"filter": "html", "dedup": "text"}  # job -> folder of its JSON lines
WARM_UP = "warm_up"  # folder that holds the same folders with a few pages
