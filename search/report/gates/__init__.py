"""Networks with gates in a report: figures, PNG files and sections."""
