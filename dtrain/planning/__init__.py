"""What a recipe's training would take of GPUs, told without one: memory, what fits, what is sent, which config to take."""
