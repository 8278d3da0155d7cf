"""What is tried next: what samplers see, the samplers, the proposals."""
