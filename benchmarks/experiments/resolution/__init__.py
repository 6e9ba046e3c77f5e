"""Large images at the cost of small ones: the pruned model against plain networks, in accuracy and in speed."""
