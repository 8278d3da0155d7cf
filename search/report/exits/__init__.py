"""Networks with exits in a report: what is drawn, as figures, PNG files and sections."""
