"""Objectives, samplers and likelihood estimators: functions of a system and its importance terms."""

from tfstruct.inference.annealing import annealed_samples, log_partition

__all__ = ["annealed_samples", "log_partition"]
