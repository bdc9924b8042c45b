"""The reference path: components in PyTorch, on whatever device torch finds."""
