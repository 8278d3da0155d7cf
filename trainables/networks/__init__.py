"""The bodies that methods route through."""
