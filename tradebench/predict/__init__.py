"""Predicting a trial without its weights and without its GPU, from the code that would run.

The trial program runs in the fake world while every allocation and every operation is written
down. What follows turns that record into numbers for a device: the model's whole depth, what
kernels keep to themselves, the caching allocator, and the time that operations take.
"""
