"""What models read of passages without their words: tokens and states, kept for a whole corpus."""
