"""The knowledge store: teachers' outputs, computed once and joined to rows by id."""
