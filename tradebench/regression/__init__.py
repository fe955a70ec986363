"""The regression gate: runs held against a baseline, a verdict for every point and metric.

One run is one observation. Steps and repeats inside a run share whatever was peculiar about it
(clock speeds, neighbours, the state of caches), so that testing them as if they were independent
raises false alarms from one in a hundred to one in three.
"""
