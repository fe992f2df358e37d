"""Balancers inside other trainers: one module for each, which imports its trainer; `equipoise` imports none of them."""
