"""What is right: the reference, run and recorded."""
