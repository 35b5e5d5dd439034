"""The whole pipeline on one machine, with servers that start and stop with it."""
