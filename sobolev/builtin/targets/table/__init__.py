"""The target ``table``: samples, values and partials that somebody recorded."""
