"""What the rules of every place of use share."""
