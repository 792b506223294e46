"""Scoring files of any size with an exported model, in this process or as an Apache Beam pipeline."""
