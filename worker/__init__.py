"""The scoring worker: an arq worker process, its scoring pool, its sweep and the ``scoring`` command."""
