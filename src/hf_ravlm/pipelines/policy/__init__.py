"""Policies of answering: the gate (search or not), the critic (which passages), abstention (say nothing)."""
