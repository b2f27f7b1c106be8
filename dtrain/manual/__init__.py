"""The manual: code that finds and shows the pages in `dtrain/docs`, and code that generates the reference pages."""
