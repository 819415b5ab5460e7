"""From published archives and local files to batches; knows no model."""
