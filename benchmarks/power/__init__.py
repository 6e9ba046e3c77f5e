"""Power and energy: sources, meters, integration."""
