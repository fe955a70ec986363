"""What a trial does: build the model, compress it, evaluate, train, evaluate again."""
