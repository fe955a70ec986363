"""tradebench: what each memory-saving way of training a language model really costs."""

__version__ = "0.1.0"
