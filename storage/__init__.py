"""Tables and every SQL statement of the scoring handoff."""
