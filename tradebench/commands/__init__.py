"""What the larger commands do, from a suite to a run directory; tradebench.cli parses and prints.

Nothing here imports torch: trials and predictions are made in processes of their own.
"""
