"""What is asked: probes, draws and cases, the models that are asked about, and what was recorded of them."""
