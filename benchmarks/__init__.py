"""Measurements that anyone can repeat; each prints a Markdown table with the machine and versions."""
