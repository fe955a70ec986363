"""Plans: what every point of a suite will need, before anything is run.

The predictions themselves are made by the torch side, in processes of their own; here they are
asked for, kept, held against a device and turned into advice.
"""
