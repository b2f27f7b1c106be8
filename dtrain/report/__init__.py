"""The report of a run: gathered numbers, measured speed, tables, plots, and the pages that show them."""
