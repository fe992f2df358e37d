"""The networks of the lab: trunk, last shared layer and heads put together, and the dense networks of the paper."""
