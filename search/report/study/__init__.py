"""How a study went, in a report: figures and sections."""
