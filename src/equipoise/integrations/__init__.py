"""Balancers inside other people's trainers: one module for each, which imports its trainer; `equipoise` imports none of them."""
