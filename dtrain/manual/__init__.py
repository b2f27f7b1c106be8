"""The manual: pages that travel with the package (`dtrain/docs`), what shows them, and what writes their reference."""
