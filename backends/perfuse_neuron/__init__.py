"""Compiled programs on AWS Neuron cores."""
