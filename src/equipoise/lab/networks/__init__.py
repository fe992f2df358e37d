"""The networks of the lab: trunk, last shared layer and heads put together, and networks for dense tasks."""
