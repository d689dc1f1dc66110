"""What the Hub and the Auto classes see of us: registration, model cards, export, default LoRA targets."""
