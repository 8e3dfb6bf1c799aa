"""Files of rows in, result tables out. Nothing here knows a model, a price or a state."""
