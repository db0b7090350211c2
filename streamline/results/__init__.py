"""What a run leaves: records, answers to single questions, and the statistics made of them."""
