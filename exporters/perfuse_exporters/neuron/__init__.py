"""Programs for AWS's NeuronCores."""
