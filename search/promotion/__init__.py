"""From an operating point to a served model: choice, gates, versions, aliases, prediction, the way back."""
