"""The report of a study: one HTML page, its pictures as PNG files, and the live page."""
