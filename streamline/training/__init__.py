"""Fitting replacements to hidden states or to the next token, and LoRA fine-tuning."""
