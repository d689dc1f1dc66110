"""Metrics as pure functions of arrays and texts: answers, rankings, captions, calibration, intervals."""
