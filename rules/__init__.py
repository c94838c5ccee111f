"""Firewall rules and configuration templates, as data (shipped as `nfknock.rules`)."""
