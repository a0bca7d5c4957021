"""Curation: from crawled pages to a corpus, as pure functions of documents and thin Apache Beam graphs over them."""
