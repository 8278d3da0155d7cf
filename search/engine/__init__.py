"""The one writer of a study: which trial comes next, what becomes of a report, what lies in the folder."""
