"""Text in and tokens out: tokenizer and chat templates; data sets come with training."""
