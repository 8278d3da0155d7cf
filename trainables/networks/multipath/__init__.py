"""Networks of parallel paths with soft routing between them (Tissera et al., arXiv 2107.02450)."""
