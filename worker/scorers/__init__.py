"""Scorers: given a question and an answer, return a score or say why there is none."""
