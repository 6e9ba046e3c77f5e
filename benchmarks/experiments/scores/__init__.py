"""Which score ranks patches best, without training and after it, and where choosing pays."""
