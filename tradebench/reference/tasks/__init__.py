"""The reference tasks, as lm-eval reads them: one YAML file each, with its items beside it."""
