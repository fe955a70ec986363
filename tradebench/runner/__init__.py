"""Running trials: one process each, supervised, so that a death costs one trial and no more."""
