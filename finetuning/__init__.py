"""Fine-tuning: an encoder and a head trained on a task, by the papers' recipes."""
