"""The engine on one accelerator, at Llama-2-7B's shape, against peers in the same process."""
