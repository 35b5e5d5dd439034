"""The ``scoring`` commands, one module a subject."""
