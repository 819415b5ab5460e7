"""Command lines: gin files in, rows and tables out."""
