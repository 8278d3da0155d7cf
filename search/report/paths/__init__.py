"""The paths of the best trials in a report: what is drawn, as figures, PNG files and sections."""
