"""Objectives, samplers and likelihood estimators: functions of a system and its importance terms."""
