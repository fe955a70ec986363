"""Recommendations: which point to run, under which requirements, and how sure that is.

Candidates are the points of runs and plans; requirements and a goal pick one; the words say what
was measured, what was predicted, and what others have published about other models.
"""
